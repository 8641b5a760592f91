//! [`Store`]: an output folder that grows in place. Its ledger is what a run goes on from, one file per worker.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chat_client::{Ledger, LedgerFile};
use explain_kit::{compare, file_name, files};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stage_kit::{RunManifest, UsageError, World};

/// What to do with what an earlier run left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    Refuse,
    GoOn,
    Replace,
}

impl Earlier {
    /// Of `--resume` and `--overwrite`, which exclude each other.
    pub(crate) fn of(resume: bool, overwrite: bool) -> Self {
        match (resume, overwrite) {
            (true, _) => Self::GoOn,
            (false, true) => Self::Replace,
            (false, false) => Self::Refuse,
        }
    }
}

/// Records of a stage, each with a key.
#[derive(Debug)]
pub(crate) struct Store<K, T> {
    path: PathBuf,
    /// Of the ledger: `sweep`.
    stage: &'static str,
    world: World,
    ledger: Ledger<K, T>,
    /// The other workers', as they were when this one started.
    others: Vec<Ledger<K, T>>,
    key: fn(&T) -> K,
}

impl<K: Ord, T: Serialize + DeserializeOwned> Store<K, T> {
    /// Opens the folder for a run with `manifest`, whose settings must be those of the run that began it.
    pub(crate) fn open(
        path: &Path,
        stage: &'static str,
        earlier: Earlier,
        world: World,
        key: fn(&T) -> K,
        manifest: &mut RunManifest,
    ) -> Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let run_json = run_file(path, stage);
        let own = path.join(file_name(stage, world));
        let found = files(path, stage)?;
        if earlier == Earlier::Replace {
            if world.size > 1 {
                let problem =
                    "several workers cannot agree on --overwrite: remove the folder, and start them without";
                return Err(UsageError::new(problem).into());
            }
            // Locked first: another process may be writing.
            let held: Vec<LedgerFile> =
                found.iter().map(|file| LedgerFile::lock(file)).collect::<Result<_, _>>()?;
            for file in found.iter().chain(run_json.exists().then_some(&run_json)) {
                std::fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
            }
            drop(held);
        }
        let found = files(path, stage)?;
        let begun = if world.size == 1 { !found.is_empty() } else { own.exists() };
        if begun && earlier != Earlier::GoOn {
            let problem = format!(
                "{} holds the {stage} of an earlier run: go on with --resume, or start anew with --overwrite",
                path.display()
            );
            return Err(UsageError::new(problem).into());
        }
        // Of workers that begin together one writes it.
        if run_json.exists() || !manifest.write_new(&run_json)? {
            compare(&run_json, &manifest.settings)?;
        }
        let ledger = Ledger::open(&own, key)?;
        let others = found.iter().filter(|file| **file != own);
        let others = others.map(|file| Ledger::read(file, key)).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), stage, world, ledger, others, key })
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.ledger.contains(key) || self.others.iter().any(|ledger| ledger.contains(key))
    }

    /// The record of a key, this worker's own or another's.
    pub(crate) fn get(&self, key: &K) -> Result<Option<T>> {
        for ledger in std::iter::once(&self.ledger).chain(&self.others) {
            if let Some(record) = ledger.get(key)? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Records that something is done.
    pub(crate) fn add(&mut self, record: &T) -> Result<()> {
        Ok(self.ledger.add((self.key)(record), record)?)
    }

    /// Lets `make` write what is made of the records of every worker as they are now, and writes the manifest.
    pub(crate) fn finish<R>(
        self,
        manifest: &mut RunManifest,
        make: impl FnOnce(&Merged<K, T>) -> Result<R>,
    ) -> Result<R> {
        let run_json = run_file(&self.path, self.stage);
        // Of workers that end together the last to write must have read what the others wrote.
        let lock = File::open(&run_json).with_context(|| format!("cannot open {}", run_json.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", run_json.display()))?;
        let made = make(&Merged::read(&self.path, self.stage, self.key)?)?;
        drop(lock);
        let file = match self.world {
            World { size: 1, .. } => run_json,
            World { rank, .. } => run_json.with_extension(format!("rank-{rank}.json")),
        };
        manifest.write(&file)?;
        Ok(made)
    }
}

/// The ledgers of a stage, read as one.
#[derive(Debug)]
pub(crate) struct Merged<K, T>(Vec<Ledger<K, T>>);

impl<K: Ord, T: Serialize + DeserializeOwned> Merged<K, T> {
    /// Reads them as far as they are written.
    pub(crate) fn read(folder: &Path, stage: &str, key: fn(&T) -> K) -> Result<Self> {
        let read = |file: &PathBuf| Ok(Ledger::read(file, key)?);
        Ok(Self(files(folder, stage)?.iter().map(read).collect::<Result<_>>()?))
    }

    /// All records, ascending by key, one each, read as they come.
    pub(crate) fn records(&self) -> impl Iterator<Item = Result<T>> {
        let keys: std::collections::BTreeSet<&K> = self.0.iter().flat_map(Ledger::keys).collect();
        keys.into_iter().filter_map(|key| {
            let found = self.0.iter().find(|ledger| ledger.contains(key))?;
            found.get(key).map_err(anyhow::Error::from).transpose()
        })
    }
}

/// `run.json` of a sweep, `judge.run.json` of what follows.
fn run_file(folder: &Path, stage: &str) -> PathBuf {
    folder.join(if stage == "sweep" { "run.json".to_owned() } else { format!("{stage}.run.json") })
}
