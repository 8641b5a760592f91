//! [`ExplainKitError`].

use std::path::{Path, PathBuf};

use chat_client::{ChatError, LedgerError};
use explain::ExplainError;
use sae_types::HookPoint;
use stage_kit::UsageError;

/// What goes wrong between flags, files and a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainKitError {
    /// Flags that cannot be meant.
    #[error("{0}")]
    Usage(#[source] UsageError),
    /// A file that cannot be had.
    #[error("cannot read {what} {}", path.display())]
    Io {
        /// What it is.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{} is no {expected}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// Why it is not.
        #[source]
        source: serde_json::Error,
    },
    /// A ledger that cannot be read.
    #[error("{0}")]
    Ledger(#[source] LedgerError),
    /// A published file that cannot be read.
    #[error("{0}")]
    Published(#[source] ExplainError),
    /// A path without anything.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A folder without explanations.
    #[error("{} holds neither {stage}.jsonl nor a file such as model_layers_24.json: name the file", path.display())]
    NoExplanations {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        stage: String,
    },
    /// Explanations of nothing.
    #[error("{} holds no text of any feature", path.display())]
    NoTexts {
        /// The file or folder.
        path: PathBuf,
    },
    /// Filters of nothing.
    #[error("{} names no hook point", path.display())]
    EmptyFilters {
        /// The file.
        path: PathBuf,
    },
    /// A hook point that nothing is known of.
    #[error("there is nothing of {hook}: there are {}", known.iter().map(HookPoint::as_str).collect::<Vec<_>>().join(", "))]
    UnknownHook {
        /// What was asked for.
        hook: HookPoint,
        /// What there is.
        known: Vec<HookPoint>,
    },
    /// Flags that no feature fits.
    #[error("the flags choose none of the features there are")]
    NothingChosen,
    /// A server that cannot be asked what it serves.
    #[error("{advice}")]
    Server {
        /// What to do.
        advice: String,
        /// What it said.
        #[source]
        source: Box<ChatError>,
    },
    /// A server without models.
    #[error("the server lists no model: name one with --explainer")]
    NoModel,
}

impl ExplainKitError {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(UsageError::new(message))
    }

    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

impl From<LedgerError> for ExplainKitError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}
