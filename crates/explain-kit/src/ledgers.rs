//! [`Ledgers`]: the ledgers of a stage in a folder, one per worker, read as one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chat_client::Ledger;
use explain::{FeatureKey, Outcome, Record};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stage_kit::World;

use crate::ExplainKitError;

/// A line of a ledger: what became of one feature.
pub trait Entry: Clone + Serialize + DeserializeOwned {
    /// Whose it is.
    fn key(&self) -> FeatureKey;

    /// The start of the hash of the text it is about, if it is about a text.
    fn about(&self) -> Option<&str>;

    /// Says which text it is about.
    fn set_about(&mut self, about: Option<String>);

    /// Whether another try may give more.
    fn is_failed(&self) -> bool;

    /// Of several of one feature the one that is worth most counts.
    fn worth(&self) -> u8;
}

impl Entry for Record {
    fn key(&self) -> FeatureKey {
        self.key()
    }

    fn about(&self) -> Option<&str> {
        self.about.as_deref()
    }

    fn set_about(&mut self, about: Option<String>) {
        self.about = about;
    }

    fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_) | Outcome::Unparsed)
    }

    fn worth(&self) -> u8 {
        match self.outcome {
            Outcome::Answered(_) | Outcome::Unable => 3,
            Outcome::Unparsed => 2,
            Outcome::Failed(_) => 1,
            Outcome::Skipped(_) => 0,
        }
    }
}

/// The file of a worker: `explanations.jsonl`, or `explanations.rank-0.jsonl` of several.
pub fn file_name(stage: &str, world: World) -> String {
    if world.size == 1 { format!("{stage}.jsonl") } else { format!("{stage}.rank-{}.jsonl", world.rank) }
}

/// The ledgers of a stage that a folder holds, in the order of their names; none where there is no folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(folder: &Path, stage: &str) -> Result<Vec<PathBuf>, ExplainKitError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(ExplainKitError::io("the folder", folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(ExplainKitError::io("the folder", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rest = name.strip_prefix(stage).and_then(|rest| rest.strip_suffix(".jsonl"));
        let is_rank = |rest: &str| {
            rest.strip_prefix(".rank-")
                .is_some_and(|rank| !rank.is_empty() && rank.bytes().all(|b| b.is_ascii_digit()))
        };
        if rest.is_some_and(|rest| rest.is_empty() || is_rank(rest)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Ledgers read as one. Of several records of a feature the one that says most counts.
#[derive(Debug)]
pub struct Ledgers<R = Record>(Vec<Ledger<FeatureKey, R>>);

impl<R: Entry> Ledgers<R> {
    /// Reads files, which other processes may be writing.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(files: &[PathBuf]) -> Result<Self, ExplainKitError> {
        let read = |path: &PathBuf| Ok(Ledger::read(path, R::key)?);
        files.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The record of a feature, if it has one that counts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, key: &FeatureKey, counts: &dyn Fn(&R) -> bool) -> Result<Option<R>, ExplainKitError> {
        let mut best: Option<R> = None;
        for ledger in &self.0 {
            best = best_of(best, ledger.get(key)?.filter(counts));
        }
        Ok(best)
    }

    /// All records that count, ascending by feature, each read as it comes.
    ///
    /// # Errors
    /// A record is an error where it cannot be read.
    pub fn records(&self, counts: &dyn Fn(&R) -> bool) -> impl Iterator<Item = Result<R, ExplainKitError>> {
        let keys: BTreeSet<&FeatureKey> = self.0.iter().flat_map(Ledger::keys).collect();
        keys.into_iter().filter_map(move |key| self.get(key, counts).transpose())
    }
}

/// The record that says more, of equal ones the later.
pub fn best_of<R: Entry>(one: Option<R>, other: Option<R>) -> Option<R> {
    one.into_iter().chain(other).max_by_key(R::worth)
}
