//! [`Mpi`]: ranks that `mpirun` or `srun` started, on any number of machines.

mod engine;
mod roll_call;
mod staging;

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::engine::{Datatype, Engine};
use self::staging::Staging;
use crate::call::{self, Call, Element, WORDS, check_root};
use crate::meter::Meter;
use crate::{Collective, CollectiveError, NumbersMut, Reduction, Traffic, swap_order};

/// Bytes of a message that move at a time. MPI counts in 32 bits, and this much is held twice.
const ROUND_BYTES: usize = 32 << 20;

/// A rank of a job that an MPI launcher started.
///
/// Before any data moves, ranks tell each other which call they are in; who is in another call, or in none, is found there. All calls
/// are MPI's non-blocking ones, tested until the time-out, which counts anew for every 32 MiB. A rank that times out calls the roll; those
/// that answer are not to blame, and give up, too.
///
/// Calls of several threads go one after the other. MPI is started once per process; dropping the value ends it if no call has failed,
/// and the process can start it no more.
pub struct Mpi {
    rank: usize,
    size: usize,
    round_bytes: usize,
    state: Mutex<State>,
    meter: Meter,
}

struct State {
    engine: Engine,
    staging: Staging,
    number: u64,
    failure: Option<CollectiveError>,
}

impl Mpi {
    /// Starts MPI, whose own start, and end when this is dropped, wait for the other ranks as long as the launcher lets them; all after the start
    /// waits for up to `timeout`. Without a launcher, it is rank 0 of 1.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Unavailable`] if this process has started MPI before, or if its MPI cannot be called by one thread after the other;
    /// [`CollectiveError::TimedOut`] if ranks stop during the start; [`CollectiveError::Engine`].
    pub fn start(timeout: Duration) -> Result<Self, CollectiveError> {
        Self::start_in_rounds(timeout, ROUND_BYTES)
    }

    /// As [`Mpi::start`], moving `round_bytes` bytes at a time (at least 8, at most 1 GiB; all ranks the same), so that tests go through
    /// several rounds with little data.
    ///
    /// # Errors
    ///
    /// As of [`Mpi::start`].
    pub fn start_in_rounds(timeout: Duration, round_bytes: usize) -> Result<Self, CollectiveError> {
        let engine = Engine::start(timeout)?;
        let (rank, size) = (engine.rank(), engine.size());
        let round_bytes = round_bytes.clamp(8, 1 << 30);
        let state = State { engine, staging: Staging::default(), number: 0, failure: None };
        Ok(Self { rank, size, round_bytes, state: Mutex::new(state), meter: Meter::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces `call`, then does its `work` with the number of elements or bytes that each rank has.
    fn call<T>(
        &self,
        call: Call,
        work: impl FnOnce(&mut State, &[usize]) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        let mut state = self.state();
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        state.number += 1;
        let result = state.announce(call).and_then(|lens| work(&mut state, &lens));
        if let Err(error) = &result {
            state.failure = Some(error.clone());
        }
        result
    }

    /// The bytes that others see: none if there are no others.
    fn shared(&self, bytes: usize) -> usize {
        if self.size == 1 { 0 } else { bytes }
    }

    fn gathered(
        &self,
        call: Call,
        root: Option<usize>,
        own: &[u8],
        all: &mut Vec<u8>,
    ) -> Result<Vec<usize>, CollectiveError> {
        let piece = (self.round_bytes / self.size).max(1);
        let receives = root.is_none_or(|root| root == self.rank);
        all.clear();
        self.call(call, |state, lens| {
            let places = starts(lens);
            if receives {
                all.resize(lens.iter().sum(), 0);
            }
            let longest = lens.iter().copied().max().unwrap_or_default();
            for start in (0..longest).step_by(piece) {
                let pieces: Vec<Range<usize>> =
                    lens.iter().map(|len| start.min(*len)..(start + piece).min(*len)).collect();
                state.staging.put_own(&own[pieces[self.rank].clone()]);
                let sizes: Vec<usize> = pieces.iter().map(ExactSizeIterator::len).collect();
                state.engine.gather(&mut state.staging, &sizes, root, call.name(), state.number)?;
                if receives {
                    let received = state.staging.all();
                    let from = starts(&sizes);
                    for rank in 0..lens.len() {
                        let into = places[rank] + pieces[rank].start;
                        let bytes = &received[from[rank]..from[rank] + sizes[rank]];
                        all[into..into + bytes.len()].copy_from_slice(bytes);
                    }
                }
            }
            Ok(if receives { lens.to_vec() } else { Vec::new() })
        })
    }
}

fn swap<T: Copy>(numbers: &mut [T], with: impl Fn(T) -> T) {
    for number in numbers {
        *number = with(*number);
    }
}

/// Where each part starts, if parts of `lens` follow each other.
fn starts(lens: &[usize]) -> Vec<usize> {
    lens.iter()
        .scan(0, |next, len| {
            let start = *next;
            *next += len;
            Some(start)
        })
        .collect()
}

impl State {
    /// Tells the others this rank's call and hears theirs. Gives every rank's length.
    fn announce(&mut self, call: Call) -> Result<Vec<usize>, CollectiveError> {
        let words = self.engine.announce(&mut self.staging, call.to_words(), call.name(), self.number)?;
        let calls: Vec<Option<Call>> =
            words.as_chunks::<WORDS>().0.iter().map(|words| Call::from_words(*words)).collect();
        call::check(&calls, self.engine.rank(), self.number)?;
        Ok(calls.into_iter().map(|call| call.map_or(0, Call::len)).collect())
    }

    /// Reduces one round of numbers in place.
    fn reduce<T: bytemuck::Pod>(
        &mut self,
        numbers: &mut [T],
        datatype: Datatype,
        reduction: Reduction,
    ) -> Result<(), CollectiveError> {
        self.staging.put_own(bytemuck::cast_slice(numbers));
        self.engine.reduce(&mut self.staging, numbers.len(), datatype, reduction, self.number)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(numbers);
        bytes.copy_from_slice(&self.staging.all()[..bytes.len()]);
        Ok(())
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, mut numbers: NumbersMut<'_>, reduction: Reduction) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let call = Call::all_reduce(&numbers, reduction);
        let element = Element::of(&numbers);
        let bytes = self.shared(numbers.len() * element.size());
        let round = self.round_bytes / element.size();
        // Maxima of floats are those of integers in their place, since MPI's own depend on the order where there is NaN.
        let as_integers = reduction != Reduction::Sum;
        self.call(call, |state, _| {
            match &mut numbers {
                NumbersMut::F32(numbers) if as_integers => {
                    for part in bytemuck::cast_slice_mut::<f32, i32>(numbers).chunks_mut(round) {
                        swap(part, swap_order::of_i32);
                        state.reduce(part, Datatype::I32, reduction)?;
                        swap(part, swap_order::of_i32);
                    }
                }
                NumbersMut::F64(numbers) if as_integers => {
                    for part in bytemuck::cast_slice_mut::<f64, i64>(numbers).chunks_mut(round) {
                        swap(part, swap_order::of_i64);
                        state.reduce(part, Datatype::I64, reduction)?;
                        swap(part, swap_order::of_i64);
                    }
                }
                NumbersMut::F32(numbers) => {
                    for part in numbers.chunks_mut(round) {
                        state.reduce(part, Datatype::F32, reduction)?;
                    }
                }
                NumbersMut::F64(numbers) => {
                    for part in numbers.chunks_mut(round) {
                        state.reduce(part, Datatype::F64, reduction)?;
                    }
                }
                NumbersMut::I64(numbers) => {
                    for part in numbers.chunks_mut(round) {
                        state.reduce(part, Datatype::I64, reduction)?;
                    }
                }
                NumbersMut::U8(numbers) => {
                    for part in numbers.chunks_mut(round) {
                        state.reduce(part, Datatype::U8, reduction)?;
                    }
                }
            }
            Ok(())
        })?;
        self.meter.count(start, bytes, bytes);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        let start = Instant::now();
        let lens = self.gathered(Call::AllGather { len: own.len() }, None, own, all)?;
        self.meter.count(start, self.shared(own.len()), all.len() - own.len());
        Ok(lens)
    }

    fn gather(&self, root: usize, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        check_root(root, self.size);
        let start = Instant::now();
        let lens = self.gathered(Call::Gather { root, len: own.len() }, Some(root), own, all)?;
        if root == self.rank {
            self.meter.count(start, 0, all.len() - own.len());
        } else {
            self.meter.count(start, own.len(), 0);
        }
        Ok(lens)
    }

    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        check_root(root, self.size);
        let start = Instant::now();
        let len = if root == self.rank { bytes.len() } else { 0 };
        let call = Call::Broadcast { root, len };
        self.call(call, |state, lens| {
            if root != self.rank {
                bytes.clear();
                bytes.resize(lens[root], 0);
            }
            for part in bytes.chunks_mut(self.round_bytes) {
                state.staging.put_own(part);
                state.engine.broadcast(&mut state.staging, part.len(), root, call.name(), state.number)?;
                part.copy_from_slice(state.staging.own());
            }
            Ok(())
        })?;
        let len = self.shared(bytes.len());
        if root == self.rank {
            self.meter.count(start, len, 0);
        } else {
            self.meter.count(start, 0, len);
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let start = Instant::now();
        self.call(Call::Barrier, |_, _| Ok(()))?;
        self.meter.count(start, 0, 0);
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    /// Ends the job by `MPI_Abort`, this process included.
    fn abort(&self, exit_code: i32) {
        engine::abort(exit_code);
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let failed = self.state().failure.is_some();
        // The end waits for the other ranks, which after an error or a panic may never come.
        if !failed && !std::thread::panicking() {
            engine::finish();
        }
    }
}
