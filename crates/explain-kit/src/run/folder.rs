//! [`Folder`]: the output of a stage. It grows in place, since its ledger is what a run goes on from, and is whole at every moment.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chat_client::{Ledger, LedgerError, LedgerFile};
use explain::{FeatureKey, Record};
use sae_types::HookPoint;
use stage_kit::{RunManifest, World};

use crate::error::Trying;
use crate::run::earlier::clear;
use crate::run::texts::Texts;
use crate::{
    EXPLANATIONS, Entry, ExplainKitError, Ledgers, RunArgs, Selection, best_of, compare, file_name, files,
};

/// A stage by its files.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Of the ledger: `explanations`.
    pub name: &'static str,
    /// Of the files written from it, one per hook point, behind the hook point's name; `None` where it is one file, `NAME.json`.
    pub suffix: Option<&'static str>,
    /// What else is written from the ledger, by name: `iou.html`.
    pub extra: &'static [&'static str],
    /// Whether pictures are kept, in a folder per hook point within [`IMAGES`].
    pub keeps_images: bool,
    /// The flag that names the folder: `--explanation-dir`.
    pub flag: &'static str,
}

/// Where the pictures that were shown lie, if they are kept.
pub const IMAGES: &str = "images";

/// Records ascending by feature, one each, of those that count.
pub type Records<'a, R = Record> = &'a mut dyn Iterator<Item = Result<R, ExplainKitError>>;

impl Stage {
    /// What is written from the ledger of records of these hook points.
    pub(crate) fn written<'h>(
        self,
        folder: &Path,
        hooks: impl Iterator<Item = &'h HookPoint>,
    ) -> Vec<PathBuf> {
        let extra = self.extra.iter().map(|name| folder.join(name));
        match self.suffix {
            Some(_) => hooks.map(|hook| self.written_of(folder, hook)).chain(extra).collect(),
            None => std::iter::once(folder.join(format!("{}.json", self.name))).chain(extra).collect(),
        }
    }

    /// The file of a hook point.
    pub fn written_of(self, folder: &Path, hook: &HookPoint) -> PathBuf {
        folder.join(format!("{}{}.json", hook.file_stem(), self.suffix.unwrap_or_default()))
    }
}

/// The output of a stage: its ledgers, one per worker, and what is written from them.
#[derive(Debug)]
pub struct Folder<R = Record> {
    path: PathBuf,
    stage: Stage,
    world: World,
    ledger: Mutex<Ledger<FeatureKey, R>>,
    /// The other workers', as they were when this one started.
    others: Ledgers<R>,
    retry_failed: bool,
    texts: Texts,
}

impl<R: Entry> Folder<R> {
    /// Opens the folder for a run with `manifest` about `texts`, whose settings must be those of the run that began it.
    ///
    /// # Errors
    /// When it is another's, holds what these flags do not go on with, or cannot be read or written.
    pub fn open(
        path: &Path,
        stage: Stage,
        args: &RunArgs,
        world: World,
        selection: &Selection,
        texts: Texts,
        manifest: &mut RunManifest,
    ) -> Result<Self, ExplainKitError> {
        std::fs::create_dir_all(path).trying(|| format!("cannot make the folder {}", path.display()))?;
        let run_json = run_file(path, stage);
        let own = path.join(file_name(stage.name, world));
        let mut file = None;
        if args.overwrite {
            if world.size > 1 {
                let problem =
                    "several workers cannot agree on --overwrite: remove the folder, and start them without";
                return Err(ExplainKitError::usage(problem));
            }
            file = clear::<R>(path, stage, &own)?;
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
            return Err(ExplainKitError::usage(problem));
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
            ledger: Mutex::new(file.read(R::key)?),
            others: Ledgers::read(&others)?,
            retry_failed: args.retry_failed,
            texts,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<FeatureKey, R>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is recorded of a feature that needs nothing more.
    ///
    /// # Errors
    /// When a ledger cannot be read.
    pub fn done(&self, key: &FeatureKey) -> Result<Option<R>, ExplainKitError> {
        let counts = |record: &R| self.texts.counts(record);
        let own = self.ledger().get(key)?.filter(counts);
        let record = best_of(self.others.get(key, &counts)?, own);
        Ok(record.filter(|record| !(self.retry_failed && record.is_failed())))
    }

    /// Whether a feature needs nothing more.
    ///
    /// # Errors
    /// When a ledger cannot be read.
    pub fn is_done(&self, key: &FeatureKey) -> Result<bool, ExplainKitError> {
        Ok(self.done(key)?.is_some())
    }

    /// Records what became of a feature, and the text it was asked about.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn add(&self, record: &R) -> Result<(), LedgerError> {
        let key = record.key();
        let mut record = record.clone();
        record.set_about(self.texts.about(&key));
        self.ledger().add(key, &record)
    }

    /// Lets `make` write what is made of the records of every worker as they are now, and writes the manifest.
    ///
    /// # Errors
    /// With what `make` fails with, or when the manifest cannot be written.
    pub fn write<T, E: From<ExplainKitError>>(
        &self,
        manifest: &mut RunManifest,
        make: impl FnOnce(&Self, Records<'_, R>) -> Result<T, E>,
    ) -> Result<T, E> {
        let run_json = run_file(&self.path, self.stage);
        // Of workers that end together the last to write must have read what the others wrote.
        let lock = File::open(&run_json).trying(|| format!("cannot open {}", run_json.display()))?;
        lock.lock().trying(|| format!("cannot lock {}", run_json.display()))?;
        let ledgers = Ledgers::<R>::read(&files(&self.path, self.stage.name)?)?;
        let made = make(self, &mut ledgers.records(&|record| self.texts.counts(record)))?;
        drop(lock);
        let file = match self.world {
            World { size: 1, .. } => run_json,
            World { rank, .. } => run_json.with_extension(format!("rank-{rank}.json")),
        };
        manifest.write(&file).map_err(ExplainKitError::from)?;
        Ok(made)
    }
}

/// Refuses a folder with files of the names to be written that no run of this stage wrote, such as published ones.
fn refuse_foreign(folder: &Path, stage: Stage, selection: &Selection) -> Result<(), ExplainKitError> {
    // They are looked for first: a worker that is just beginning writes its manifest before anything else.
    let written = stage.written(folder, selection.hooks()).into_iter().find(|path| path.exists());
    let Some(written) = written else { return Ok(()) };
    if run_file(folder, stage).exists() || !files(folder, stage.name)?.is_empty() {
        return Ok(());
    }
    Err(ExplainKitError::usage(format!(
        "{} is there and was not written by this: name another folder with {}, or replace it with --overwrite",
        written.display(),
        stage.flag
    )))
}

/// `run.json` of explanations, `refined.run.json` and so on of what follows them.
pub(crate) fn run_file(folder: &Path, stage: Stage) -> PathBuf {
    let name =
        if stage.name == EXPLANATIONS { "run.json".to_owned() } else { format!("{}.run.json", stage.name) };
    folder.join(name)
}
