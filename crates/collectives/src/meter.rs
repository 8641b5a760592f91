//! [`Traffic`], and the meter that every backend counts it with.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What went through a [`Collective`](crate::Collective) since its start.
///
/// Bytes are payload, not what an engine makes of it: an all-reduce counts its length once as sent and once as received; a gather counts
/// as sent what a rank gives and as received what comes from others; a broadcast counts as sent at the root and as received elsewhere.
/// One rank alone sends and receives nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Calls that succeeded.
    pub calls: u64,
    /// Bytes that this rank gave.
    pub sent_bytes: u64,
    /// Bytes that this rank received.
    pub received_bytes: u64,
    /// Wall-clock seconds inside the calls, waiting included.
    pub seconds: f64,
}

#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Traffic>);

impl Meter {
    pub(crate) fn count(&self, since: Instant, sent: usize, received: usize) {
        let mut traffic = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.calls += 1;
        traffic.sent_bytes += sent as u64;
        traffic.received_bytes += received as u64;
        traffic.seconds += since.elapsed().as_secs_f64();
    }

    pub(crate) fn traffic(&self) -> Traffic {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
