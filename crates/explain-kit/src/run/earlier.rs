//! What an earlier run left in a folder, removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chat_client::LedgerFile;
use sae_types::HookPoint;

use crate::error::Trying;
use crate::run::folder::{IMAGES, Stage, run_file};
use crate::{Entry, ExplainKitError, Ledgers, files};

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
    for path in manifests_of_workers(folder, stage)? {
        remove(&path)?;
    }
    if stage.keeps_images {
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

/// `run.rank-0.json`, `iou.run.rank-0.json` and so on.
fn manifests_of_workers(folder: &Path, stage: Stage) -> Result<Vec<PathBuf>, ExplainKitError> {
    let first = run_file(folder, stage).with_extension("rank-");
    let first = first.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ExplainKitError::io("the folder", folder))? {
        let path = entry.map_err(ExplainKitError::io("the folder", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rank = name.strip_prefix(&first).and_then(|rest| rest.strip_suffix(".json"));
        if rank.is_some_and(|rank| !rank.is_empty() && rank.bytes().all(|b| b.is_ascii_digit())) {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use explain::Record;

    use super::*;

    #[test]
    fn all_that_a_stage_wrote_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage {
            name: "iou",
            suffix: Some("_iou"),
            extra: &["iou.summary.json", "iou.html"],
            keeps_images: true,
            flag: "--save-dir",
        };
        let record = r#"{"hook":"model.layers.1","feature":2,"outcome":"unable"}"#;
        let others = ["clip.html", "iou.run.rank-x.json", "model_layers_1.json", "run.rank-0.json"];
        let own = [
            "iou.jsonl",
            "iou.rank-1.jsonl",
            "iou.run.json",
            "iou.run.rank-1.json",
            "iou.summary.json",
            "iou.html",
            "model_layers_1_iou.json",
        ];
        for name in own.iter().chain(&others) {
            std::fs::write(folder.path().join(name), format!("{record}\n")).unwrap();
        }
        for hook in ["model_layers_1", "model_layers_2"] {
            std::fs::create_dir_all(folder.path().join(IMAGES).join(hook)).unwrap();
        }
        let ledger = folder.path().join("iou.jsonl");
        assert!(clear::<Record>(folder.path(), stage, &ledger).unwrap().is_some());
        assert_eq!(std::fs::read(&ledger).unwrap(), b"");
        for name in &own[1..] {
            assert!(!folder.path().join(name).exists(), "{name}");
        }
        for name in others.iter().chain(&["images/model_layers_2"]) {
            assert!(folder.path().join(name).exists(), "{name}");
        }
        assert!(!folder.path().join("images/model_layers_1").exists());
    }
}
