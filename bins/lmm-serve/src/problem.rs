//! [`Problem`]: why a request has no answer, in the JSON that OpenAI's clients expect.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// What a client is asked to wait before it tries again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Why a request has no answer.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The member of the request that is at fault.
    pub(crate) param: Option<String>,
    code: Option<&'static str>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, message: impl Into<String>, code: Option<&'static str>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// A request that cannot be served as it is.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message, None)
    }

    /// A member of the request that cannot be served as it is.
    pub(crate) fn of(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad(message) }
    }

    /// A prompt that the model cannot read whole; `length` says how long it is.
    pub(crate) fn too_long(length: &str, context: usize) -> Self {
        let message = format!(
            "the messages are {length} long; this server reads at most {context} tokens, with room for an answer"
        );
        let code = Some("context_length_exceeded");
        Self { param: Some("messages".to_owned()), ..Self::new(StatusCode::BAD_REQUEST, message, code) }
    }

    pub(crate) fn no_such_model(model: &str, served: &str) -> Self {
        let message = format!("the model {model:?} does not exist here; this server has {served:?}");
        let code = Some("model_not_found");
        Self { param: Some("model".to_owned()), ..Self::new(StatusCode::NOT_FOUND, message, code) }
    }

    pub(crate) fn no_such_path(method: &str, path: &str) -> Self {
        let message = format!(
            "there is no {method} {path}; there are POST /v1/chat/completions, GET /v1/models, /health and /metrics"
        );
        Self::new(StatusCode::NOT_FOUND, message, Some("unknown_url"))
    }

    pub(crate) fn key(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message, Some("invalid_api_key"))
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request is larger than {limit} bytes (--max-body)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message, None)
    }

    pub(crate) fn no_json() -> Self {
        let message = "the request must have the header Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message, None)
    }

    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time", None)
    }

    /// The server has no place for another request now.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message, Some("overloaded"))
    }

    /// The server is up, but there is no model in it any more.
    pub(crate) fn gone() -> Self {
        Self::own("the model's thread is gone; restart the server")
    }

    /// What the server, not the client, did wrong.
    pub(crate) fn own(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message, None)
    }

    /// The JSON of the error.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!(self.body())
    }

    fn body(&self) -> Body<'_> {
        let r#type = if self.status.is_server_error() { "server_error" } else { "invalid_request_error" };
        Body {
            error: Inner { message: &self.message, r#type, param: self.param.as_deref(), code: self.code },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_json_is_openais() {
        let problem = Problem::no_such_model("gpt", "shapes");
        let want = json!({"error": {
            "message": "the model \"gpt\" does not exist here; this server has \"shapes\"",
            "type": "invalid_request_error", "param": "model", "code": "model_not_found",
        }});
        assert_eq!(problem.json(), want);
        let busy = Problem::busy("full").into_response();
        assert_eq!(
            (busy.status(), busy.headers()[header::RETRY_AFTER].as_bytes()),
            (StatusCode::SERVICE_UNAVAILABLE, &b"1"[..])
        );
        assert_eq!(Problem::own("x").json()["error"]["type"], "server_error");
    }
}
