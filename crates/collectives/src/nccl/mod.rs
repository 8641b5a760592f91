//! [`Nccl`]: one GPU per rank.

mod engine;
mod memory;
mod unique_id;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::engine::{Element, Engine, Place};
use crate::call::{self, Call, WORDS, check_root};
use crate::meter::Meter;
use crate::{Collective, CollectiveError, DeviceCollective, NumbersMut, Reduction, Traffic, swap_order};

pub use self::unique_id::UniqueId;

/// Bytes that are staged on the device at a time, by calls on host memory.
const ROUND_BYTES: usize = 32 << 20;

/// A rank with a CUDA device of its own.
///
/// Calls on host memory announce themselves first, as those of `Mpi` do, and go through memory of the device that the backend holds. Calls on
/// the device's memory do not announce themselves. A time-out also counts what was queued on the default stream before. It aborts the communicator;
/// which ranks are missing is known where they met at a [`Rendezvous`](crate::Rendezvous).
pub struct Nccl {
    rank: usize,
    size: usize,
    device: usize,
    state: Mutex<State>,
    meter: Meter,
    /// Where the ranks met, if that is MPI.
    control: Option<Box<dyn Collective>>,
}

struct State {
    engine: Engine,
    number: u64,
    failure: Option<CollectiveError>,
}

impl Nccl {
    /// Joins `size` ranks, each on the CUDA device that it names. Waits for the others, and later in every call, for up to `timeout`.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Unavailable`] without a driver, NCCL or the device; [`CollectiveError::TimedOut`], [`CollectiveError::Lost`]
    /// or [`CollectiveError::Engine`] if the others do not come.
    ///
    /// # Panics
    ///
    /// If `rank` is not below `size`.
    pub fn start(
        device: usize,
        rank: usize,
        size: usize,
        id: UniqueId,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        assert!(rank < size, "rank {rank} of {size}: ranks run from 0 to size - 1");
        let engine = Engine::start(device, rank, size, id, timeout)?;
        let state = Mutex::new(State { engine, number: 0, failure: None });
        Ok(Self { rank, size, device, state, meter: Meter::default(), control: None })
    }

    /// Keeps `control`, over which the ranks met, and which can end the job.
    #[must_use]
    pub(crate) fn beside(mut self, control: Box<dyn Collective>) -> Self {
        self.control = Some(control);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work`, whose error is that of all later calls.
    fn run<T>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        let mut state = self.state();
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        state.number += 1;
        let result = work(&mut state);
        if let Err(error) = &result {
            state.failure = Some(error.clone());
            state.engine.abort();
        }
        result
    }

    /// Announces `call`, then does its `work` with the number of elements or bytes that each rank has.
    fn call<T>(
        &self,
        call: Call,
        work: impl FnOnce(&mut State, &[usize]) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        self.run(|state| {
            let lens = state.announce(call)?;
            work(state, &lens)
        })
    }

    /// The bytes that others see: none if there are no others.
    fn shared(&self, bytes: usize) -> usize {
        if self.size == 1 { 0 } else { bytes }
    }

    /// NCCL gathers equal parts, and on all ranks: parts are padded to the longest, and ranks that do not receive leave theirs on the device.
    fn gathered(
        &self,
        call: Call,
        receives: bool,
        own: &[u8],
        all: &mut Vec<u8>,
    ) -> Result<Vec<usize>, CollectiveError> {
        let piece = (ROUND_BYTES / self.size).max(1);
        all.clear();
        self.call(call, |state, lens| {
            let mut starts = Vec::with_capacity(lens.len());
            let mut next = 0;
            for len in lens {
                starts.push(next);
                next += len;
            }
            if receives {
                all.resize(next, 0);
            }
            let longest = lens.iter().copied().max().unwrap_or_default();
            for start in (0..longest).step_by(piece) {
                let each = piece.min(longest - start);
                let part = |rank: usize| start.min(lens[rank])..(start + each).min(lens[rank]);
                let at = state.engine.at(call.name(), state.number);
                state.engine.all_gather_staged(&own[part(self.rank)], each, at)?;
                for rank in (0..lens.len()).filter(|_| receives) {
                    let part = part(rank);
                    let into = &mut all[starts[rank] + part.start..starts[rank] + part.end];
                    state.engine.fetch(rank * each, into, at)?;
                }
            }
            Ok(if receives { lens.to_vec() } else { Vec::new() })
        })
    }
}

impl State {
    fn announce(&mut self, call: Call) -> Result<Vec<usize>, CollectiveError> {
        let at = self.engine.at(call.name(), self.number);
        let words = call.to_words();
        self.engine.all_gather_staged(bytemuck::cast_slice(&words), size_of_val(&words), at)?;
        let mut all = vec![[0_u64; WORDS]; at.size];
        self.engine.fetch(0, bytemuck::cast_slice_mut(&mut all), at)?;
        let calls: Vec<Option<Call>> = all.into_iter().map(Call::from_words).collect();
        call::check(&calls, at.rank, self.number)?;
        Ok(calls.into_iter().map(|call| call.map_or(0, Call::len)).collect())
    }

    /// Reduces `bytes` in place, in rounds.
    fn reduce(
        &mut self,
        bytes: &mut [u8],
        element: Element,
        reduction: Reduction,
    ) -> Result<(), CollectiveError> {
        let at = self.engine.at("all_reduce", self.number);
        for part in bytes.chunks_mut(ROUND_BYTES) {
            self.engine.all_reduce_staged(part, element, reduction, at)?;
        }
        Ok(())
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, mut numbers: NumbersMut<'_>, reduction: Reduction) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let call = Call::all_reduce(&numbers, reduction);
        let mut bytes = numbers.bytes().to_vec();
        self.call(call, |state, _| {
            // Maxima of floats are those of integers in their place: what NCCL makes of NaN is not said.
            let as_integers = reduction != Reduction::Sum;
            match &numbers {
                NumbersMut::F32(_) if as_integers => {
                    swap(&mut bytes, swap_order::of_i32);
                    state.reduce(&mut bytes, Element::I32, reduction)?;
                    swap(&mut bytes, swap_order::of_i32);
                    Ok(())
                }
                NumbersMut::F64(_) if as_integers => {
                    swap(&mut bytes, swap_order::of_i64);
                    state.reduce(&mut bytes, Element::I64, reduction)?;
                    swap(&mut bytes, swap_order::of_i64);
                    Ok(())
                }
                NumbersMut::F32(_) => state.reduce(&mut bytes, Element::F32, reduction),
                NumbersMut::F64(_) => state.reduce(&mut bytes, Element::F64, reduction),
                NumbersMut::I64(_) => state.reduce(&mut bytes, Element::I64, reduction),
                NumbersMut::U8(_) => state.reduce(&mut bytes, Element::U8, reduction),
            }
        })?;
        numbers.replace(&bytes);
        let shared = self.shared(bytes.len());
        self.meter.count(start, shared, shared);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        let start = Instant::now();
        let lens = self.gathered(Call::AllGather { len: own.len() }, true, own, all)?;
        self.meter.count(start, self.shared(own.len()), all.len() - own.len());
        Ok(lens)
    }

    fn gather(&self, root: usize, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError> {
        check_root(root, self.size);
        let start = Instant::now();
        let receives = root == self.rank;
        let lens = self.gathered(Call::Gather { root, len: own.len() }, receives, own, all)?;
        if receives {
            self.meter.count(start, 0, all.len() - own.len());
        } else {
            self.meter.count(start, own.len(), 0);
        }
        Ok(lens)
    }

    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        check_root(root, self.size);
        let start = Instant::now();
        let is_root = root == self.rank;
        let call = Call::Broadcast { root, len: if is_root { bytes.len() } else { 0 } };
        self.call(call, |state, lens| {
            if !is_root {
                bytes.clear();
                bytes.resize(lens[root], 0);
            }
            let at = state.engine.at("broadcast", state.number);
            for part in bytes.chunks_mut(ROUND_BYTES) {
                state.engine.broadcast_staged(part, root, at)?;
            }
            Ok(())
        })?;
        let shared = self.shared(bytes.len());
        if is_root {
            self.meter.count(start, shared, 0);
        } else {
            self.meter.count(start, 0, shared);
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

    fn on_device(&self) -> Option<&dyn DeviceCollective> {
        Some(self)
    }

    /// Ends the job if the ranks met over MPI. Else the communicator is aborted, and the others notice when this process ends, or time out.
    fn abort(&self, exit_code: i32) {
        if let Some(control) = &self.control {
            control.abort(exit_code);
        }
        // A thread that holds the state is in a call, which ends by its time-out.
        if let Ok(mut state) = self.state.try_lock() {
            state.engine.abort();
        }
    }
}

/// Replaces every element of `bytes`, which need no alignment.
fn swap<T: bytemuck::Pod>(bytes: &mut [u8], with: impl Fn(T) -> T) {
    for chunk in bytes.chunks_exact_mut(size_of::<T>()) {
        let swapped = with(bytemuck::pod_read_unaligned(chunk));
        chunk.copy_from_slice(bytemuck::bytes_of(&swapped));
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, size, device, .. } = self;
        f.debug_struct("Nccl")
            .field("rank", rank)
            .field("size", size)
            .field("device", device)
            .finish_non_exhaustive()
    }
}

#[expect(unsafe_code, reason = "callers vouch for pointers to the device's memory")]
impl DeviceCollective for Nccl {
    fn device(&self) -> usize {
        self.device
    }

    unsafe fn all_reduce_f32(
        &self,
        numbers: *mut f32,
        count: usize,
        reduction: Reduction,
    ) -> Result<(), CollectiveError> {
        let start = Instant::now();
        self.run(|state| {
            let at = state.engine.at("all_reduce", state.number);
            let place = Place::of_pointer(numbers.cast());
            // SAFETY: the caller's promise.
            unsafe { state.engine.all_reduce(place, count, Element::F32, reduction, at) }
        })?;
        let bytes = self.shared(4 * count);
        self.meter.count(start, bytes, bytes);
        Ok(())
    }

    unsafe fn all_gather_bytes(
        &self,
        own: *const u8,
        all: *mut u8,
        bytes_each: usize,
    ) -> Result<(), CollectiveError> {
        let start = Instant::now();
        self.run(|state| {
            let at = state.engine.at("all_gather", state.number);
            let (own, all) = (Place::of_pointer(own.cast_mut()), Place::of_pointer(all));
            // SAFETY: the caller's promise.
            unsafe { state.engine.all_gather(own, all, bytes_each, at) }
        })?;
        self.meter.count(start, self.shared(bytes_each), bytes_each * (self.size - 1));
        Ok(())
    }

    unsafe fn broadcast_bytes(
        &self,
        root: usize,
        bytes: *mut u8,
        count: usize,
    ) -> Result<(), CollectiveError> {
        check_root(root, self.size);
        let start = Instant::now();
        self.run(|state| {
            let at = state.engine.at("broadcast", state.number);
            // SAFETY: the caller's promise.
            unsafe { state.engine.broadcast(Place::of_pointer(bytes), count, root, at) }
        })?;
        let shared = self.shared(count);
        if root == self.rank {
            self.meter.count(start, shared, 0);
        } else {
            self.meter.count(start, 0, shared);
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<(), CollectiveError> {
        let mut state = self.state();
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        let at = state.engine.at("synchronize", state.number);
        let result = state.engine.wait_for_stream(at);
        if let Err(error) = &result {
            state.failure = Some(error.clone());
            state.engine.abort();
        }
        result
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.failure.is_none() && !std::thread::panicking() {
            state.engine.finish();
        } else {
            state.engine.abort();
        }
    }
}
