//! [`Ledgers`]: the ledgers of a stage in a folder, one per worker, read as one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chat_client::Ledger;
use explain::{FeatureKey, Outcome, Record};
use stage_kit::World;

use crate::ExplainKitError;

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
#[derive(Debug, Default)]
pub struct Ledgers(Vec<Ledger<FeatureKey, Record>>);

impl Ledgers {
    /// Reads files, which other processes may be writing.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(files: &[PathBuf]) -> Result<Self, ExplainKitError> {
        let read = |path: &PathBuf| Ok(Ledger::read(path, Record::key)?);
        files.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The record of a feature, if it has one that counts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(
        &self,
        key: &FeatureKey,
        counts: &dyn Fn(&Record) -> bool,
    ) -> Result<Option<Record>, ExplainKitError> {
        let mut best: Option<Record> = None;
        for ledger in &self.0 {
            best = best_of(best, ledger.get(key)?.filter(counts));
        }
        Ok(best)
    }

    /// All records that count, ascending by feature, each read as it comes.
    ///
    /// # Errors
    /// A record is an error where it cannot be read.
    pub fn records(
        &self,
        counts: &dyn Fn(&Record) -> bool,
    ) -> impl Iterator<Item = Result<Record, ExplainKitError>> {
        let keys: BTreeSet<&FeatureKey> = self.0.iter().flat_map(Ledger::keys).collect();
        keys.into_iter().filter_map(move |key| self.get(key, counts).transpose())
    }
}

/// The record that says more, of equal ones the later.
pub fn best_of(one: Option<Record>, other: Option<Record>) -> Option<Record> {
    let worth = |record: &Record| match record.outcome {
        Outcome::Answered(_) | Outcome::Unable => 3,
        Outcome::Unparsed => 2,
        Outcome::Failed(_) => 1,
        Outcome::Skipped(_) => 0,
    };
    one.into_iter().chain(other).max_by_key(worth)
}
