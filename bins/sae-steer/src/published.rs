//! multimodal-sae's files: `HOOKPOINT.json`, which hold one answer per feature.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use sae_types::{FeatureId, HookPoint};
use serde::Serialize;
use stage_kit::write_whole;

use crate::record::{Key, Record};
use crate::store::Merged;

/// An entry of a file, by the feature's name.
#[derive(Serialize)]
struct Entry {
    original_resps: String,
    clamped_resps: String,
    idx: FeatureId,
    #[serde(flatten)]
    judged: Option<Judged>,
}

/// What a judge adds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Judged {
    pub(crate) explanation: String,
    /// 1 to 4, as text.
    pub(crate) category: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    sample: u32,
    strength: u32,
    hook: HookPoint,
}

/// Writes the files: of one prompt and strength into the folder itself, of several into `msae/prompt-N/k-STRENGTH`.
pub(crate) fn write(
    records: &Merged<Key, Record>,
    judged: &BTreeMap<Key, Judged>,
    folder: &Path,
) -> Result<()> {
    let mut kinds: BTreeSet<(u32, u32)> = BTreeSet::new();
    for record in records.records() {
        let (sample, _, strength) = record?.key();
        kinds.insert((sample, strength));
    }
    // Records ascend by prompt: of one at a time all files are in memory.
    let mut files: BTreeMap<Place, BTreeMap<String, Entry>> = BTreeMap::new();
    let mut prompt = None;
    for record in records.records() {
        let record = record?;
        if prompt.replace(record.sample) != Some(record.sample) {
            write_files(folder, kinds.len() == 1, &files)?;
            files.clear();
        }
        let (key, name) = (record.key(), record.feature().to_string());
        let place = Place { sample: record.sample, strength: key.2, hook: record.hook };
        let entry = Entry {
            original_resps: record.original,
            clamped_resps: record.steered,
            idx: record.feature,
            judged: judged.get(&key).cloned(),
        };
        files.entry(place).or_default().insert(name, entry);
    }
    write_files(folder, kinds.len() == 1, &files)
}

fn write_files(folder: &Path, single: bool, files: &BTreeMap<Place, BTreeMap<String, Entry>>) -> Result<()> {
    for (Place { sample, strength, hook }, entries) in files {
        let below = format!("msae/prompt-{sample}/k-{}", f32::from_bits(*strength));
        let folder = if single { folder.to_owned() } else { folder.join(below) };
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let text = serde_json::to_string_pretty(entries)? + "\n";
        write_whole(&folder.join(format!("{hook}.json")), text.as_bytes())?;
    }
    Ok(())
}
