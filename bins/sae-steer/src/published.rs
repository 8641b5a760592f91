//! multimodal-sae's files: `HOOKPOINT.json`, which hold one answer per feature.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sae_types::{FeatureId, HookPoint};
use serde::{Deserialize, Serialize};
use stage_kit::write_whole;

use crate::record::{Key, Record};
use crate::store::{Merged, any};

/// Where the files of several prompts or strengths lie.
const BELOW: &str = "msae";

/// An entry of a file, by the feature's name.
#[derive(Serialize, Deserialize)]
struct Entry {
    original_resps: String,
    clamped_resps: String,
    idx: FeatureId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    explanation: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    category: Option<String>,
}

type Entries = BTreeMap<String, Entry>;

/// What a judge adds.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) explanation: String,
    /// 1 to 4, as text.
    pub(crate) category: String,
}

/// Where what a judge adds comes from.
pub(crate) enum Verdicts<'a> {
    /// From the files as they are, where answers are still the same.
    Kept,
    /// From a judge.
    Of(&'a dyn Fn(&Record) -> Result<Option<Judged>>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    sample: u32,
    strength: u32,
    hook: HookPoint,
}

/// Writes the files: of one prompt and strength into the folder itself, of several into `msae/prompt-N/k-STRENGTH`. Files of an
/// earlier state of the folder that do not belong to this one are removed.
pub(crate) fn write(records: &Merged<Key, Record>, verdicts: &Verdicts<'_>, folder: &Path) -> Result<()> {
    let kinds: BTreeSet<(u32, u32)> =
        records.keys().into_iter().map(|&(sample, _, strength)| (sample, strength)).collect();
    let is_single = kinds.len() == 1;
    let mut written = BTreeSet::new();
    // Records ascend by prompt: of one at a time all files are in memory.
    let mut files: BTreeMap<Place, Entries> = BTreeMap::new();
    let mut prompt = None;
    for record in records.records(&any) {
        let record = record?;
        if prompt.replace(record.sample) != Some(record.sample) {
            write_files(folder, is_single, std::mem::take(&mut files), verdicts, &mut written)?;
        }
        let judged = match verdicts {
            Verdicts::Kept => None,
            Verdicts::Of(judge) => judge(&record)?,
        };
        let (explanation, category) = judged.map(|judged| (judged.explanation, judged.category)).unzip();
        let name = record.feature().to_string();
        let place = Place { sample: record.sample, strength: record.strength.to_bits(), hook: record.hook };
        let (original_resps, clamped_resps, idx) = (record.original, record.steered, record.feature);
        let entry = Entry { original_resps, clamped_resps, idx, explanation, category };
        files.entry(place).or_default().insert(name, entry);
    }
    write_files(folder, is_single, files, verdicts, &mut written)?;
    remove_all_but(&written, folder)
}

/// Removes the files.
pub(crate) fn clear(folder: &Path) -> Result<()> {
    remove_all_but(&BTreeSet::new(), folder)
}

fn write_files(
    folder: &Path,
    is_single: bool,
    files: BTreeMap<Place, Entries>,
    verdicts: &Verdicts<'_>,
    written: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    for (Place { sample, strength, hook }, mut entries) in files {
        let name = format!("{hook}.json");
        let below = format!("{BELOW}/prompt-{sample}/k-{}", f32::from_bits(strength));
        let own = if is_single { folder.to_owned() } else { folder.join(below) };
        std::fs::create_dir_all(&own).with_context(|| format!("cannot make the folder {}", own.display()))?;
        let path = own.join(&name);
        if matches!(verdicts, Verdicts::Kept) {
            // What was one prompt at one strength until now lies in the folder itself.
            for earlier in [folder.join(&name), path.clone()].iter().filter_map(|path| read(path)) {
                keep(&mut entries, earlier);
            }
        }
        let text = serde_json::to_string_pretty(&entries)? + "\n";
        write_whole(&path, text.as_bytes())?;
        written.insert(path);
    }
    Ok(())
}

/// Takes over what a judge said of the same answers.
fn keep(entries: &mut Entries, earlier: Entries) {
    for (name, before) in earlier {
        if let Some(entry) = entries.get_mut(&name)
            && before.category.is_some()
            && (&entry.original_resps, &entry.clamped_resps)
                == (&before.original_resps, &before.clamped_resps)
        {
            (entry.explanation, entry.category) = (before.explanation, before.category);
        }
    }
}

/// A file as far as it is one of these: named after the hook point whose features it holds.
fn read(path: &Path) -> Option<Entries> {
    if path.extension()? != "json" {
        return None;
    }
    let entries: Entries = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let of_hook = format!("{}_feature", path.file_stem()?.to_str()?);
    (!entries.is_empty() && entries.keys().all(|name| name.starts_with(&of_hook))).then_some(entries)
}

fn remove_all_but(kept: &BTreeSet<PathBuf>, folder: &Path) -> Result<()> {
    let list = |folder: &Path| -> Result<Vec<PathBuf>> {
        match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
                .with_context(|| format!("cannot read {}", folder.display())),
        }
    };
    let remove = |file: &Path| {
        if kept.contains(file) || read(file).is_none() {
            return Ok(());
        }
        std::fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))
    };
    for file in list(folder)?.iter().filter(|path| path.is_file()) {
        remove(file)?;
    }
    let below = folder.join(BELOW);
    for prompt in list(&below)?.iter().filter(|path| path.is_dir()) {
        for strength in list(prompt)?.iter().filter(|path| path.is_dir()) {
            for file in list(strength)? {
                remove(&file)?;
            }
            // Only what is empty goes.
            let _ = std::fs::remove_dir(strength);
        }
        let _ = std::fs::remove_dir(prompt);
    }
    let _ = std::fs::remove_dir(below);
    Ok(())
}
