//! [`UniqueId`]: what the ranks of one NCCL communicator share before it exists.
#![expect(unsafe_code, reason = "NCCL is a C library")]

use std::time::Duration;

use cudarc::nccl::sys;

use super::engine::require_nccl;
use crate::meeting::Meeting;
use crate::rendezvous::meet;
use crate::{Collective, CollectiveError, Rendezvous};

pub(super) const BYTES: usize = 128;

/// Made by rank 0, given to all.
#[derive(Debug)]
pub struct UniqueId {
    pub(super) bytes: [u8; BYTES],
    pub(super) meeting: Option<Meeting>,
}

impl UniqueId {
    /// Goes from rank 0 to all `ranks`.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Unavailable`] if rank 0 has no NCCL; those of [`Collective::broadcast`].
    pub fn over(ranks: &dyn Collective) -> Result<Self, CollectiveError> {
        // Rank 0 takes part even if it has nothing to give, so that the others do not wait in vain.
        let made = (ranks.rank() == 0).then(make);
        let mut bytes = match &made {
            Some(Ok(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        };
        ranks.broadcast(0, &mut bytes)?;
        if let Some(Err(error)) = made {
            return Err(error);
        }
        Ok(Self { bytes: whole(&bytes)?, meeting: None })
    }

    /// Goes from rank 0 to all ranks that come to `place` within `timeout`.
    ///
    /// The connections stay open: over them ranks tell who died, and who is missing after a time-out.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Unavailable`] on rank 0 if it has no NCCL; [`CollectiveError::Rendezvous`] if ranks do not come, come twice, or
    /// belong to a job of another size.
    ///
    /// # Panics
    ///
    /// If `rank` is not below `size`.
    pub fn rendezvous(
        place: &Rendezvous,
        rank: usize,
        size: usize,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        let gift = if rank == 0 { make()?.to_vec() } else { Vec::new() };
        let (bytes, meeting) = meet(place, rank, size, timeout, &gift)?;
        Ok(Self { bytes: whole(&bytes)?, meeting: Some(meeting) })
    }
}

fn whole(bytes: &[u8]) -> Result<[u8; BYTES], CollectiveError> {
    bytes.try_into().map_err(|_| CollectiveError::Unavailable {
        engine: "NCCL",
        reason: format!("rank 0 sent {} bytes in place of an id of {BYTES}: look at its log", bytes.len()),
    })
}

fn make() -> Result<[u8; BYTES], CollectiveError> {
    require_nccl()?;
    let mut id = sys::ncclUniqueId { internal: [0; BYTES] };
    // SAFETY: NCCL is there, and writes the id into the local.
    let code = unsafe { sys::ncclGetUniqueId(&raw mut id) };
    if code != sys::ncclResult_t::ncclSuccess {
        return Err(CollectiveError::Unavailable {
            engine: "NCCL",
            reason: format!("it makes no id ({code:?}): run with NCCL_DEBUG=WARN to see why"),
        });
    }
    Ok(id.internal.map(|byte| byte.to_ne_bytes()[0]))
}
