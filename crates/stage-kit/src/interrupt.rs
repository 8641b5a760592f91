//! SIGINT and SIGTERM: half-written folders go away, or the loop is told to stop.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::logging::BARS;
use crate::output::remove_open_parts;

/// The first signal that came; 0 until then.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static DEFERRED: AtomicUsize = AtomicUsize::new(0);

/// While one lives, the first SIGINT or SIGTERM only sets [`Interrupt::requested`], so that a loop can
/// save its state and return [`crate::Interrupted`]. A second one, or the first without this guard, removes the output folders
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
        self.signal().is_some()
    }

    /// The number of the signal that came first, for [`crate::Interrupted`]. It stays known to later guards.
    pub fn signal(&self) -> Option<i32> {
        Some(SIGNAL.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
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
            let first = || SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if DEFERRED.load(Ordering::SeqCst) > 0 && first() {
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, ExitCode, Stdio};
    use std::time::Duration;

    use anyhow::Context;

    use super::*;
    use crate::{Interrupted, main_with};

    /// Exit codes of the child that no signal handler gives.
    const RIGHT: i32 = 43;
    const WRONG: i32 = 44;

    /// The child of the next tests: a loop that saves its state once a signal came, or, at its second, is at saving still.
    #[test]
    #[ignore = "run by the tests below in a process of its own"]
    #[expect(clippy::exit, reason = "it stands for a binary's main")]
    fn child_loops_until_a_signal() {
        let wanted: u8 = std::env::var("WANTED_SIGNAL").unwrap().parse().unwrap();
        let code = main_with(|| {
            let interrupt = Interrupt::defer();
            let mut out = std::io::stdout();
            writeln!(out, "ready")?;
            let signal = loop {
                if let Some(signal) = interrupt.signal() {
                    break signal;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            assert!(interrupt.requested());
            writeln!(out, "saving")?;
            if wanted == 0 {
                std::thread::sleep(Duration::from_mins(1));
            }
            Err(Interrupted(signal)).context("step 7 is saved in out.checkpoint")
        });
        std::process::exit(if code == ExitCode::from(128 + wanted) { RIGHT } else { WRONG });
    }

    /// Starts the child, sends it `signals` one by one, and gives its exit code and stderr.
    fn signalled(wanted: i32, signals: &[&str]) -> (Option<i32>, String) {
        let name = "interrupt::tests::child_loops_until_a_signal";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", name])
            .env("WANTED_SIGNAL", wanted.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for (signal, word) in signals.iter().zip(["ready", "saving"]) {
            assert!(lines.any(|line| line.unwrap().contains(word)), "never {word}");
            let kill = format!("kill -{signal} {}", child.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (child.wait().unwrap().code(), stderr)
    }

    #[test]
    fn a_loop_saves_and_ends_with_the_code_of_the_signal() {
        for (number, signal) in [(SIGINT, "INT"), (SIGTERM, "TERM")] {
            let (code, stderr) = signalled(number, &[signal]);
            assert_eq!(code, Some(RIGHT), "{stderr}");
            let says = format!("step 7 is saved in out.checkpoint: interrupted by SIG{signal}\n");
            assert!(stderr.ends_with(&says), "{stderr}");
        }
    }

    #[test]
    fn the_second_signal_ends_at_once() {
        let (code, stderr) = signalled(0, &["INT", "TERM"]);
        assert_eq!(code, Some(128 + SIGTERM), "{stderr}");
    }
}
