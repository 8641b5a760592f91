//! What to do with bad records.

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

/// Counts the bad records of a run and applies the policy to each.
#[derive(Clone, Debug)]
pub struct BadRecordCounter {
    policy: BadRecords,
    bad: u64,
}

impl BadRecordCounter {
    /// None met yet.
    pub fn new(policy: BadRecords) -> Self {
        Self { policy, bad: 0 }
    }

    /// How many were left out.
    pub fn bad(&self) -> u64 {
        self.bad
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
        let (BadRecords::Skip { max }, DataError::Record { source, .. }) = (self.policy, &error) else {
            return Err(error);
        };
        self.bad += 1;
        if self.bad > max {
            return Err(DataError::TooManyBad { bad: self.bad, max, source: Box::new(error) });
        }
        let cause = std::error::Error::source(source).map(|cause| format!(": {cause}")).unwrap_or_default();
        tracing::warn!("left out: {error}: {source}{cause}");
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
