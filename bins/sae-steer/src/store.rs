//! [`Store`]: an output folder that grows in place. Its ledger is what a run goes on from, one file per worker.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chat_client::{Ledger, LedgerFile};
use explain_kit::{compare, file_name, files};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stage_kit::{RunManifest, UsageError, World};

/// What fills a folder, by its files.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Of the ledgers.
    pub(crate) name: &'static str,
    /// The manifest.
    run: &'static str,
    /// What is written from the ledgers.
    pub(crate) summary: &'static str,
    /// What is made of this one's results, and goes with them.
    next: Option<&'static Stage>,
}

pub(crate) const SWEEP: Stage =
    Stage { name: "sweep", run: "run.json", summary: "effects.json", next: Some(&JUDGE) };
pub(crate) const JUDGE: Stage =
    Stage { name: "judge", run: "judge.run.json", summary: "judge.json", next: None };

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

impl Stage {
    fn run_file(&self, folder: &Path) -> PathBuf {
        folder.join(self.run)
    }

    /// What decided the results in a folder, by flag.
    pub(crate) fn settings(&self, folder: &Path) -> Result<BTreeMap<String, String>> {
        #[derive(Deserialize)]
        struct Run {
            #[serde(default)]
            settings: BTreeMap<String, String>,
        }
        let path = self.run_file(folder);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let run: Run = serde_json::from_str(&text)
            .with_context(|| format!("{} is no manifest of a {}", path.display(), self.name))?;
        Ok(run.settings)
    }

    /// The manifests of all workers, and the summary, as far as they are there.
    fn written(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let of_rank = format!("{}.rank-", self.run.trim_end_matches(".json"));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name == self.run || name == self.summary || name.starts_with(&of_rank) {
                found.push(folder.join(name));
            }
        }
        Ok(found)
    }

    /// Removes all of a folder that is of the stage, or was made of its results.
    fn remove(&'static self, folder: &Path) -> Result<()> {
        let stages = || std::iter::successors(Some(self), |stage| stage.next);
        let mut ledgers = Vec::new();
        for stage in stages() {
            ledgers.extend(files(folder, stage.name)?);
        }
        // Locked first: another process may be writing.
        let held: Vec<LedgerFile> =
            ledgers.iter().map(|file| LedgerFile::lock(file)).collect::<Result<_, _>>()?;
        for stage in stages() {
            ledgers.extend(stage.written(folder)?);
        }
        for file in ledgers {
            std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        drop(held);
        Ok(())
    }
}

/// Records of a stage, each with a key.
#[derive(Debug)]
pub(crate) struct Store<K, T> {
    path: PathBuf,
    stage: &'static Stage,
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
        stage: &'static Stage,
        earlier: Earlier,
        world: World,
        key: fn(&T) -> K,
        manifest: &mut RunManifest,
    ) -> Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let (run_json, name) = (stage.run_file(path), stage.name);
        let own = path.join(file_name(name, world));
        if earlier == Earlier::Replace {
            if world.size > 1 {
                let problem =
                    "several workers cannot agree on --overwrite: remove the folder, and start them without";
                return Err(UsageError::new(problem).into());
            }
            stage.remove(path)?;
        }
        let found = files(path, name)?;
        let begun = if world.size == 1 { !found.is_empty() } else { own.exists() };
        if begun && earlier != Earlier::GoOn {
            let problem = format!(
                "{} holds the {name} of an earlier run: go on with --resume, or start anew with --overwrite",
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

    /// The record of a key that is worth most, this worker's own or another's.
    pub(crate) fn get(&self, key: &K, worth: &dyn Fn(&T) -> u8) -> Result<Option<T>> {
        best(self.others.iter().chain([&self.ledger]), key, worth)
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
        let run_json = self.stage.run_file(&self.path);
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
    pub(crate) fn read(folder: &Path, stage: &Stage, key: fn(&T) -> K) -> Result<Self> {
        let read = |file: &PathBuf| Ok(Ledger::read(file, key)?);
        Ok(Self(files(folder, stage.name)?.iter().map(read).collect::<Result<_>>()?))
    }

    /// All keys, ascending.
    pub(crate) fn keys(&self) -> BTreeSet<&K> {
        self.0.iter().flat_map(Ledger::keys).collect()
    }

    /// The record of a key that is worth most; of several the last.
    pub(crate) fn get(&self, key: &K, worth: &dyn Fn(&T) -> u8) -> Result<Option<T>> {
        best(self.0.iter(), key, worth)
    }

    /// All records, ascending by key, one each, read as they come: of several with one key that which is worth most.
    pub(crate) fn records(&self, worth: &dyn Fn(&T) -> u8) -> impl Iterator<Item = Result<T>> {
        self.keys().into_iter().filter_map(move |key| self.get(key, worth).transpose())
    }
}

/// The worth of records of which one is as good as another.
pub(crate) fn any<T>(_: &T) -> u8 {
    0
}

fn best<'l, K: Ord + 'l, T: Serialize + DeserializeOwned + 'l>(
    ledgers: impl Iterator<Item = &'l Ledger<K, T>>,
    key: &K,
    worth: &dyn Fn(&T) -> u8,
) -> Result<Option<T>> {
    let mut best: Option<(u8, T)> = None;
    for ledger in ledgers {
        let Some(record) = ledger.get(key)? else { continue };
        let worth = worth(&record);
        if best.as_ref().is_none_or(|(most, _)| worth >= *most) {
            best = Some((worth, record));
        }
    }
    Ok(best.map(|(_, record)| record))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Line = (u32, u8);

    fn lines(folder: &Path, file: &str, lines: &[Line]) {
        let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        std::fs::write(folder.join(file), text).unwrap();
    }

    #[test]
    fn the_record_that_is_worth_most_counts_whichever_ledger_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        lines(folder, "judge.jsonl", &[(1, 3), (2, 7), (4, 1)]);
        lines(folder, "judge.rank-0.jsonl", &[(1, 9), (2, 2)]);
        lines(folder, "judge.rank-1.jsonl", &[(1, 5), (3, 4)]);
        let key = |line: &Line| line.0;
        let merged = Merged::read(folder, &JUDGE, key).unwrap();
        let best: Vec<Line> = merged.records(&|line| line.1).collect::<Result<_>>().unwrap();
        assert_eq!(best, [(1, 9), (2, 7), (3, 4), (4, 1)]);
        let least = merged.get(&1, &|line| 9 - line.1).unwrap();
        assert_eq!(least, Some((1, 3)));
        let mut manifest = RunManifest::start("test", "0");
        let world = World { rank: 0, size: 1 };
        let store = Store::open(folder, &JUDGE, Earlier::GoOn, world, key, &mut manifest).unwrap();
        assert_eq!(store.get(&1, &|line| line.1).unwrap(), Some((1, 9)));
        assert_eq!(store.get(&2, &|line| line.1).unwrap(), Some((2, 7)));
        assert_eq!(store.get(&9, &|line| line.1).unwrap(), None);
    }

    #[test]
    fn a_sweep_that_is_replaced_takes_what_was_made_of_it_along() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for file in ["sweep.jsonl", "sweep.rank-1.jsonl", "judge.jsonl", "judge.rank-0.jsonl"] {
            lines(folder, file, &[]);
        }
        for file in
            ["run.json", "run.rank-1.json", "effects.json", "judge.json", "judge.run.json", "notes.json"]
        {
            std::fs::write(folder.join(file), "{}").unwrap();
        }
        let names = || {
            let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
            names.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>()
        };
        let open = |stage| {
            let mut manifest = RunManifest::start("test", "0");
            let world = World { rank: 0, size: 1 };
            drop(
                Store::open(folder, stage, Earlier::Replace, world, |line: &Line| line.0, &mut manifest)
                    .unwrap(),
            );
        };
        open(&JUDGE);
        let of_sweep = ["effects.json", "run.json", "run.rank-1.json", "sweep.jsonl", "sweep.rank-1.jsonl"];
        let of_judge = ["judge.jsonl", "judge.run.json"];
        let all = |lists: &[&[&str]]| lists.concat().into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(names(), all(&[&of_sweep, &of_judge, &["notes.json"]]));
        open(&SWEEP);
        assert_eq!(names(), all(&[&["run.json", "sweep.jsonl", "notes.json"]]));
    }
}
