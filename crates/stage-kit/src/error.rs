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
