//! SIGINT and SIGTERM: half-written folders go away, or the loop is told to stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::logging::BARS;
use crate::output::remove_open_parts;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static DEFERRED: AtomicUsize = AtomicUsize::new(0);

/// While one lives, the first SIGINT or SIGTERM only sets [`Interrupt::requested`], so that a loop can
/// save its state and return. A second one, or the first without this guard, removes the output folders
/// in the making and exits with 128 + the signal's number.
#[derive(Debug)]
#[must_use = "signals are deferred only while it lives"]
pub struct Interrupt(());

impl Interrupt {
    /// Defers signals.
    pub fn defer() -> Self {
        DEFERRED.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// Whether a signal came.
    pub fn requested(&self) -> bool {
        REQUESTED.load(Ordering::SeqCst)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        DEFERRED.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Starts the thread that waits for signals. SIGHUP keeps its disposition, so that nohup works.
pub(crate) fn install() {
    let mut signals = match Signals::new([SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => {
            tracing::warn!(
                "cannot watch for signals ({error}): an interrupted run will leave its part folder"
            );
            return;
        }
    };
    std::thread::spawn(move || {
        for signal in &mut signals {
            if DEFERRED.load(Ordering::SeqCst) > 0 && !REQUESTED.swap(true, Ordering::SeqCst) {
                tracing::warn!("interrupted: stopping at the next safe point (once more to stop at once)");
                continue;
            }
            let _ = BARS.clear();
            tracing::error!("interrupted");
            let _held = remove_open_parts();
            #[expect(clippy::exit, reason = "the other threads cannot be unwound from here")]
            std::process::exit(128 + signal);
        }
    });
}
