//! What to do with bad records.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::DataError;

/// What a bad record does to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecords {
    /// It ends it.
    Stop,
    /// It is left out, logged and counted, up to `max` of them.
    Skip {
        /// One more than this many end the run.
        max: u64,
    },
}

impl BadRecords {
    /// What a flag such as `--max-bad` asks for: stop at the first, or leave out up to `max`.
    pub fn up_to(max: u64) -> Self {
        if max == 0 { Self::Stop } else { Self::Skip { max } }
    }
}

/// A record that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRecord {
    /// The file.
    pub path: PathBuf,
    /// The record within the file, from 0.
    pub row: usize,
    /// What is wrong with it, causes included.
    pub reason: String,
}

/// Counts and lists the bad records of a run and applies the policy to each.
#[derive(Clone, Debug)]
pub struct BadRecordCounter {
    policy: BadRecords,
    left_out: Vec<BadRecord>,
}

impl BadRecordCounter {
    /// None met yet.
    pub fn new(policy: BadRecords) -> Self {
        Self::after(policy, Vec::new())
    }

    /// Those `left_out` before were met already, in a run that was stopped and goes on.
    pub fn after(policy: BadRecords, left_out: Vec<BadRecord>) -> Self {
        Self { policy, left_out }
    }

    /// How many were left out.
    pub fn bad(&self) -> u64 {
        self.left_out.len() as u64
    }

    /// Those left out, in the order they were met.
    pub fn left_out(&self) -> &[BadRecord] {
        &self.left_out
    }

    /// Writes them as JSON lines, `{"file": ..., "row": ..., "reason": ...}`. Files beside data that are called
    /// `bad_records.jsonl` are never read as records.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_list(&self, path: &Path) -> Result<(), DataError> {
        let mut text = String::new();
        for BadRecord { path, row, reason } in &self.left_out {
            let line = json!({ "file": path.to_string_lossy(), "row": row, "reason": reason });
            let _ = writeln!(text, "{line}");
        }
        std::fs::write(path, text).map_err(DataError::io("write", path))
    }

    /// Passes a good record on; leaves a bad one out (`None`) or stops, as the policy says.
    ///
    /// Only [`DataError::Record`] is about one record; every other error stops whatever the policy.
    ///
    /// # Errors
    /// When the run must stop.
    pub fn admit<T>(&mut self, record: Result<T, DataError>) -> Result<Option<T>, DataError> {
        let error = match record {
            Ok(record) => return Ok(Some(record)),
            Err(error) => error,
        };
        let (BadRecords::Skip { max }, DataError::Record { path, row, source }) = (self.policy, &error)
        else {
            return Err(error);
        };
        if self.bad() == max {
            return Err(DataError::TooManyBad { bad: max + 1, max, source: Box::new(error) });
        }
        let mut reason = source.to_string();
        let mut cause = std::error::Error::source(source);
        while let Some(below) = cause {
            let _ = write!(reason, ": {below}");
            cause = below.source();
        }
        tracing::warn!("left out: {error}: {reason}");
        self.left_out.push(BadRecord { path: path.clone(), row: *row, reason });
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordError;

    fn bad() -> Result<u8, DataError> {
        Err(DataError::Record { path: "x.parquet".into(), row: 3, source: RecordError::MaskBytes })
    }

    #[test]
    fn skips_up_to_the_limit() {
        let mut counter = BadRecordCounter::new(BadRecords::Skip { max: 2 });
        assert_eq!(counter.admit(Ok(5)).unwrap(), Some(5));
        assert_eq!(counter.admit(bad()).unwrap(), None);
        assert_eq!(counter.admit(bad()).unwrap(), None);
        assert_eq!(counter.bad(), 2);
        let error = counter.admit(bad()).unwrap_err();
        assert!(error.to_string().starts_with("3 bad records, at most 2"), "{error}");
        assert_eq!(counter.bad(), 2);
    }

    #[test]
    fn lists_what_was_left_out() {
        let mut counter = BadRecordCounter::new(BadRecords::up_to(5));
        counter.admit(bad()).unwrap();
        let source = RecordError::Unusable(Box::new(std::io::Error::other("not a \"PNG\"")));
        let unusable: Result<u8, _> = Err(DataError::Record { path: "y.json".into(), row: 7, source });
        counter.admit(unusable).unwrap();
        let expected = BadRecord { path: "x.parquet".into(), row: 3, reason: "a mask has no bytes".into() };
        assert_eq!(counter.left_out()[0], expected);
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bad_records.jsonl");
        counter.write_list(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], json!({"file": "y.json", "row": 7, "reason": "unusable: not a \"PNG\""}));
    }

    #[test]
    fn stops_at_once_or_for_what_is_no_record() {
        let error = BadRecordCounter::new(BadRecords::Stop).admit(bad()).unwrap_err();
        assert_eq!(error.to_string(), "x.parquet: record 3");
        let mut counter = BadRecordCounter::new(BadRecords::Skip { max: 9 });
        let gone = Err::<u8, _>(DataError::NotFound { path: "x".into() });
        assert!(matches!(counter.admit(gone), Err(DataError::NotFound { .. })));
    }
}
