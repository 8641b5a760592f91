//! [`ExplainKitError`].

use std::error::Error;
use std::path::{Path, PathBuf};

use chat_client::{ChatError, LedgerError};
use explain::ExplainError;
use sae_types::{FilterError, HookPoint};
use stage_kit::{KitError, UsageError};

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
    /// A run in which every question failed.
    #[error("nothing was answered, {failed} features failed; the first: {first}")]
    NothingAnswered {
        /// How many failed.
        failed: u64,
        /// The first of them, and why.
        first: String,
    },
    /// Something below failed.
    #[error("{context}")]
    Within {
        /// What was tried, or what the failure itself says where that is enough.
        context: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ExplainKitError {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(UsageError::new(message))
    }

    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn within(
        context: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Within { context: context.into(), source: source.into() }
    }

    /// The message and its causes in one line, for a ledger; causes that the message before them quotes are left out.
    pub fn told(&self) -> String {
        let mut text = self.to_string();
        let mut above = text.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !above.contains(&message) {
                text = format!("{text}: {message}");
            }
            above = message;
            cause = error.source();
        }
        text
    }
}

/// Says what was tried when it failed.
pub(crate) trait Trying<T> {
    fn trying(self, context: impl FnOnce() -> String) -> Result<T, ExplainKitError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Trying<T> for Result<T, E> {
    fn trying(self, context: impl FnOnce() -> String) -> Result<T, ExplainKitError> {
        self.map_err(|source| ExplainKitError::within(context(), source))
    }
}

/// Errors whose own words say enough.
macro_rules! from_below {
    ($($error:ty),*) => {
        $(impl From<$error> for ExplainKitError {
            fn from(error: $error) -> Self {
                Self::within(error.to_string(), error)
            }
        })*
    };
}

from_below!(act_cache::CacheError, mm_data::DataError, ExplainError, KitError, ChatError, FilterError);

impl From<LedgerError> for ExplainKitError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let path = PathBuf::from("x.json");
        let error = ExplainError::Published { path, problem: "no list".to_owned() };
        let kit = ExplainKitError::from(error);
        assert_eq!(kit.told(), "x.json is no file of explanations: no list");
        let within = Err::<(), _>(kit).trying(|| "sample 3".to_owned()).unwrap_err();
        assert_eq!(within.told(), "sample 3: x.json is no file of explanations: no list");
    }
}
