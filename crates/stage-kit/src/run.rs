//! [`main_with`]: from a result to an exit code; and stdout that may close.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::interrupt;
use crate::logging::BesideBars;
use crate::{Interrupted, UsageError};

static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs a binary's body and turns its result into the exit code, the causes printed on stderr.
///
/// 0 also when the reader of [`stdout`] went away; 2 for a [`UsageError`] anywhere among the causes (clap
/// exits with 2 itself); 128 + the signal's number for an [`Interrupted`] among them, which is told in one line
/// without the word error; 1 for every other error.
pub fn main_with(body: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    interrupt::install();
    let Err(error) = body() else { return ExitCode::SUCCESS };
    if STDOUT_CLOSED.load(Ordering::SeqCst) {
        return ExitCode::SUCCESS;
    }
    if let Some(Interrupted(signal)) = error.chain().find_map(|cause| cause.downcast_ref()) {
        let _ = BesideBars.write_all(format!("{error:#}\n").as_bytes());
        return ExitCode::from(u8::try_from(128 + signal).unwrap_or(1));
    }
    let _ = BesideBars.write_all(report(&error).as_bytes());
    let usage = error.chain().any(<dyn std::error::Error>::is::<UsageError>);
    ExitCode::from(if usage { 2 } else { 1 })
}

/// The error and, indented, what caused it; causes that a message already quotes are left out.
fn report(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut above = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !above.contains(&cause) {
            let _ = writeln!(text, "  caused by: {cause}");
        }
        above = cause;
    }
    text
}

/// Standard output for data. Once its reader went away, writing fails and [`main_with`] ends with 0.
///
/// `println!` would panic instead. Buffered by lines as `std::io::stdout` is; wrap it for bulk data.
pub fn stdout() -> Stdout {
    Stdout(())
}

/// See [`stdout`].
#[derive(Debug)]
pub struct Stdout(());

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write(bytes).inspect_err(note_closed)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush().inspect_err(note_closed)
    }
}

fn note_closed(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        STDOUT_CLOSED.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_listed_once() {
        let error = Err::<(), _>(io::Error::other("disk on fire")).context("cannot write x").unwrap_err();
        assert_eq!(report(&error), "error: cannot write x\n  caused by: disk on fire\n");
        let quoted = anyhow::anyhow!("inner").context("outer: inner");
        assert_eq!(report(&quoted), "error: outer: inner\n");
    }
    /// The child of the next test: a binary that writes until it cannot.
    #[test]
    #[ignore = "run by closed_stdout_is_success in a process of its own"]
    #[expect(clippy::exit, reason = "it stands for a binary's main")]
    fn child_writes_to_a_closed_pipe() {
        let code = main_with(|| {
            loop {
                stdout().write_all(b"data\n").context("cannot print the table")?;
            }
        });
        std::process::exit(i32::from(code != ExitCode::SUCCESS) + 10);
    }

    #[test]
    fn closed_stdout_is_success() {
        use std::io::Read;
        use std::process::{Command, Stdio};

        let name = "run::tests::child_writes_to_a_closed_pipe";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", name])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut start = [0; 100];
        child.stdout.take().unwrap().read_exact(&mut start).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(10));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("error:"));
    }

    #[test]
    fn exit_codes() {
        let failed = ExitCode::from(1);
        assert_eq!(main_with(|| Ok(())), ExitCode::SUCCESS);
        assert_eq!(
            main_with(|| Err(io::Error::from(io::ErrorKind::BrokenPipe).into())),
            failed,
            "not stdout's"
        );
        let usage = || Err::<(), _>(UsageError::new("--x is wrong")).context("while reading flags");
        assert_eq!(main_with(usage), ExitCode::from(2));
    }
}
