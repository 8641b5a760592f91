//! The JSON of answers: chat completions, their chunks, and the list of models.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::row::{Ending, FinishReason, Piece};
use crate::tokens::LoggedToken;

/// What all JSON of one answer shares.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
}

#[derive(Serialize)]
struct Completion<'a> {
    #[serde(flatten)]
    head: &'a Head,
    object: &'static str,
    choices: [Choice; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice {
    index: u32,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: FinishReason,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<LoggedToken>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    object: &'static str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: u32,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<FinishReason>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: [Model<'a>; 1],
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl From<Ending> for Usage {
    fn from(ending: Ending) -> Self {
        let Ending { prompt_tokens, completion_tokens, .. } = ending;
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

impl Head {
    /// Of answer `number` of a server started at `started`.
    pub(crate) fn new(model: &str, started: u64, number: u64) -> Self {
        Self { id: format!("chatcmpl-{started:x}-{number}"), created: now(), model: model.to_owned() }
    }

    /// A complete answer; `logged` if log-probabilities were asked for.
    pub(crate) fn completion(&self, answer: Piece, ending: Ending, logged: bool) -> String {
        let message = Message { role: "assistant", content: answer.text, refusal: None };
        let logprobs = logged.then_some(Logprobs { content: answer.logprobs });
        let choice = Choice { index: 0, message, logprobs, finish_reason: ending.reason };
        let usage = ending.into();
        json(&Completion { head: self, object: "chat.completion", choices: [choice], usage })
    }

    /// The first chunk, which says who speaks.
    pub(crate) fn first_chunk(&self) -> String {
        self.chunk(Delta { role: Some("assistant"), content: Some(String::new()) }, None, None)
    }

    /// A chunk with more of the answer.
    pub(crate) fn piece_chunk(&self, piece: Piece, logged: bool) -> String {
        let logprobs = logged.then_some(Logprobs { content: piece.logprobs });
        self.chunk(Delta { role: None, content: Some(piece.text) }, logprobs, None)
    }

    /// The chunk that says why the answer ended.
    pub(crate) fn last_chunk(&self, ending: Ending) -> String {
        self.chunk(Delta::default(), None, Some(ending.reason))
    }

    /// The chunk that says what the answer took.
    pub(crate) fn usage_chunk(&self, ending: Ending) -> String {
        json(&Chunk { head: self, object: CHUNK, choices: Vec::new(), usage: Some(ending.into()) })
    }

    fn chunk(&self, delta: Delta, logprobs: Option<Logprobs>, finish_reason: Option<FinishReason>) -> String {
        let choice = ChunkChoice { index: 0, delta, logprobs, finish_reason };
        json(&Chunk { head: self, object: CHUNK, choices: vec![choice], usage: None })
    }
}

const CHUNK: &str = "chat.completion.chunk";

/// The only model there is.
fn model(id: &str, created: u64) -> Model<'_> {
    Model { id, object: "model", created, owned_by: "lmm-serve" }
}

/// `GET /v1/models`.
pub(crate) fn model_list(id: &str, created: u64) -> String {
    json(&ModelList { object: "list", data: [model(id, created)] })
}

/// `GET /v1/models/{id}`.
pub(crate) fn model_card(id: &str, created: u64) -> String {
    json(&model(id, created))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs with text keys are JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ENDING: Ending = Ending { reason: FinishReason::Length, prompt_tokens: 5, completion_tokens: 2 };

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn completions() {
        let head = Head { id: "chatcmpl-1".into(), created: 7, model: "m".into() };
        let answer = Piece { text: "a ring".into(), logprobs: Vec::new() };
        let want = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "a ring", "refusal": null},
                         "logprobs": null, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        });
        assert_eq!(parsed(&head.completion(answer, ENDING, false)), want);
        let logged = parsed(&head.completion(Piece::default(), ENDING, true));
        assert_eq!(logged["choices"][0]["logprobs"], json!({"content": []}));
    }

    #[test]
    fn chunks() {
        let head = Head::new("m", 255, 3);
        let first = parsed(&head.first_chunk());
        assert_eq!(
            (&first["id"], &first["object"]),
            (&json!("chatcmpl-ff-3"), &json!("chat.completion.chunk"))
        );
        assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(first["choices"][0]["finish_reason"], Value::Null);
        let piece = Piece { text: "a".into(), logprobs: Vec::new() };
        assert_eq!(parsed(&head.piece_chunk(piece, false))["choices"][0]["delta"], json!({"content": "a"}));
        let last = parsed(&head.last_chunk(ENDING));
        assert_eq!(
            (&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]),
            (&json!({}), &json!("length"))
        );
        assert!(last.get("usage").is_none());
        let usage = parsed(&head.usage_chunk(ENDING));
        assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(7)));
    }
}
