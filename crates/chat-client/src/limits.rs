//! [`Pace`]: at most so many starts per minute.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Spreads starts evenly.
#[derive(Debug)]
pub(crate) struct Pace {
    gap: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(per_minute: NonZeroUsize) -> Self {
        let gap = Duration::from_mins(1) / u32::try_from(per_minute.get()).unwrap_or(u32::MAX);
        Self { gap, next: Mutex::new(None) }
    }

    /// Waits for its turn.
    pub(crate) async fn turn(&self) {
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.unwrap_or_else(Instant::now).max(Instant::now());
            *next = Some(at + self.gap);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}
