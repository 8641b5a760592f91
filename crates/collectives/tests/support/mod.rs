//! Runs the example `exercise` under mpirun, and what came of it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No run takes longer, even where mpirun fails to end it.
const LIMIT: Duration = Duration::from_mins(1);

/// The example, which `cargo test` and `cargo nextest run` build beside the tests.
pub(crate) fn exercise() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/exercise");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p collectives --features mpi --examples",
        path.display()
    );
    path
}

pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
    pub(crate) seconds: f64,
}

impl Ended {
    #[track_caller]
    pub(crate) fn says(&self, words: &str) -> &Self {
        assert!(self.output.contains(words), "no {words:?} in\n{}", self.output);
        self
    }

    /// Checks that the run failed within `seconds`, by itself.
    #[track_caller]
    pub(crate) fn failed_within(&self, seconds: f64) -> &Self {
        let Self { code, output, seconds: took } = self;
        assert!(code.is_some_and(|code| code != 0), "ended with {code:?}\n{output}");
        assert!(*took < seconds, "took {took:.1} s, not {seconds} s\n{output}");
        self
    }

    /// Checks that the run succeeded and that each of `size` ranks says "ok".
    #[track_caller]
    pub(crate) fn succeeded(&self, size: usize) {
        assert_eq!(self.code, Some(0), "{}", self.output);
        for rank in 0..size {
            self.says(&format!("rank {rank} ok"));
        }
    }
}

/// Starts `command` with its outputs in one file.
pub(crate) fn start(command: &mut Command) -> (Child, tempfile::NamedTempFile, Instant) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let out = file.reopen().unwrap();
    let err = out.try_clone().unwrap();
    let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
    (child, file, Instant::now())
}

/// Waits for the end, or kills what does not end.
pub(crate) fn wait((mut child, file, start): (Child, tempfile::NamedTempFile, Instant)) -> Ended {
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let seconds = start.elapsed().as_secs_f64();
    let output = std::fs::read_to_string(file.path()).unwrap();
    Ended { code: status, output, seconds }
}
