//! [`ChatReply`]: what came back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatReply {
    /// The words, never blank.
    pub text: String,
    /// What a reasoning model thought first, where the server gives it apart.
    pub reasoning: Option<String>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What it took, as the server counts; zeros where it does not.
    pub usage: Usage,
    /// One entry per token, if they were asked for and given.
    pub logprobs: Vec<TokenLogprob>,
    /// The model that answered, as the server calls it.
    pub model: String,
    /// How many attempts it took, from 1.
    pub attempts: u32,
    /// From the first attempt to the answer.
    pub elapsed: Duration,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model was done, or said one of the stop texts.
    Stop,
    /// It reached `max_tokens` or the end of its context: the words may break off.
    Length,
    /// Another, in the server's word.
    Other(String),
}

/// Tokens of one or of many requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompts, pictures included.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of the answers.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TokenLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// The likeliest tokens at its place, as many as were asked for.
    #[serde(default)]
    pub top_logprobs: Vec<TokenLogprob>,
}

/// Why a body is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("it is not the JSON of a chat completion")]
    Json(#[source] serde_json::Error),
    #[error("it has no choices")]
    NoChoices,
    #[error("its text is empty (finish reason {0:?})")]
    Empty(String),
    #[error("it holds an error in place of an answer: {0}")]
    Error(String),
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    #[serde(default)]
    model: String,
    /// Some servers answer 200 with an error inside.
    error: Option<serde_json::Value>,
    message: Option<String>,
    object: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Message>,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<TokenLogprob>>,
}

/// The answer in a body; attempts and time are the caller's to fill in.
pub(crate) fn parse(body: &[u8]) -> Result<ChatReply, NoAnswer> {
    let body: Body = serde_json::from_slice(body).map_err(NoAnswer::Json)?;
    if let Some(error) = body.error.filter(|error| !error.is_null()) {
        return Err(NoAnswer::Error(message_of(&error)));
    }
    if body.object.as_deref() == Some("error") {
        return Err(NoAnswer::Error(body.message.unwrap_or_default()));
    }
    let choice = body.choices.unwrap_or_default().into_iter().next().ok_or(NoAnswer::NoChoices)?;
    let (text, reasoning) = match choice.message {
        Some(message) => (message.content.unwrap_or_default(), message.reasoning_content),
        None => (String::new(), None),
    };
    let finish_reason = match choice.finish_reason.as_deref() {
        Some("stop") | None => FinishReason::Stop,
        Some("length") => FinishReason::Length,
        Some(other) => FinishReason::Other(other.to_owned()),
    };
    if text.trim().is_empty() {
        return Err(NoAnswer::Empty(choice.finish_reason.unwrap_or_default()));
    }
    Ok(ChatReply {
        text,
        reasoning,
        finish_reason,
        usage: body.usage.unwrap_or_default(),
        logprobs: choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default(),
        model: body.model,
        attempts: 0,
        elapsed: Duration::ZERO,
    })
}

/// What an error object says: its `message`, or all of it.
pub(crate) fn message_of(error: &serde_json::Value) -> String {
    let message = error.get("message").or_else(|| error.get("detail")).unwrap_or(error);
    message.as_str().map_or_else(|| message.to_string(), str::to_owned)
}
