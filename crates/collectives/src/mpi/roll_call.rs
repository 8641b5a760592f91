//! [`RollCall`]: after a time-out, the ranks tell each other that they are there, so that the missing ones can be named.
#![expect(unsafe_code, reason = "MPI is a C library")]

use std::ffi::c_int;
use std::thread;
use std::time::{Duration, Instant};

use mpi::ffi;

use super::engine::{Position, null_request};
use crate::CollectiveError;

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const TAG: c_int = 9;

/// A rank that is waiting hears a roll call that another has begun, and joins it.
pub(super) struct RollCall {
    world: ffi::MPI_Comm,
    /// The call that each rank says it is in.
    heard: Vec<Option<u64>>,
}

impl RollCall {
    pub(super) fn new(world: ffi::MPI_Comm, size: usize) -> Self {
        Self { world, heard: vec![None; size] }
    }

    /// Whether another rank has begun it.
    pub(super) fn has_begun(&self) -> bool {
        self.heard.iter().any(Option::is_some)
    }

    /// Takes in what others have said so far.
    pub(super) fn listen(&mut self, at: Position) -> Result<(), CollectiveError> {
        loop {
            let mut waiting = 0;
            let mut status = std::mem::MaybeUninit::<ffi::MPI_Status>::zeroed();
            // SAFETY: the communicator is valid, and the pointers are to locals.
            let code = unsafe {
                ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, TAG, self.world, &raw mut waiting, status.as_mut_ptr())
            };
            at.check("MPI_Iprobe", code)?;
            if waiting == 0 {
                return Ok(());
            }
            // SAFETY: a status is integers, for which zeros are valid, and MPI has filled it.
            let source = unsafe { status.assume_init() }.MPI_SOURCE;
            let mut number = 0_u64;
            // SAFETY: the message has come and is one word, which the local takes; no other thread can receive it first.
            let code = unsafe {
                ffi::MPI_Recv(
                    (&raw mut number).cast(),
                    1,
                    ffi::RSMPI_UINT64_T,
                    source,
                    TAG,
                    self.world,
                    ffi::RSMPI_STATUS_IGNORE,
                )
            };
            at.check("MPI_Recv", code)?;
            self.heard[source as usize] = Some(number);
        }
    }

    /// Calls the roll and gives the error that follows from it.
    pub(super) fn call(&mut self, at: Position, waited: Duration) -> CollectiveError {
        let Position { number, rank, size, .. } = at;
        self.heard[rank] = Some(number);
        let mut sends = self.say_present(at);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let sent = all_done(&mut sends);
            if self.listen(at).is_err() || (sent && self.heard.iter().all(Option::is_some)) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let which = |wanted: &dyn Fn(Option<u64>) -> bool| -> Vec<usize> {
            (0..size).filter(|rank| wanted(self.heard[*rank])).collect()
        };
        let call = at.call.to_owned();
        let missing = which(&|heard| heard.is_none());
        // Who is in an earlier call gave up there: no rank comes further than a call that all have announced.
        let lost = which(&|heard| heard.is_some_and(|heard| heard < number));
        if lost.is_empty() {
            let answered = size - 1 - missing.len();
            return CollectiveError::TimedOut { call, number, waited, missing, answered, rank, size };
        }
        let reason = "it gave up in an earlier call".into();
        CollectiveError::Lost { call, number, lost, reason, rank, size }
    }

    /// Sends this rank's position to all others. Neither the message nor the requests are ever freed, since a cut-off rank never takes it.
    fn say_present(&self, at: Position) -> Vec<ffi::MPI_Request> {
        let message: &'static u64 = Box::leak(Box::new(at.number));
        let mut requests = Vec::new();
        for other in (0..at.size).filter(|other| *other != at.rank) {
            let mut request = null_request();
            // SAFETY: the message is one word that lives for good, and the rank exists.
            let code = unsafe {
                ffi::MPI_Isend(
                    (&raw const *message).cast(),
                    1,
                    ffi::RSMPI_UINT64_T,
                    other as c_int,
                    TAG,
                    self.world,
                    &raw mut request,
                )
            };
            if at.check("MPI_Isend", code).is_ok() {
                requests.push(request);
            }
        }
        requests
    }
}

/// Whether all requests have ended, well or not.
fn all_done(requests: &mut Vec<ffi::MPI_Request>) -> bool {
    requests.retain_mut(|request| {
        let mut done = 0;
        // SAFETY: the request is one that MPI gave and that has not ended; the pointers are to locals.
        let code = unsafe { ffi::MPI_Test(request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) };
        code == ffi::MPI_SUCCESS as c_int && done == 0
    });
    requests.is_empty()
}
