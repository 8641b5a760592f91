//! What an earlier run left in a folder: held against what is asked for now, or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chat_client::LedgerFile;
use sae_types::HookPoint;
use stage_kit::UsageError;

use crate::folder::{EXPLANATIONS, IMAGES, Stage, run_file};
use crate::ledgers::{Ledgers, files};

/// Removes what an earlier run of the stage left, the manifest last: until then the folder is not taken for an empty one. Gives
/// the ledger at `own`, empty, if there was one.
///
/// # Errors
/// When another process writes one of the ledgers; nothing is removed then.
pub(crate) fn clear(folder: &Path, stage: Stage, own: &Path) -> Result<Option<LedgerFile>> {
    let mut held = Vec::new();
    for ledger in files(folder, stage.name)? {
        held.push(LedgerFile::lock(&ledger)?);
    }
    let paths: Vec<PathBuf> = held.iter().map(|ledger| ledger.path().to_owned()).collect();
    let hooks: BTreeSet<HookPoint> = match Ledgers::read(&paths) {
        Ok(read) => read.records(&|_| true).filter_map(|record| Some(record.ok()?.hook)).collect(),
        // What cannot be read is removed all the same.
        Err(_) => BTreeSet::new(),
    };
    let remove = |path: &Path| {
        let removed = match std::fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))
    };
    for path in stage.written(folder, hooks.iter()) {
        remove(&path)?;
    }
    if stage.name == EXPLANATIONS.name {
        for hook in &hooks {
            let images = folder.join(IMAGES).join(hook.file_stem());
            if images.exists() {
                std::fs::remove_dir_all(&images)
                    .with_context(|| format!("cannot remove {}", images.display()))?;
                // There may be others' in it.
                let _ = std::fs::remove_dir(folder.join(IMAGES));
            }
        }
    }
    let mut found = None;
    for ledger in held {
        if ledger.path() == own {
            ledger.empty()?;
            found = Some(ledger);
        } else {
            remove(ledger.path())?;
        }
    }
    remove(&run_file(folder, stage))?;
    Ok(found)
}

/// Refuses settings that differ from those of the run that began the folder.
pub(crate) fn compare(run_json: &Path, now: &BTreeMap<String, String>) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Then {
        #[serde(default)]
        settings: BTreeMap<String, String>,
    }
    let bytes = std::fs::read(run_json).with_context(|| format!("cannot read {}", run_json.display()))?;
    let then: Then =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no run.json", run_json.display()))?;
    let names: BTreeSet<&String> = then.settings.keys().chain(now.keys()).collect();
    let absent = "not set".to_owned();
    let differences: Vec<String> = names
        .into_iter()
        .filter_map(|name| {
            let (was, is) = (then.settings.get(name).unwrap_or(&absent), now.get(name).unwrap_or(&absent));
            (was != is).then(|| format!("{name} was {was}, is {is}"))
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "{} was made with other settings: {}; use the same, or another folder, or start anew with --overwrite",
        run_json.parent().unwrap_or(run_json).display(),
        differences.join("; ")
    );
    Err(UsageError::new(problem).into())
}
