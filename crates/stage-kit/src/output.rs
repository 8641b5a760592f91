//! [`OutputFolder`]: written beside, then renamed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{KitError, RunManifest};

/// What to do with an output folder that holds something already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse before any work is done.
    Refuse,
    /// Replace it, once the new one is complete.
    Replace,
}

impl Existing {
    /// `--overwrite`'s meaning.
    pub fn from_overwrite(overwrite: bool) -> Self {
        if overwrite { Self::Replace } else { Self::Refuse }
    }
}

/// A folder in the making: a hidden sibling `.{name}.part-<pid>` that [`OutputFolder::commit`] renames.
///
/// Dropped without a commit, or when the process is interrupted, the sibling is removed. Only a SIGKILL
/// leaves one behind; it can be deleted.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    part: PathBuf,
    existing: Existing,
    committed: bool,
}

/// Folders in the making, for the signal handler.
static OPEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn open_parts() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every folder in the making and keeps the lock, so that none is renamed any more.
pub(crate) fn remove_open_parts() -> impl Drop {
    let parts = open_parts();
    for part in &*parts {
        // Another thread may still be adding files.
        for _ in 0..5 {
            match fs::remove_dir_all(part) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                _ => break,
            }
        }
    }
    parts
}

impl OutputFolder {
    /// Whether [`OutputFolder::create`] would refuse `target`; for runs that make the folder at their end.
    ///
    /// # Errors
    /// When `target` has no name or is a file, or is occupied and `existing` says to refuse.
    pub fn check(target: &Path, existing: Existing) -> Result<(), KitError> {
        if target.file_name().is_none() {
            return Err(KitError::Unnamed { path: target.to_owned() });
        }
        if target.exists() && !target.is_dir() {
            return Err(KitError::NotAFolder { path: target.to_owned() });
        }
        if existing == Existing::Refuse && is_occupied(target)? {
            return Err(KitError::Occupied { path: target.to_owned() });
        }
        Ok(())
    }

    /// Makes the sibling folder to write into; parents of `target` are made where missing.
    ///
    /// # Errors
    /// When `target` is a file, or is occupied and `existing` says to refuse, or the sibling cannot be made.
    pub fn create(target: &Path, existing: Existing) -> Result<Self, KitError> {
        Self::check(target, existing)?;
        let name = target.file_name().ok_or_else(|| KitError::Unnamed { path: target.to_owned() })?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(KitError::io("make the folder", parent))?;
        let stem = format!(".{}.part-{}", name.to_string_lossy(), std::process::id());
        let mut parts = open_parts();
        for attempt in 0_u32.. {
            // Process ids repeat: in containers, and on the other hosts of a shared file system.
            let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let part = parent.join(format!("{stem}{suffix}"));
            match fs::create_dir(&part) {
                Ok(()) => {
                    parts.insert(part.clone());
                    return Ok(Self { target: target.to_owned(), part, existing, committed: false });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(KitError::io("make the folder", part)(error)),
            }
        }
        Err(KitError::Occupied { path: parent.join(stem) })
    }

    /// The folder to write into until the commit.
    pub fn path(&self) -> &Path {
        &self.part
    }

    /// Where it will be after the commit.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes `run.json` and renames the folder to its name.
    ///
    /// # Errors
    /// When writing or renaming fails, or the target was filled in the meantime; nothing is left behind then,
    /// and what stood there before stands there still.
    pub fn commit(mut self, mut manifest: RunManifest) -> Result<(), KitError> {
        let run_json = self.part.join("run.json");
        let text = manifest.finished_text().map_err(KitError::io("write", &run_json))?;
        fs::write(&run_json, text)
            .and_then(|()| fs::File::open(&run_json)?.sync_all())
            .map_err(KitError::io("write", &run_json))?;

        let mut parts = open_parts();
        let replaced = if self.existing == Existing::Replace && is_occupied(&self.target)? {
            let aside = self.part.with_extension(format!("old-{}", std::process::id()));
            fs::rename(&self.target, &aside).map_err(KitError::io("move aside", &self.target))?;
            Some(aside)
        } else {
            None
        };
        if let Err(error) = fs::rename(&self.part, &self.target) {
            if let Some(aside) = replaced {
                fs::rename(&aside, &self.target).map_err(KitError::io("move back", &aside))?;
            }
            return Err(match error.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    KitError::Occupied { path: self.target.clone() }
                }
                _ => KitError::io("rename the finished folder to", &self.target)(error),
            });
        }
        self.committed = true;
        parts.remove(&self.part);
        // The name is to stay; only Unix lets a folder be opened for this, and not every file system can.
        if let Some(parent) = self.part.parent().filter(|_| cfg!(unix)) {
            let _ = fs::File::open(parent).and_then(|parent| parent.sync_all());
        }
        drop(parts);
        if let Some(aside) = replaced {
            fs::remove_dir_all(&aside).map_err(KitError::io("remove the replaced folder", &aside))?;
        }
        Ok(())
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.part);
            open_parts().remove(&self.part);
        }
    }
}

fn is_occupied(folder: &Path) -> Result<bool, KitError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(KitError::io("read the folder", folder)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn manifest() -> RunManifest {
        let mut manifest = RunManifest::start("sae-data", "0.1.0");
        manifest.seed = Some(7);
        manifest.count("scenes", 3);
        manifest.input("dataset", "there", "00");
        manifest
    }

    #[test]
    fn appears_whole_with_its_manifest() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("deep/er/out");
        let output = OutputFolder::create(&target, Existing::Refuse).unwrap();
        assert_eq!(output.target(), target);
        fs::write(output.path().join("data"), "x").unwrap();
        assert!(!target.exists());
        output.commit(manifest()).unwrap();
        assert_eq!(names(&target), ["data", "run.json"]);
        assert_eq!(names(target.parent().unwrap()), ["out"]);
        let run: serde_json::Value =
            serde_json::from_slice(&fs::read(target.join("run.json")).unwrap()).unwrap();
        assert_eq!(run["seed"], 7);
        assert_eq!(run["counts"]["scenes"], 3);
        assert_eq!(run["inputs"][0]["role"], "dataset");
        assert!(run["started_at"].as_str().unwrap().ends_with('Z'), "{run}");
        assert!(run["seconds"].as_f64().unwrap() >= 0.0);
        assert!(run.get("world").is_none());
    }

    #[test]
    fn dropped_it_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let output = OutputFolder::create(&root.path().join("out"), Existing::Refuse).unwrap();
        fs::write(output.path().join("data"), "x").unwrap();
        drop(output);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn occupied_folders_are_refused_or_replaced() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        fs::create_dir(&target).unwrap();
        OutputFolder::create(&target, Existing::Refuse).unwrap().commit(manifest()).unwrap();

        let error = OutputFolder::create(&target, Existing::Refuse).unwrap_err();
        assert!(error.to_string().contains("--overwrite"), "{error}");
        assert_eq!(names(root.path()), ["out"]);

        let output = OutputFolder::create(&target, Existing::Replace).unwrap();
        fs::write(output.path().join("new"), "x").unwrap();
        output.commit(manifest()).unwrap();
        assert_eq!(names(&target), ["new", "run.json"]);
        assert_eq!(names(root.path()), ["out"]);

        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = OutputFolder::create(&file, Existing::Replace).unwrap_err();
        assert!(matches!(error, KitError::NotAFolder { .. }), "{error}");
        let error = OutputFolder::create(Path::new("/"), Existing::Replace).unwrap_err();
        assert!(matches!(error, KitError::Unnamed { .. }), "{error}");
    }

    #[test]
    fn filled_in_the_meantime() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let first = OutputFolder::create(&target, Existing::Refuse).unwrap();
        let second = OutputFolder::create(&target, Existing::Refuse).unwrap();
        assert_ne!(first.path(), second.path());
        first.commit(manifest()).unwrap();
        let error = second.commit(manifest()).unwrap_err();
        assert!(matches!(error, KitError::Occupied { .. }), "{error}");
        assert_eq!(names(root.path()), ["out"]);
    }
}
