//! The errors of this crate.

use std::path::PathBuf;

/// A command line that cannot be meant: exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UsageError {
    message: String,
}

impl UsageError {
    /// Names the flag or variable at fault and what to do.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// A run that a signal stopped and that saved what it had: exit code 128 + the signal's number.
///
/// A loop under [`crate::Interrupt`] returns it; context around it says what was saved and how to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {}", signal_name(*.0))]
pub struct Interrupted(pub i32);

fn signal_name(signal: i32) -> String {
    match signal {
        signal_hook::consts::SIGINT => "SIGINT".to_owned(),
        signal_hook::consts::SIGTERM => "SIGTERM".to_owned(),
        other => format!("signal {other}"),
    }
}

/// What can go wrong around a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// The output folder holds something already.
    #[error("{} exists and is not empty: choose another folder or pass --overwrite", path.display())]
    Occupied {
        /// The folder asked for.
        path: PathBuf,
    },
    /// The output path is a file.
    #[error("{} exists and is not a folder: choose another path", path.display())]
    NotAFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// The output path has no last part to name a folder by.
    #[error("{:?} does not name a folder", path.display().to_string())]
    Unnamed {
        /// The path asked for.
        path: PathBuf,
    },
    /// Another run has the checkpoint folder open.
    #[error(
        "{} is in use by {holder}: wait for that run to end, end it, or choose another --save-dir",
        path.display()
    )]
    InUse {
        /// The checkpoint folder.
        path: PathBuf,
        /// Which process, on which machine, as its lock file says.
        holder: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl KitError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
