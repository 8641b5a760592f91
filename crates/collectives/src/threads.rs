//! [`Threads`]: ranks as threads of one process, for tests of what stands on [`Collective`].

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::call::{self, Call, check_root};
use crate::meter::Meter;
use crate::reduce::combine;
use crate::{Collective, CollectiveError, NumbersMut, Reduction, Traffic};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A rank that lives in a thread of its own.
///
/// Reductions go in the order of ranks. A rank that is dropped, also by a panic, is lost to the others.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    size: usize,
    timeout: Duration,
    shared: Arc<Shared>,
    failure: Mutex<Option<CollectiveError>>,
    meter: Meter,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Exchanges that all ranks have come to.
    finished: u64,
    /// What the ranks have given to the exchange in progress.
    given: Vec<Option<Given>>,
    /// The last finished exchange. All have it before the next can finish.
    all: Arc<Vec<Given>>,
    /// Ranks that were dropped.
    gone: Vec<bool>,
    /// The ranks whose absence was noticed first.
    lost: Vec<usize>,
    /// The ranks that a call had waited for in vain.
    timed_out: Option<Vec<usize>>,
}

#[derive(Debug, Clone)]
struct Given {
    call: Call,
    bytes: Vec<u8>,
}

impl Threads {
    /// `size` ranks, in their order, which wait for each other for up to 30 s.
    ///
    /// # Panics
    ///
    /// If `size` is 0.
    pub fn team(size: usize) -> Vec<Self> {
        Self::team_within(size, TIMEOUT)
    }

    /// `size` ranks, in their order, which wait for each other for up to `timeout`.
    ///
    /// # Panics
    ///
    /// If `size` is 0.
    pub fn team_within(size: usize, timeout: Duration) -> Vec<Self> {
        assert!(size > 0, "a team has 1 rank or more, this one 0");
        let state = State {
            finished: 0,
            given: vec![None; size],
            all: Arc::default(),
            gone: vec![false; size],
            lost: Vec::new(),
            timed_out: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let rank = |rank| Self {
            rank,
            size,
            timeout,
            shared: Arc::clone(&shared),
            failure: Mutex::default(),
            meter: Meter::default(),
        };
        (0..size).map(rank).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every rank gave to this call, in the order of ranks.
    fn exchange(&self, call: Call, bytes: &[u8]) -> Result<Arc<Vec<Given>>, CollectiveError> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &*failure {
            return Err(error.clone());
        }
        let result = self.meet(call, bytes);
        if let Err(error) = &result {
            *failure = Some(error.clone());
        }
        result
    }

    fn meet(&self, call: Call, bytes: &[u8]) -> Result<Arc<Vec<Given>>, CollectiveError> {
        let start = Instant::now();
        let mut state = self.state();
        let before = state.finished;
        let number = before + 1;
        if let Some(error) = self.broken(&mut state, call, number) {
            return Err(error);
        }
        state.given[self.rank] = Some(Given { call, bytes: bytes.to_vec() });
        if state.given.iter().all(Option::is_some) {
            let all = state.given.iter_mut().filter_map(Option::take).collect();
            state.all = Arc::new(all);
            state.finished += 1;
            self.shared.changed.notify_all();
        }
        while state.finished == before {
            if let Some(error) = self.broken(&mut state, call, number) {
                return Err(error);
            }
            let Some(left) = self.timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
                let missing = (0..self.size).filter(|rank| state.given[*rank].is_none()).collect();
                state.timed_out = Some(missing);
                self.shared.changed.notify_all();
                continue;
            };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let all = Arc::clone(&state.all);
        drop(state);
        let calls: Vec<Option<Call>> = all.iter().map(|given| Some(given.call)).collect();
        call::check(&calls, self.rank, number)?;
        Ok(all)
    }

    /// Why the exchange in progress cannot finish, if so.
    fn broken(&self, state: &mut State, call: Call, number: u64) -> Option<CollectiveError> {
        let (rank, size) = (self.rank, self.size);
        let call = call.name().to_owned();
        if let Some(missing) = &state.timed_out {
            let missing = missing.clone();
            if !missing.contains(&rank) {
                let (waited, answered) = (self.timeout, size - 1 - missing.len());
                return Some(CollectiveError::TimedOut {
                    call,
                    number,
                    waited,
                    missing,
                    answered,
                    rank,
                    size,
                });
            }
            let lost = (0..size).filter(|other| !missing.contains(other)).collect();
            let reason = "they waited for this rank in vain".into();
            return Some(CollectiveError::Lost { call, number, lost, reason, rank, size });
        }
        // Who leaves because others have left is not to blame.
        if state.lost.is_empty() {
            state.lost = (0..size).filter(|rank| state.gone[*rank] && state.given[*rank].is_none()).collect();
        }
        let lost = state.lost.clone();
        let reason = "the thread ended".into();
        (!lost.is_empty()).then_some(CollectiveError::Lost { call, number, lost, reason, rank, size })
    }

    fn gather_from(&self, all: &[Given], into: &mut Vec<u8>) -> (Vec<usize>, usize) {
        into.clear();
        for given in all {
            into.extend_from_slice(&given.bytes);
        }
        (all.iter().map(|given| given.bytes.len()).collect(), into.len() - all[self.rank].bytes.len())
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, mut numbers: NumbersMut<'_>, reduction: Reduction) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let all = self.exchange(Call::all_reduce(&numbers, reduction), numbers.bytes())?;
        numbers.replace(&all[0].bytes);
        for given in &all[1..] {
            combine(&mut numbers, &given.bytes, reduction);
        }
        let bytes = if self.size == 1 { 0 } else { numbers.bytes().len() };
        self.meter.count(start, bytes, bytes);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        let start = Instant::now();
        let given = self.exchange(Call::AllGather { len: own.len() }, own)?;
        let (lens, received) = self.gather_from(&given, all);
        self.meter.count(start, if self.size == 1 { 0 } else { own.len() }, received);
        Ok(lens)
    }

    fn gather(&self, root: usize, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        check_root(root, self.size);
        let start = Instant::now();
        let given = self.exchange(Call::Gather { root, len: own.len() }, own)?;
        if root != self.rank {
            all.clear();
            self.meter.count(start, own.len(), 0);
            return Ok(Vec::new());
        }
        let (lens, received) = self.gather_from(&given, all);
        self.meter.count(start, 0, received);
        Ok(lens)
    }

    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        check_root(root, self.size);
        let start = Instant::now();
        let own: &[u8] = if root == self.rank { bytes } else { &[] };
        let given = self.exchange(Call::Broadcast { root, len: own.len() }, own)?;
        if root == self.rank {
            self.meter.count(start, if self.size == 1 { 0 } else { bytes.len() }, 0);
        } else {
            bytes.clone_from(&given[root].bytes);
            self.meter.count(start, 0, bytes.len());
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let start = Instant::now();
        self.exchange(Call::Barrier, &[])?;
        self.meter.count(start, 0, 0);
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    fn abort(&self, _exit_code: i32) {
        self.state().gone[self.rank] = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.abort(0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Runs `work` on every rank of a team and gives the results in the order of ranks.
    fn on_all<T: Send>(size: usize, timeout: Duration, work: impl Fn(Threads) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let start = |rank| scope.spawn(|| work(rank));
            let running: Vec<_> = Threads::team_within(size, timeout).into_iter().map(start).collect();
            running.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn results_are_those_of_arithmetic_by_hand() {
        on_all(3, TIMEOUT, |ranks| {
            let rank = ranks.rank();
            let mut sums = [rank as f32, 10.0];
            ranks.all_reduce(NumbersMut::F32(&mut sums), Reduction::Sum).unwrap();
            assert_eq!(sums, [3.0, 30.0]);
            let mut largest = [rank as i64, -(rank as i64)];
            ranks.all_reduce(NumbersMut::I64(&mut largest), Reduction::Max).unwrap();
            assert_eq!(largest, [2, 0]);
            let mut smallest = [5 - rank as u8];
            ranks.all_reduce(NumbersMut::U8(&mut smallest), Reduction::Min).unwrap();
            assert_eq!(smallest, [3]);
            ranks.all_reduce(NumbersMut::F64(&mut []), Reduction::Sum).unwrap();

            let mut all = vec![7; 9];
            let own = vec![b'a' + rank as u8; rank];
            assert_eq!(ranks.all_gather(&own, &mut all).unwrap(), [0, 1, 2]);
            assert_eq!(all, b"bcc");
            let lens = ranks.gather(2, &own, &mut all).unwrap();
            if rank == 2 {
                assert_eq!((lens.as_slice(), all.as_slice()), ([0, 1, 2].as_slice(), b"bcc".as_slice()));
            } else {
                assert!(lens.is_empty() && all.is_empty());
            }
            let mut bytes = vec![rank as u8; rank + 1];
            ranks.broadcast(1, &mut bytes).unwrap();
            assert_eq!(bytes, [1, 1]);
            ranks.barrier().unwrap();

            let traffic = ranks.traffic();
            assert_eq!(traffic.calls, 8);
            let reduced = 8 + 16 + 1;
            let sent = [0, 1 + 1 + 2, 2][rank];
            let received = [3 + 2, 2, 1 + 1 + 2][rank];
            assert_eq!(traffic.sent_bytes, reduced + sent);
            assert_eq!(traffic.received_bytes, reduced + received);
        });
    }

    #[test]
    fn sums_go_in_the_order_of_ranks_on_every_rank() {
        let values = [1e8_f32, 1.0, -1e8];
        let sums = on_all(3, TIMEOUT, |ranks| {
            let mut number = [values[ranks.rank()]];
            ranks.all_reduce(NumbersMut::F32(&mut number), Reduction::Sum).unwrap();
            number[0]
        });
        assert_eq!(sums, [(1e8 + 1.0) - 1e8; 3]);
    }

    #[test]
    fn a_rank_that_panics_is_lost_to_the_others() {
        let team = Threads::team(3);
        let results: Vec<_> = thread::scope(|scope| {
            let run = |rank: Threads| {
                scope.spawn(move || {
                    assert!(rank.rank() != 1, "on purpose");
                    let error = rank.barrier().unwrap_err();
                    assert_eq!(rank.barrier().unwrap_err(), error, "later calls give the same");
                    error
                })
            };
            let running: Vec<_> = team.into_iter().map(run).collect();
            running.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        for rank in [0, 2] {
            let error = results[rank].as_ref().unwrap();
            assert!(matches!(error, CollectiveError::Lost { lost, .. } if lost == &[1]), "{error}");
        }
    }

    #[test]
    fn a_rank_that_sleeps_is_named() {
        let errors = on_all(3, Duration::from_millis(200), |ranks| {
            if ranks.rank() == 2 {
                thread::sleep(Duration::from_millis(600));
            }
            ranks.barrier().unwrap_err()
        });
        for error in &errors[..2] {
            assert!(matches!(error, CollectiveError::TimedOut { missing, .. } if missing == &[2]), "{error}");
        }
        assert!(matches!(&errors[2], CollectiveError::Lost { lost, .. } if lost == &[0, 1]), "{}", errors[2]);
    }

    #[test]
    fn ranks_in_different_calls_are_told() {
        let errors = on_all(2, TIMEOUT, |ranks| {
            if ranks.rank() == 0 {
                ranks.barrier().unwrap_err()
            } else {
                ranks.all_reduce(NumbersMut::F32(&mut [1.0]), Reduction::Sum).unwrap_err()
            }
        });
        assert!(errors[0].to_string().contains("rank 1 is in all_reduce (Sum of 1 f32)"), "{}", errors[0]);
        assert!(errors[1].to_string().contains("rank 0 is in barrier"), "{}", errors[1]);
    }
}
