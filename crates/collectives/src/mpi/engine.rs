//! [`Engine`]: MPI's non-blocking calls, each tested until it is done, fails, or is given up.
#![expect(unsafe_code, reason = "MPI is a C library")]

use std::ffi::{c_char, c_int, c_void};
use std::thread;
use std::time::{Duration, Instant};

use mpi::ffi;

use super::roll_call::RollCall;
use super::staging::Staging;
use crate::call::WORDS;
use crate::{CollectiveError, Reduction};

const NAME: &str = "MPI";
/// How long a call is tested without a pause in which another process could run.
const BUSY: Duration = Duration::from_micros(100);
/// While data moves, testing is what moves it; a pause would slow all that is faster than this.
const BUSY_BYTES_PER_SECOND: f64 = 100e6;
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// More than any MPI's longest message.
const MESSAGE_BYTES: usize = 2048;

/// What elements of a reduction are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Datatype {
    F32,
    F64,
    I32,
    I64,
    U8,
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
    fn error(self, function: &str, code: c_int) -> CollectiveError {
        CollectiveError::Engine {
            engine: NAME,
            call: format!("{} ({function}, call {})", self.call, self.number),
            code,
            message: message(code),
            rank: self.rank,
            size: self.size,
        }
    }

    /// An error unless `code` is success.
    pub(super) fn check(self, function: &str, code: c_int) -> Result<(), CollectiveError> {
        if code == ffi::MPI_SUCCESS as c_int { Ok(()) } else { Err(self.error(function, code)) }
    }
}

pub(super) struct Engine {
    rank: usize,
    size: usize,
    timeout: Duration,
    /// Data goes through a communicator of its own, apart from the roll call, which uses the world's.
    work: ffi::MPI_Comm,
    roll_call: RollCall,
}

// SAFETY: communicators are handles that any thread may use; MPI is started for calls from one thread at a time, which the mutex around
// the engine sees to.
unsafe impl Send for Engine {}

impl Engine {
    pub(super) fn start(timeout: Duration) -> Result<Self, CollectiveError> {
        let unavailable = |reason: &str| CollectiveError::Unavailable { engine: NAME, reason: reason.into() };
        let mut started = 0;
        let mut provided = 0;
        // SAFETY: MPI_Initialized may be called at any time; the pointer is to a local.
        unsafe { ffi::MPI_Initialized(&raw mut started) };
        if started != 0 {
            return Err(unavailable("this process has started it before, and MPI starts once per process"));
        }
        // SAFETY: MPI has not been started, needs no arguments, and writes one int.
        let code = unsafe {
            ffi::MPI_Init_thread(
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                ffi::RSMPI_THREAD_SERIALIZED,
                &raw mut provided,
            )
        };
        let nowhere = Position { call: "start", number: 0, rank: 0, size: 1 };
        nowhere.check("MPI_Init_thread", code)?;
        // SAFETY: a constant of the MPI library, which has been started.
        let (world, wanted) = unsafe { (ffi::RSMPI_COMM_WORLD, ffi::RSMPI_THREAD_SERIALIZED) };
        if provided < wanted {
            return Err(unavailable(
                "it was built without threads: install an MPI that gives MPI_THREAD_SERIALIZED, as Debian's libopenmpi-dev",
            ));
        }
        let (mut rank, mut size) = (0, 0);
        // SAFETY: the world is a valid communicator, and the pointers are to locals.
        let codes = unsafe {
            [
                ("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(world, ffi::RSMPI_ERRORS_RETURN)),
                ("MPI_Comm_rank", ffi::MPI_Comm_rank(world, &raw mut rank)),
                ("MPI_Comm_size", ffi::MPI_Comm_size(world, &raw mut size)),
            ]
        };
        for (function, code) in codes {
            nowhere.check(function, code)?;
        }
        let (rank, size) = (rank as usize, size as usize);
        let mut engine = Self { rank, size, timeout, work: world, roll_call: RollCall::new(world, size) };
        engine.work = engine.copy_world(world)?;
        Ok(engine)
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn at(&self, call: &'static str, number: u64) -> Position {
        Position { call, number, rank: self.rank, size: self.size }
    }

    fn copy_world(&mut self, world: ffi::MPI_Comm) -> Result<ffi::MPI_Comm, CollectiveError> {
        let at = self.at("start", 0);
        let mut request = null_request();
        // MPI writes the communicator when the request ends, which may be after this function has given up.
        let copy: &'static mut ffi::MPI_Comm = Box::leak(Box::new(world));
        // SAFETY: the world is valid, and the place of the copy lives for good.
        let code = unsafe { ffi::MPI_Comm_idup(world, copy, &raw mut request) };
        at.check("MPI_Comm_idup", code)?;
        self.finish_request(request, at, BUSY)?;
        // SAFETY: the copy is a valid communicator now that the request has ended.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(*copy, ffi::RSMPI_ERRORS_RETURN) };
        at.check("MPI_Comm_set_errhandler", code)?;
        Ok(*copy)
    }

    /// Gives all ranks this rank's words; gives back those of all ranks.
    pub(super) fn announce(
        &mut self,
        staging: &mut Staging,
        words: [u64; WORDS],
        call: &'static str,
        number: u64,
    ) -> Result<Vec<u64>, CollectiveError> {
        let at = self.at(call, number);
        let work = self.work;
        staging.put_words(words, self.size);
        self.run(staging, at, "MPI_Iallgather", BUSY, |staging, request| {
            // SAFETY: both buffers hold the number of words that is named, per rank, and live until the request has ended: see `run`.
            unsafe {
                ffi::MPI_Iallgather(
                    staging.own_words.as_ptr().cast(),
                    WORDS as c_int,
                    ffi::RSMPI_UINT64_T,
                    staging.all_words.as_mut_ptr().cast(),
                    WORDS as c_int,
                    ffi::RSMPI_UINT64_T,
                    work,
                    request,
                )
            }
        })?;
        Ok(staging.all_words.clone())
    }

    /// Reduces `count` elements of the staging's own memory into its memory for all.
    pub(super) fn reduce(
        &mut self,
        staging: &mut Staging,
        count: usize,
        datatype: Datatype,
        reduction: Reduction,
        number: u64,
    ) -> Result<(), CollectiveError> {
        let at = self.at("all_reduce", number);
        let work = self.work;
        let bytes = staging.own().len();
        assert_eq!(bytes, count * datatype.size(), "bytes of {count} elements of {datatype:?}");
        staging.make_room(bytes);
        self.run(staging, at, "MPI_Iallreduce", busy_for(bytes), |staging, request| {
            // SAFETY: both buffers hold `count` elements, are aligned for all types, and live until the request has ended.
            unsafe {
                ffi::MPI_Iallreduce(
                    staging.own.as_ptr().cast(),
                    staging.all.as_mut_ptr().cast(),
                    count as c_int,
                    datatype.handle(),
                    operation(reduction),
                    work,
                    request,
                )
            }
        })
    }

    /// Gathers parts of `sizes` bytes, one after the other, into the staging's memory for all: on `root`, or on all ranks.
    pub(super) fn gather(
        &mut self,
        staging: &mut Staging,
        sizes: &[usize],
        root: Option<usize>,
        call: &'static str,
        number: u64,
    ) -> Result<(), CollectiveError> {
        let at = self.at(call, number);
        let work = self.work;
        let own = staging.own().len();
        assert_eq!((own, self.size), (sizes[self.rank], sizes.len()), "this rank's bytes, and the ranks");
        staging.make_room_for_parts(sizes);
        let busy = busy_for(sizes.iter().sum());
        self.run(staging, at, "MPI_Igatherv", busy, |staging, request| {
            let own_buffer: *const c_void = staging.own.as_ptr().cast();
            let all_buffer: *mut c_void = staging.all.as_mut_ptr().cast();
            let (counts, places) = (staging.counts.as_ptr(), staging.places.as_ptr());
            // SAFETY: the buffers hold this rank's bytes and those of all ranks, where counts and places say; they and the lists
            // live until the request has ended.
            unsafe {
                let byte = ffi::RSMPI_UINT8_T;
                match root {
                    Some(root) => ffi::MPI_Igatherv(
                        own_buffer,
                        own as c_int,
                        byte,
                        all_buffer,
                        counts,
                        places,
                        byte,
                        root as c_int,
                        work,
                        request,
                    ),
                    None => ffi::MPI_Iallgatherv(
                        own_buffer,
                        own as c_int,
                        byte,
                        all_buffer,
                        counts,
                        places,
                        byte,
                        work,
                        request,
                    ),
                }
            }
        })
    }

    /// Sends `len` bytes of the staging's own memory from `root` to all ranks, in place.
    pub(super) fn broadcast(
        &mut self,
        staging: &mut Staging,
        len: usize,
        root: usize,
        call: &'static str,
        number: u64,
    ) -> Result<(), CollectiveError> {
        let at = self.at(call, number);
        let work = self.work;
        assert_eq!(staging.own().len(), len, "bytes of the broadcast");
        self.run(staging, at, "MPI_Ibcast", busy_for(len), |staging, request| {
            // SAFETY: the buffer holds `len` bytes and lives until the request has ended.
            unsafe {
                ffi::MPI_Ibcast(
                    staging.own.as_mut_ptr().cast(),
                    len as c_int,
                    ffi::RSMPI_UINT8_T,
                    root as c_int,
                    work,
                    request,
                )
            }
        })
    }

    /// Starts a request and sees it to its end. If it has none, the staging's memory is left to MPI for good.
    fn run(
        &mut self,
        staging: &mut Staging,
        at: Position,
        function: &'static str,
        busy: Duration,
        start: impl FnOnce(&mut Staging, *mut ffi::MPI_Request) -> c_int,
    ) -> Result<(), CollectiveError> {
        let mut request = null_request();
        let code = start(staging, &raw mut request);
        let result = at.check(function, code).and_then(|()| self.finish_request(request, at, busy));
        if result.is_err() {
            std::mem::forget(std::mem::take(staging));
        }
        result
    }

    /// Tests `request` until it is done, for `busy` without a pause.
    fn finish_request(
        &mut self,
        mut request: ffi::MPI_Request,
        at: Position,
        busy: Duration,
    ) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let mut done = 0;
            // SAFETY: the request is one that MPI gave and that has not ended; the pointers are to locals.
            let code = unsafe { ffi::MPI_Test(&raw mut request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) };
            at.check("MPI_Test", code)?;
            if done != 0 {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited < busy {
                thread::yield_now();
                continue;
            }
            self.roll_call.listen(at)?;
            if waited >= self.timeout || self.roll_call.has_begun() {
                return Err(self.roll_call.call(at, waited));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Ends MPI, which waits for all ranks.
pub(super) fn finish() {
    // SAFETY: only the backend's end calls this: MPI is started, no request is open, and no call follows.
    unsafe { ffi::MPI_Finalize() };
}

/// How long MPI may take to end this process.
const LAST_RESORT: Duration = Duration::from_secs(5);

/// Ends all ranks.
pub(super) fn abort(exit_code: i32) {
    // MPI asks the machine's daemon for it, which may be gone with the network.
    std::thread::spawn(|| {
        std::thread::sleep(LAST_RESORT);
        std::process::abort();
    });
    // SAFETY: the world is valid from MPI's start to its end, between which the backend lives. Another thread may be in a call; MPI
    // does not promise anything then, but the process ends either way.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, exit_code) };
}

impl Datatype {
    fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::U8 => 1,
        }
    }

    fn handle(self) -> ffi::MPI_Datatype {
        // SAFETY: constants of the MPI library.
        unsafe {
            match self {
                Self::F32 => ffi::RSMPI_FLOAT,
                Self::F64 => ffi::RSMPI_DOUBLE,
                Self::I32 => ffi::RSMPI_INT32_T,
                Self::I64 => ffi::RSMPI_INT64_T,
                Self::U8 => ffi::RSMPI_UINT8_T,
            }
        }
    }
}

fn operation(reduction: Reduction) -> ffi::MPI_Op {
    // SAFETY: constants of the MPI library.
    unsafe {
        match reduction {
            Reduction::Sum => ffi::RSMPI_SUM,
            Reduction::Max => ffi::RSMPI_MAX,
            Reduction::Min => ffi::RSMPI_MIN,
        }
    }
}

pub(super) fn null_request() -> ffi::MPI_Request {
    // SAFETY: a constant of the MPI library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

fn busy_for(bytes: usize) -> Duration {
    BUSY + Duration::from_secs_f64(bytes as f64 / BUSY_BYTES_PER_SECOND)
}

/// MPI's words for `code`.
fn message(code: c_int) -> String {
    let mut text = [0_u8; MESSAGE_BYTES];
    let mut len = 0;
    // SAFETY: the buffer is longer than MPI's longest message, and the length goes to a local.
    let result = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut len) };
    if result == ffi::MPI_SUCCESS as c_int {
        String::from_utf8_lossy(&text[..(len.max(0) as usize).min(MESSAGE_BYTES)]).into_owned()
    } else {
        "MPI has no words for it".into()
    }
}
