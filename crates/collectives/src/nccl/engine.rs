//! [`Engine`]: a non-blocking NCCL communicator on the default stream, whose calls end by their deadline.
#![expect(unsafe_code, reason = "CUDA and NCCL are C libraries")]

use std::ffi::{CStr, c_char, c_int};
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, DriverError, result, sys as cuda};
use cudarc::nccl::sys as nccl;

use super::memory::DeviceMemory;
use super::unique_id::{BYTES, UniqueId};
use crate::meeting::Meeting;
use crate::{CollectiveError, Reduction};

/// How long a call is polled without a pause.
const BUSY: Duration = Duration::from_micros(100);
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// `NCCL_CONFIG_INITIALIZER` of NCCL 2.22, which a macro of its header makes.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
const CONFIG_VERSION: u32 = 22_200;
const CONFIG_UNSET: c_int = c_int::MIN;

/// What elements of a reduction are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Element {
    F32,
    F64,
    I32,
    I64,
    U8,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::U8 => 1,
        }
    }

    fn datatype(self) -> nccl::ncclDataType_t {
        match self {
            Self::F32 => nccl::ncclDataType_t::ncclFloat32,
            Self::F64 => nccl::ncclDataType_t::ncclFloat64,
            Self::I32 => nccl::ncclDataType_t::ncclInt32,
            Self::I64 => nccl::ncclDataType_t::ncclInt64,
            Self::U8 => nccl::ncclDataType_t::ncclUint8,
        }
    }
}

/// An address in the device's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(cuda::CUdeviceptr);

impl Place {
    pub(super) fn of_pointer(pointer: *mut u8) -> Self {
        Self(pointer as cuda::CUdeviceptr)
    }

    fn pointer<T>(self) -> *mut T {
        self.0 as *mut T
    }
}

/// Where in a job's life an error arose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) call: &'static str,
    pub(super) number: u64,
    pub(super) rank: usize,
    pub(super) size: usize,
}

impl Position {
    fn error(self, engine: &'static str, code: i32, message: String) -> CollectiveError {
        let call = format!("{} (call {})", self.call, self.number);
        CollectiveError::Engine { engine, call, code, message, rank: self.rank, size: self.size }
    }

    fn cuda(self, error: DriverError) -> CollectiveError {
        self.error("CUDA", error.0 as i32, error.to_string())
    }
}

pub(super) struct Engine {
    rank: usize,
    size: usize,
    timeout: Duration,
    context: Arc<CudaContext>,
    /// Null once it is aborted or destroyed.
    communicator: nccl::ncclComm_t,
    event: cuda::CUevent,
    own: DeviceMemory,
    all: DeviceMemory,
    meeting: Option<Meeting>,
}

// SAFETY: a communicator and an event may be used by any thread, one at a time, which the mutex around the engine sees to; every call binds
// the context to its thread first.
unsafe impl Send for Engine {}

/// # Errors
///
/// [`CollectiveError::Unavailable`] without the library.
pub(super) fn require_nccl() -> Result<(), CollectiveError> {
    // SAFETY: loading NCCL runs its initialisers, which have no conditions.
    if unsafe { nccl::is_culib_present() } {
        return Ok(());
    }
    Err(CollectiveError::Unavailable {
        engine: "NCCL",
        reason: "there is no libnccl.so: install Debian's or NVIDIA's libnccl-dev; or take PyTorch's own: make a link named libnccl.so to site-packages/nvidia/nccl/lib/libnccl.so.2, and put its folder into LD_LIBRARY_PATH"
            .into(),
    })
}

fn require_driver() -> Result<(), CollectiveError> {
    // SAFETY: loading the driver's library runs its initialisers, which have no conditions.
    if unsafe { cuda::is_culib_present() } {
        return Ok(());
    }
    Err(CollectiveError::Unavailable {
        engine: "CUDA",
        reason: "there is no libcuda.so: install the NVIDIA driver (in a container, start it with --gpus all); without a GPU, choose mpi"
            .into(),
    })
}

impl Engine {
    pub(super) fn start(
        device: usize,
        rank: usize,
        size: usize,
        id: UniqueId,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        require_driver()?;
        require_nccl()?;
        let unusable = |error: DriverError| CollectiveError::Unavailable {
            engine: "CUDA",
            reason: format!(
                "device {device} cannot be used ({error}): look at nvidia-smi and CUDA_VISIBLE_DEVICES"
            ),
        };
        let context = CudaContext::new(device).map_err(unusable)?;
        let event = result::event::create(cuda::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(unusable)?;
        let mut engine = Self {
            rank,
            size,
            timeout,
            context,
            communicator: ptr::null_mut(),
            event,
            own: DeviceMemory::default(),
            all: DeviceMemory::default(),
            meeting: id.meeting,
        };
        let started = engine.connect(&id.bytes);
        if started.is_err() {
            engine.abort();
        }
        started.map(|()| engine)
    }

    fn connect(&mut self, id: &[u8; BYTES]) -> Result<(), CollectiveError> {
        let at = self.at("start", 0);
        let mut config = nccl::ncclConfig_t {
            size: size_of::<nccl::ncclConfig_t>(),
            magic: CONFIG_MAGIC,
            version: CONFIG_VERSION,
            blocking: 0,
            cgaClusterSize: CONFIG_UNSET,
            minCTAs: CONFIG_UNSET,
            maxCTAs: CONFIG_UNSET,
            netName: ptr::null(),
            splitShare: CONFIG_UNSET,
        };
        let id = nccl::ncclUniqueId { internal: id.map(|byte| c_char::from_ne_bytes([byte])) };
        let (rank, size) = (self.rank as c_int, self.size as c_int);
        // SAFETY: the context is bound, since it was made on this thread; NCCL writes the communicator, and copies the id and the configuration.
        let code = unsafe {
            nccl::ncclCommInitRankConfig(&raw mut self.communicator, size, id, rank, &raw mut config)
        };
        self.accepted(code, at)
    }

    pub(super) fn at(&self, call: &'static str, number: u64) -> Position {
        Position { call, number, rank: self.rank, size: self.size }
    }

    fn bind(&self, at: Position) -> Result<(), CollectiveError> {
        self.context.bind_to_thread().map_err(|error| at.cuda(error))
    }

    /// Sees to it that NCCL has taken a call, which returned `code`.
    fn accepted(&mut self, code: nccl::ncclResult_t, at: Position) -> Result<(), CollectiveError> {
        self.check(code, at)?;
        self.poll(at, Self::is_idle)
    }

    /// An error unless `code` says that all is well, or under way.
    fn check(&self, code: nccl::ncclResult_t, at: Position) -> Result<(), CollectiveError> {
        if matches!(code, nccl::ncclResult_t::ncclSuccess | nccl::ncclResult_t::ncclInProgress) {
            return Ok(());
        }
        // SAFETY: NCCL gives static text for every code, and the last error's text for every communicator, a null one too.
        let (name, last) = unsafe {
            (CStr::from_ptr(nccl::ncclGetErrorString(code)), nccl::ncclGetLastError(self.communicator))
        };
        let mut message = name.to_string_lossy().into_owned();
        if !last.is_null() {
            // SAFETY: NCCL's text ends with 0 and lives until the next error.
            let last = unsafe { CStr::from_ptr(last) }.to_string_lossy();
            if !last.is_empty() {
                message = format!("{message}: {last}");
            }
        }
        Err(at.error("NCCL", code as i32, message))
    }

    /// Whether the communicator has nothing under way on the host's side.
    fn is_idle(&mut self, at: Position) -> Result<bool, CollectiveError> {
        let mut code = nccl::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is valid until it is aborted, and the code goes to a local.
        let asked = unsafe { nccl::ncclCommGetAsyncError(self.communicator, &raw mut code) };
        self.check(asked, at)?;
        self.check(code, at)?;
        Ok(code != nccl::ncclResult_t::ncclInProgress)
    }

    /// Whether the stream has come past the event.
    fn is_past_event(&mut self, at: Position) -> Result<bool, CollectiveError> {
        // SAFETY: the event lives as long as the engine.
        match unsafe { result::event::query(self.event) } {
            Ok(()) => Ok(true),
            Err(DriverError(cuda::CUresult::CUDA_ERROR_NOT_READY)) => {
                self.is_idle(at)?;
                Ok(false)
            }
            Err(error) => Err(at.cuda(error)),
        }
    }

    /// Asks `done` until it says so, an error arises, or the time is up.
    fn poll(
        &mut self,
        at: Position,
        done: impl Fn(&mut Self, Position) -> Result<bool, CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if done(self, at)? {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited < BUSY {
                thread::yield_now();
                continue;
            }
            self.listen(at, waited)?;
            if waited >= self.timeout {
                return Err(self.timed_out(at, waited));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Hears of ranks that died, and of a roll call that another has begun.
    fn listen(&mut self, at: Position, waited: Duration) -> Result<(), CollectiveError> {
        let Some(meeting) = &mut self.meeting else { return Ok(()) };
        meeting.listen();
        let lost = meeting.lost();
        if !lost.is_empty() {
            let Position { call, number, rank, size } = at;
            let reason = "its connection is closed, or it did not answer rank 0".into();
            return Err(CollectiveError::Lost { call: call.into(), number, lost, reason, rank, size });
        }
        if meeting.has_begun() { Err(self.timed_out(at, waited)) } else { Ok(()) }
    }

    fn timed_out(&mut self, at: Position, waited: Duration) -> CollectiveError {
        let Position { call, number, rank, size } = at;
        let roll = self.meeting.as_mut().map(|meeting| meeting.call(number));
        let (missing, answered) = roll.map_or((Vec::new(), 0), |roll| (roll.missing, roll.answered));
        CollectiveError::TimedOut { call: call.into(), number, waited, missing, answered, rank, size }
    }

    /// Waits until all that is queued on the default stream is done.
    pub(super) fn wait_for_stream(&mut self, at: Position) -> Result<(), CollectiveError> {
        self.bind(at)?;
        // SAFETY: the event lives as long as the engine; the null stream is the default stream.
        unsafe { result::event::record(self.event, ptr::null_mut()) }.map_err(|error| at.cuda(error))?;
        self.poll(at, Self::is_past_event)
    }

    /// # Safety
    ///
    /// `place` holds `count` elements under the terms of [`crate::DeviceCollective::all_reduce_f32`].
    pub(super) unsafe fn all_reduce(
        &mut self,
        place: Place,
        count: usize,
        element: Element,
        reduction: Reduction,
        at: Position,
    ) -> Result<(), CollectiveError> {
        self.bind(at)?;
        let operation = match reduction {
            Reduction::Sum => nccl::ncclRedOp_t::ncclSum,
            Reduction::Max => nccl::ncclRedOp_t::ncclMax,
            Reduction::Min => nccl::ncclRedOp_t::ncclMin,
        };
        // SAFETY: the caller's promise; the communicator is valid, since a failed engine is not called.
        let code = unsafe {
            nccl::ncclAllReduce(
                place.pointer(),
                place.pointer(),
                count,
                element.datatype(),
                operation,
                self.communicator,
                ptr::null_mut(),
            )
        };
        self.accepted(code, at)
    }

    /// # Safety
    ///
    /// `own` holds `each` bytes and `all` that of every rank, under the terms of [`crate::DeviceCollective::all_gather_bytes`].
    pub(super) unsafe fn all_gather(
        &mut self,
        own: Place,
        all: Place,
        each: usize,
        at: Position,
    ) -> Result<(), CollectiveError> {
        self.bind(at)?;
        let byte = nccl::ncclDataType_t::ncclUint8;
        // SAFETY: as in `all_reduce`.
        let code = unsafe {
            nccl::ncclAllGather(own.pointer(), all.pointer(), each, byte, self.communicator, ptr::null_mut())
        };
        self.accepted(code, at)
    }

    /// # Safety
    ///
    /// `place` holds `count` bytes under the terms of [`crate::DeviceCollective::broadcast_bytes`].
    pub(super) unsafe fn broadcast(
        &mut self,
        place: Place,
        count: usize,
        root: usize,
        at: Position,
    ) -> Result<(), CollectiveError> {
        self.bind(at)?;
        // SAFETY: as in `all_reduce`.
        let code = unsafe {
            nccl::ncclBroadcast(
                place.pointer(),
                place.pointer(),
                count,
                nccl::ncclDataType_t::ncclUint8,
                root as c_int,
                self.communicator,
                ptr::null_mut(),
            )
        };
        self.accepted(code, at)
    }

    /// Gathers `each` bytes of every rank into the engine's memory, this rank's being `own`, padded.
    pub(super) fn all_gather_staged(
        &mut self,
        own: &[u8],
        each: usize,
        at: Position,
    ) -> Result<(), CollectiveError> {
        assert!(own.len() <= each, "{} bytes of {each}", own.len());
        // Copies wait for the default stream, and would hang with it.
        self.wait_for_stream(at)?;
        let prepare = |engine: &mut Self| {
            let place = engine.own.room(each.max(1))?;
            engine.own.write(own)?;
            Ok((place, engine.all.room((each * engine.size).max(1))?))
        };
        let (own, all) = prepare(self).map_err(|error| at.cuda(error))?;
        // SAFETY: the engine's memory has room, and is not touched until the stream has come past.
        unsafe { self.all_gather(Place(own), Place(all), each, at) }?;
        self.wait_for_stream(at)
    }

    /// Copies what was gathered.
    pub(super) fn fetch(&self, start: usize, into: &mut [u8], at: Position) -> Result<(), CollectiveError> {
        if into.is_empty() { Ok(()) } else { self.all.read(start, into).map_err(|error| at.cuda(error)) }
    }

    /// Reduces `bytes` in place.
    pub(super) fn all_reduce_staged(
        &mut self,
        bytes: &mut [u8],
        element: Element,
        reduction: Reduction,
        at: Position,
    ) -> Result<(), CollectiveError> {
        let count = bytes.len() / element.bytes();
        self.wait_for_stream(at)?;
        self.own.write(bytes).map_err(|error| at.cuda(error))?;
        let place = Place(self.own.room(bytes.len()).map_err(|error| at.cuda(error))?);
        // SAFETY: the engine's memory holds the bytes, and is not touched until the stream has come past.
        unsafe { self.all_reduce(place, count, element, reduction, at) }?;
        self.wait_for_stream(at)?;
        self.own.read(0, bytes).map_err(|error| at.cuda(error))
    }

    /// Sends `bytes` from `root` to all, in place.
    pub(super) fn broadcast_staged(
        &mut self,
        bytes: &mut [u8],
        root: usize,
        at: Position,
    ) -> Result<(), CollectiveError> {
        self.wait_for_stream(at)?;
        self.own.write(bytes).map_err(|error| at.cuda(error))?;
        let place = Place(self.own.room(bytes.len()).map_err(|error| at.cuda(error))?);
        // SAFETY: the engine's memory holds the bytes, and is not touched until the stream has come past.
        unsafe { self.broadcast(place, bytes.len(), root, at) }?;
        self.wait_for_stream(at)?;
        self.own.read(0, bytes).map_err(|error| at.cuda(error))
    }

    /// Ends the communicator at once. What it has queued on the device ends, too.
    pub(super) fn abort(&mut self) {
        let communicator = std::mem::replace(&mut self.communicator, ptr::null_mut());
        if !communicator.is_null() && self.context.bind_to_thread().is_ok() {
            // SAFETY: the communicator is valid, and is not used again.
            unsafe { nccl::ncclCommAbort(communicator) };
        }
        // Closed without a goodbye, which tells the others.
        self.meeting = None;
    }

    /// Ends the communicator in good order, together with the other ranks.
    pub(super) fn finish(&mut self) {
        let at = self.at("finish", 0);
        if self.end(at).is_err() {
            self.abort();
            return;
        }
        if let Some(meeting) = &mut self.meeting {
            meeting.leave();
        }
        self.own.free();
        self.all.free();
        // SAFETY: the event was made by `start` and is not used again.
        let _ = unsafe { result::event::destroy(self.event) };
    }

    fn end(&mut self, at: Position) -> Result<(), CollectiveError> {
        if self.communicator.is_null() {
            return Ok(());
        }
        self.wait_for_stream(at)?;
        // SAFETY: the communicator is valid, and nothing is queued any more.
        let code = unsafe { nccl::ncclCommFinalize(self.communicator) };
        self.accepted(code, at)?;
        let communicator = std::mem::replace(&mut self.communicator, ptr::null_mut());
        // SAFETY: it is finalised, and not used again.
        unsafe { nccl::ncclCommDestroy(communicator) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_to_install() {
        for (found, words) in
            [(require_driver(), "install the NVIDIA driver"), (require_nccl(), "LD_LIBRARY_PATH")]
        {
            if let Err(error) = found {
                assert!(error.to_string().contains(words), "{error}");
            }
        }
    }
}
