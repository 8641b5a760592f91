//! [`Run`]: what a binary did.

use std::process::Output;

/// A finished run of a binary.
#[derive(Debug)]
pub struct Run {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it printed: data.
    pub stdout: String,
    /// What it logged, and its error.
    pub stderr: String,
    command: String,
}

impl Run {
    pub(crate) fn of(command: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let run = Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            command,
        };
        assert!(!run.stderr.contains("panicked at"), "a panic\n{run}");
        run
    }

    /// Checks the exit code.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Checks that stderr says each of `words`.
    ///
    /// # Panics
    /// When it leaves one out.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "stderr does not say {word:?}\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, stdout, stderr, command } = self;
        write!(f, "$ {command}\nexit code {code:?}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}
