//! [`Single`]: one rank alone, for which every call is the identity.

use std::time::Instant;

use crate::call::{Call, check_root};
use crate::meter::Meter;
use crate::{Collective, CollectiveError, NumbersMut, Reduction, Traffic};

/// One rank alone. No call fails.
#[derive(Debug, Default)]
pub struct Single {
    meter: Meter,
}

impl Single {
    /// Rank 0 of 1.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Collective for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, numbers: NumbersMut<'_>, reduction: Reduction) -> Result<(), CollectiveError> {
        Call::all_reduce(&numbers, reduction);
        self.meter.count(Instant::now(), 0, 0);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        let start = Instant::now();
        all.clear();
        all.extend_from_slice(own);
        self.meter.count(start, 0, 0);
        Ok(vec![own.len()])
    }

    fn gather(&self, root: usize, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        check_root(root, 1);
        self.all_gather(own, all)
    }

    fn broadcast(&self, root: usize, _bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        check_root(root, 1);
        self.meter.count(Instant::now(), 0, 0);
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.meter.count(Instant::now(), 0, 0);
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    fn abort(&self, _exit_code: i32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_the_identity() {
        let ranks = Single::new();
        assert_eq!((ranks.rank(), ranks.size()), (0, 1));
        let mut numbers = [1.5_f64, -2.0];
        ranks.all_reduce(NumbersMut::F64(&mut numbers), Reduction::Sum).unwrap();
        assert_eq!(numbers, [1.5, -2.0]);

        let mut all = vec![9; 30];
        assert_eq!(ranks.all_gather(b"abc", &mut all).unwrap(), [3]);
        assert_eq!(all, b"abc");
        assert_eq!(ranks.gather(0, b"", &mut all).unwrap(), [0]);
        assert!(all.is_empty());
        let mut bytes = b"kept".to_vec();
        ranks.broadcast(0, &mut bytes).unwrap();
        assert_eq!(bytes, b"kept");
        ranks.barrier().unwrap();

        let traffic = ranks.traffic();
        assert_eq!((traffic.calls, traffic.sent_bytes, traffic.received_bytes), (5, 0, 0));
    }

    #[test]
    #[should_panic(expected = "sum of u8")]
    fn bytes_are_not_summed() {
        let _ = Single::new().all_reduce(NumbersMut::U8(&mut [1]), Reduction::Sum);
    }

    #[test]
    #[should_panic(expected = "the root is rank 1, but there are 1 ranks")]
    fn a_root_beyond_the_ranks_is_refused() {
        let _ = Single::new().gather(1, b"", &mut Vec::new());
    }
}
