//! What an earlier run left in a folder, removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chat_client::LedgerFile;
use sae_types::HookPoint;

use crate::error::Trying;
use crate::run::folder::{IMAGES, Stage, run_file};
use crate::{EXPLANATIONS, Entry, ExplainKitError, Ledgers, files};

/// Removes what an earlier run of the stage left, the manifest last: until then the folder is not taken for an empty one. Gives
/// the ledger at `own`, empty, if there was one.
///
/// # Errors
/// When another process writes one of the ledgers; nothing is removed then.
pub(crate) fn clear<R: Entry>(
    folder: &Path,
    stage: Stage,
    own: &Path,
) -> Result<Option<LedgerFile>, ExplainKitError> {
    let mut held = Vec::new();
    for ledger in files(folder, stage.name)? {
        held.push(LedgerFile::lock(&ledger)?);
    }
    let paths: Vec<PathBuf> = held.iter().map(|ledger| ledger.path().to_owned()).collect();
    let hooks: BTreeSet<HookPoint> = match Ledgers::<R>::read(&paths) {
        Ok(read) => read.records(&|_| true).filter_map(|record| Some(record.ok()?.key().hook)).collect(),
        // What cannot be read is removed all the same.
        Err(_) => BTreeSet::new(),
    };
    let remove = |path: &Path| {
        let removed = match std::fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        removed.trying(|| format!("cannot remove {}", path.display()))
    };
    for path in stage.written(folder, hooks.iter()) {
        remove(&path)?;
    }
    if stage.name == EXPLANATIONS {
        for hook in &hooks {
            let images = folder.join(IMAGES).join(hook.file_stem());
            if images.exists() {
                std::fs::remove_dir_all(&images).trying(|| format!("cannot remove {}", images.display()))?;
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
