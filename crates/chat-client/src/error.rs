//! [`ChatError`]: why there is no answer.

use std::time::Duration;

/// Why there is no answer. None of them shows the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// Options that make no client.
    #[error("{field} is {got:?}, expected {expected}")]
    Options {
        /// The option.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// The system's TLS could not be set up.
    #[error("cannot set up secure connections")]
    Tls {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused the request for its content, so that trying again would not help.
    #[error("{url} answered {status}: {message}{}", advice(*status))]
    Refused {
        /// Where it was sent.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server says.
        message: String,
    },
    /// Every attempt failed.
    #[error("{url}: no answer in {attempts} attempts; the last: {last}")]
    GaveUp {
        /// Where it was sent.
        url: String,
        /// How many there were.
        attempts: u32,
        /// Why the last one failed.
        last: String,
    },
    /// The server was gone for longer than the client waits.
    #[error("{url} has been gone for {} s: start the server and go on; the last attempt: {last}", waited.as_secs())]
    Gone {
        /// The server.
        url: String,
        /// For how long it was waited for.
        waited: Duration,
        /// Why the last attempt failed.
        last: String,
    },
    /// The list of models that a server gave is none.
    #[error("{url} gave no list of models: {problem}{}", status.map_or("", advice))]
    Models {
        /// Where it was asked for.
        url: String,
        /// The HTTP status, if the server answered.
        status: Option<u16>,
        /// What is wrong.
        problem: String,
    },
}

fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 => " (is the API key right?)",
        404 => " (are the endpoint, up to /v1, and the model's name right?)",
        413 => " (fewer or smaller images)",
        _ => "",
    }
}
