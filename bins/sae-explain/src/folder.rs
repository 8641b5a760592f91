//! [`Folder`]: the output of a stage. It grows in place, since its ledger is what a run goes on from, and is whole at every moment.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use chat_client::{Ledger, LedgerError, LedgerFile};
use explain::parse::UNABLE;
use explain::{FeatureKey, Outcome, Record, write_published};
use sae_types::HookPoint;
use stage_kit::{RunManifest, UsageError, World};

use crate::about::Texts;
use crate::earlier::clear;
use explain_kit::RunArgs;
use explain_kit::Selection;
use explain_kit::compare;
use explain_kit::{Ledgers, best_of, file_name, files};

/// A stage by its files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    /// Of the ledger: `explanations`.
    pub(crate) name: &'static str,
    /// Of the files written from it, one per hook point, behind the hook point's name; `None` where it is one file, `NAME.json`.
    pub(crate) suffix: Option<&'static str>,
}

pub(crate) const EXPLANATIONS: Stage = Stage { name: explain_kit::EXPLANATIONS, suffix: Some("") };

/// Where the pictures that were shown lie, if they are kept.
pub(crate) const IMAGES: &str = "images";

/// Records ascending by feature, one each, of those that count.
pub(crate) type Records<'a> = &'a mut dyn Iterator<Item = Result<Record>>;

impl Stage {
    /// What is written from the ledger of records of these hook points.
    pub(crate) fn written<'h>(
        self,
        folder: &Path,
        hooks: impl Iterator<Item = &'h HookPoint>,
    ) -> Vec<PathBuf> {
        match self.suffix {
            Some(suffix) => hooks.map(|hook| folder.join(published_name(hook, suffix))).collect(),
            None => vec![folder.join(format!("{}.json", self.name))],
        }
    }
}

#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    stage: Stage,
    world: World,
    ledger: Mutex<Ledger<FeatureKey, Record>>,
    /// The other workers', as they were when this one started.
    others: Ledgers,
    retry_failed: bool,
    texts: Texts,
}

impl Folder {
    /// Opens the folder for a run with `manifest` about `texts`, whose settings must be those of the run that began it.
    pub(crate) fn open(
        path: &Path,
        stage: Stage,
        args: &RunArgs,
        world: World,
        selection: &Selection,
        texts: Texts,
        manifest: &mut RunManifest,
    ) -> Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let run_json = run_file(path, stage);
        let own = path.join(file_name(stage.name, world));
        let mut file = None;
        if args.overwrite {
            if world.size > 1 {
                let problem =
                    "several workers cannot agree on --overwrite: remove the folder, and start them without";
                return Err(UsageError::new(problem).into());
            }
            file = clear(path, stage, &own)?;
        } else {
            refuse_foreign(path, stage, selection)?;
        }
        let found = files(path, stage.name)?;
        let begun = if world.size == 1 { !found.is_empty() } else { own.exists() };
        if begun && !args.resume && file.is_none() {
            let problem = format!(
                "{} holds {} of an earlier run: go on with --resume, or start anew with --overwrite",
                path.display(),
                stage.name
            );
            return Err(UsageError::new(problem).into());
        }
        // Of workers that begin together one writes it.
        if run_json.exists() || !manifest.write_new(&run_json)? {
            compare(&run_json, &manifest.settings)?;
        }
        let file = file.map_or_else(|| LedgerFile::lock(&own), Ok)?;
        let others: Vec<PathBuf> = found.into_iter().filter(|file| *file != own).collect();
        Ok(Self {
            path: path.to_owned(),
            stage,
            world,
            ledger: Mutex::new(file.read(Record::key)?),
            others: Ledgers::read(&others)?,
            retry_failed: args.retry_failed,
            texts,
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<FeatureKey, Record>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a feature needs nothing more.
    pub(crate) fn is_done(&self, key: &FeatureKey) -> Result<bool> {
        let counts = |record: &Record| self.texts.counts(record);
        let own = self.ledger().get(key)?.filter(counts);
        let record = best_of(self.others.get(key, &counts)?, own);
        let is_failed = |record: &Record| matches!(record.outcome, Outcome::Failed(_) | Outcome::Unparsed);
        Ok(record.is_some_and(|record| !(self.retry_failed && is_failed(&record))))
    }

    /// Records what became of a feature, and the text it was asked about.
    pub(crate) fn add(&self, record: &Record) -> Result<(), LedgerError> {
        let key = record.key();
        let record = Record { about: self.texts.about(&key), ..record.clone() };
        self.ledger().add(key, &record)
    }

    /// Lets `make` write what is made of the records of every worker as they are now, and writes the manifest.
    pub(crate) fn write<T>(
        &self,
        manifest: &mut RunManifest,
        make: impl FnOnce(&Self, Records<'_>) -> Result<T>,
    ) -> Result<T> {
        let run_json = run_file(&self.path, self.stage);
        // Of workers that end together the last to write must have read what the others wrote.
        let lock = File::open(&run_json).with_context(|| format!("cannot open {}", run_json.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", run_json.display()))?;
        let ledgers = Ledgers::read(&files(&self.path, self.stage.name)?)?;
        let made =
            make(self, &mut ledgers.records(&|record| self.texts.counts(record)).map(|record| Ok(record?)))?;
        drop(lock);
        let file = match self.world {
            World { size: 1, .. } => run_json,
            World { rank, .. } => run_json.with_extension(format!("rank-{rank}.json")),
        };
        manifest.write(&file)?;
        Ok(made)
    }

    /// Writes one file per hook point in multimodal-sae's form.
    pub(crate) fn publish(&self, records: Records<'_>) -> Result<()> {
        let suffix = self.stage.suffix.unwrap_or_default();
        let mut records = records.peekable();
        while let Some(first) = records.peek() {
            let Ok(first) = first else { break };
            let hook = first.hook.clone();
            let of_hook =
                |record: &Result<Record>| record.as_ref().map_or(true, |record| record.hook == hook);
            let texts =
                std::iter::from_fn(|| records.next_if(of_hook)).filter_map(|record| text(record).transpose());
            write_published(&self.path.join(published_name(&hook, suffix)), texts)?;
        }
        records.next().transpose()?;
        Ok(())
    }
}

/// Refuses a folder with files of the names to be written that no run of this stage wrote, such as published ones.
fn refuse_foreign(folder: &Path, stage: Stage, selection: &Selection) -> Result<()> {
    // They are looked for first: a worker that is just beginning writes its manifest before anything else.
    let written = stage.written(folder, selection.hooks()).into_iter().find(|path| path.exists());
    let Some(written) = written else { return Ok(()) };
    if run_file(folder, stage).exists() || !files(folder, stage.name)?.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "{} is there and was not written by this: name another folder with --explanation-dir, or replace it with --overwrite",
        written.display()
    );
    Err(UsageError::new(problem).into())
}

/// What a published file says of a record; nothing where there is no explanation.
fn text(record: Result<Record>) -> Result<Option<(FeatureKey, String)>> {
    let record = record?;
    let key = record.key();
    Ok(match record.outcome {
        Outcome::Answered(text) => Some((key, text)),
        Outcome::Unable => Some((key, UNABLE.to_owned())),
        Outcome::Unparsed | Outcome::Skipped(_) | Outcome::Failed(_) => None,
    })
}

fn published_name(hook: &HookPoint, suffix: &str) -> String {
    format!("{}{suffix}.json", hook.file_stem())
}

/// `run.json` of explanations, `refined.run.json` and so on of what follows them.
pub(crate) fn run_file(folder: &Path, stage: Stage) -> PathBuf {
    let name = if stage.name == EXPLANATIONS.name {
        "run.json".to_owned()
    } else {
        format!("{}.run.json", stage.name)
    };
    folder.join(name)
}
