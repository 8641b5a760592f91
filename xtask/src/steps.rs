//! Steps of a chore: each is announced, timed, and listed with its peak memory at the end.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The steps done so far, for the table at the end.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
}

struct Step {
    name: String,
    outcome: Outcome,
    took: Duration,
    /// Largest resident memory of the step's process, in bytes; none for work done in xtask itself.
    peak: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
    Skipped,
}

impl Steps {
    /// Runs `chore`, then prints the table of its steps whether it went well or not.
    pub(crate) fn run(name: &str, chore: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let mut steps = Self::default();
        let result = chore(&mut steps);
        print!("{}", steps.table(name, start.elapsed()));
        result
    }

    /// Work done in this process. What it returns is printed under the step's name.
    pub(crate) fn work(&mut self, name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        self.record(name, || work().map(|summary| (summary, None)))
    }

    /// A subprocess with this process's stdout and stderr; a failure of it fails the step.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.record(name, || {
            let peak = run_measured(command)?;
            Ok((String::new(), peak))
        })
    }

    /// Notes that a step was left out, and why.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        println!("--- {name}: skipped, {reason}");
        let name = format!("{name} ({reason})");
        self.done.push(Step { name, outcome: Outcome::Skipped, took: Duration::ZERO, peak: None });
    }

    fn record(&mut self, name: &str, work: impl FnOnce() -> Result<(String, Option<u64>)>) -> Result<()> {
        println!("--- {name}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        let (outcome, peak) = match &result {
            Ok((summary, peak)) => {
                if !summary.is_empty() {
                    println!("{summary}");
                }
                println!("    {name}: {}", figures(took, *peak));
                (Outcome::Done, *peak)
            }
            Err(_) => (Outcome::Failed, None),
        };
        self.done.push(Step { name: name.to_owned(), outcome, took, peak });
        result.map(drop).with_context(|| format!("step `{name}` failed"))
    }

    fn table(&self, chore: &str, total: Duration) -> String {
        let width = self.done.iter().map(|step| step.name.len()).max().unwrap_or(0).max("total".len());
        let row = |name: &str, says: &str| format!("  {name:width$}  {says}\n");
        let rows = self.done.iter().map(|step| {
            let says = match step.outcome {
                Outcome::Done => figures(step.took, step.peak),
                Outcome::Failed => format!("FAILED after {}", seconds(step.took)),
                Outcome::Skipped => "skipped".to_owned(),
            };
            row(&step.name, &says)
        });
        let rows: String = rows.collect();
        format!("\n{chore}\n{rows}{}", row("total", &seconds(total)))
    }
}

fn figures(took: Duration, peak: Option<u64>) -> String {
    match peak {
        Some(bytes) => format!("{:>9}, peak memory {:>6} MiB", seconds(took), bytes >> 20),
        None => format!("{:>9}", seconds(took)),
    }
}

fn seconds(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", took.as_secs() / 60, took.as_secs() % 60)
    }
}

/// Runs a command to its end and returns its peak resident memory in bytes.
#[cfg(target_os = "linux")]
fn run_measured(command: &mut Command) -> Result<Option<u64>> {
    use std::os::unix::process::ExitStatusExt;

    let said = command_line(command);
    let child = command.spawn().with_context(|| format!("cannot start `{said}`"))?;
    let (status, kibibytes) = wait_with_usage(&child).with_context(|| format!("waiting for `{said}`"))?;
    let status = std::process::ExitStatus::from_raw(status);
    if !status.success() {
        bail!("`{said}` ended with {status}");
    }
    Ok(Some(kibibytes * 1024))
}

/// Waits for a child and returns its wait status and peak resident memory in KiB.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std offers no way to read the resource use of one child")]
fn wait_with_usage(child: &std::process::Child) -> std::io::Result<(i32, u64)> {
    let mut status = 0;
    loop {
        // SAFETY: rusage is plain integers, for which all zeros is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals of the types wait4 asks for. Nothing has waited
        // for `child`, so the id is still this child's.
        let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &raw mut status, 0, &raw mut usage) };
        if waited >= 0 {
            return Ok((status, usage.ru_maxrss as u64));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Peak memory is only measured on Linux, where `ru_maxrss` is in KiB.
#[cfg(not(target_os = "linux"))]
fn run_measured(command: &mut Command) -> Result<Option<u64>> {
    let said = command_line(command);
    let status = command.status().with_context(|| format!("cannot start `{said}`"))?;
    if !status.success() {
        bail!("`{said}` ended with {status}");
    }
    Ok(None)
}

/// The command as one would type it, for messages.
fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_and_stays_in_the_table() {
        let mut steps = Steps::default();
        steps.work("first", || Ok("fine".to_owned())).unwrap();
        let error = steps.command("second", Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(format!("{error:#}").contains("step `second` failed"), "{error:#}");
        assert!(format!("{error:#}").contains("exit 3"), "{error:#}");
        let table = steps.table("demo", Duration::from_secs(75));
        assert!(table.contains("second  FAILED after"), "{table}");
        assert!(table.contains("1 min 15 s"), "{table}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Steps::default().command("x", &mut Command::new("no-such-program-here")).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program-here"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn peak_memory_is_that_of_the_child() {
        let peak = run_measured(Command::new("sh").args(["-c", "true"])).unwrap().unwrap();
        assert!((100 << 10..200 << 20).contains(&peak), "{peak} bytes for a shell that did nothing");
    }
}
