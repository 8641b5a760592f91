//! [`Breaker`]: what is known of whether the server is there; while it is gone, one request asks and the others wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Failures to reach the server in a row, over all requests, after which it counts as gone.
const GONE_AFTER: u32 = 3;

/// What is known of the server.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Since when it is gone.
    gone: Option<Instant>,
    /// Whether a request is asking.
    asked: bool,
    last: String,
}

/// What a request should do.
pub(crate) enum Door<'a> {
    /// Go ahead.
    Open,
    /// Ask whether the server is back, and tell.
    Ask(Asking<'a>),
    /// It has been gone too long.
    Gone { waited: Duration, last: String },
}

/// The task of asking, which another request takes over if it is dropped.
pub(crate) struct Asking<'a>(&'a Breaker);

impl Breaker {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: Notify::new() }
    }

    /// Waits until there is something to do. `patience` is how long a server may be gone.
    pub(crate) async fn pass(&self, patience: Duration) -> Door<'_> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                let Some(since) = state.gone else { return Door::Open };
                let waited = since.elapsed();
                if waited >= patience {
                    return Door::Gone { waited, last: state.last.clone() };
                }
                if !state.asked {
                    state.asked = true;
                    return Door::Ask(Asking(self));
                }
            }
            changed.await;
        }
    }

    /// The server answered, well or badly.
    pub(crate) fn reached(&self) {
        let mut state = self.lock();
        state.failures = 0;
        if state.gone.take().is_some() {
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// The server could not be reached. Gives whether it has just become gone.
    pub(crate) fn not_reached(&self, why: &str) -> bool {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        why.clone_into(&mut state.last);
        let just_gone = state.failures >= GONE_AFTER && state.gone.is_none();
        if just_gone {
            state.gone = Some(Instant::now());
        }
        just_gone
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.lock().gone.is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().asked = false;
        self.0.changed.notify_waiters();
    }
}
