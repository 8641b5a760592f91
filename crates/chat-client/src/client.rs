//! [`ChatClient`]: one request after the other, or many at once, until each has its answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::breaker::{Breaker, Door};
use crate::limits::Pace;
use crate::totals::{Counters, add};
use crate::{ChatError, ChatReply, ChatRequest, ClientOptions, Totals, reply, retry};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for an answer when asking whether a server is back.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two such questions.
const LONGEST_ASK_PAUSE: Duration = Duration::from_secs(5);

/// A client of one server. Clones share everything.
#[derive(Clone, Debug)]
pub struct ChatClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    options: ClientOptions,
    completions: Url,
    models: Url,
    places: Semaphore,
    pace: Option<Pace>,
    breaker: Breaker,
    counters: Counters,
}

/// Why an attempt failed.
enum Failure {
    /// Trying again would not help.
    Refused { status: StatusCode, message: String },
    /// The server answered that it cannot now, or answered nonsense.
    Unwell { why: String, asked: Option<Duration> },
    /// There was no answer.
    Unreached { why: String },
}

impl ChatClient {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// When the base URL or the key cannot be used, or TLS cannot be set up.
    pub fn new(options: ClientOptions) -> Result<Self, ChatError> {
        let wrong_url = |expected| {
            // What may hold a secret is not repeated.
            let is_plain = !options.base_url.contains(['@', '?', '#']);
            let got = if is_plain { options.base_url.clone() } else { "hidden".to_owned() };
            ChatError::Options { field: "the base URL", expected, got }
        };
        const ADDRESS: &str = "an address such as http://127.0.0.1:30000/v1";
        let base = Url::parse(&options.base_url).map_err(|_| wrong_url(ADDRESS))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong_url(ADDRESS));
        }
        if holds_secrets(&base) {
            return Err(wrong_url(
                "an address without user, password or key: put the key into the environment",
            ));
        }
        let endpoint = |segments: &[&str]| {
            let mut url = base.clone();
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop_if_empty().extend(segments);
            }
            url
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &options.key {
            let mut value = HeaderValue::from_str(&key.bearer()).map_err(|_| ChatError::Options {
                field: "the API key",
                expected: "one line of visible characters",
                got: "hidden".to_owned(),
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls()?)
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(options.timeout)
            // A redirect would turn the request into another, and could carry the key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ChatError::Tls { source: error.into() })?;
        let shared = Shared {
            http,
            completions: endpoint(&["chat", "completions"]),
            models: endpoint(&["models"]),
            places: Semaphore::new(options.max_concurrent.get().min(Semaphore::MAX_PERMITS)),
            pace: options.requests_per_minute.map(Pace::new),
            breaker: Breaker::new(),
            counters: Counters::default(),
            options,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Asks until there is an answer.
    ///
    /// # Errors
    /// When the server refuses the request for its content, every attempt failed, or it has been gone for longer than the
    /// client waits.
    pub async fn complete(&self, request: &ChatRequest) -> Result<ChatReply, ChatError> {
        let result = self.shared.complete(request).await;
        let counters = &self.shared.counters;
        match &result {
            Ok(reply) => {
                add(&counters.answered, 1);
                add(&counters.prompt_tokens, reply.usage.prompt_tokens);
                add(&counters.completion_tokens, reply.usage.completion_tokens);
            }
            Err(_) => add(&counters.failed, 1),
        }
        result
    }

    /// The names of the models the server has. One attempt.
    ///
    /// # Errors
    /// When there is no answer, or it is no list of models.
    pub async fn models(&self) -> Result<Vec<String>, ChatError> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let url = self.shared.models.to_string();
        let failed = |status: Option<StatusCode>, problem: String| {
            let status = status.map(|status| status.as_u16());
            ChatError::Models { url: url.clone(), status, problem }
        };
        let response = self.shared.http.get(self.shared.models.clone()).send().await;
        let response = response.map_err(|error| failed(None, causes(&error)))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| failed(None, causes(&error)))?;
        if !status.is_success() {
            return Err(failed(Some(status), format!("it answered {status}: {}", message(&body))));
        }
        let list: List =
            serde_json::from_slice(&body).map_err(|error| failed(Some(status), error.to_string()))?;
        Ok(list.data.into_iter().map(|model| model.id).collect())
    }

    /// What this client and its clones have done so far.
    pub fn totals(&self) -> Totals {
        self.shared.counters.totals(self.shared.options.prices)
    }
}

impl Shared {
    async fn complete(&self, request: &ChatRequest) -> Result<ChatReply, ChatError> {
        let started = Instant::now();
        // Once, however many attempts: pictures are large.
        let body = serde_json::to_vec(request).map_err(|error| ChatError::Options {
            field: "the request",
            expected: "numbers that JSON can hold",
            got: error.to_string(),
        })?;
        let body = Bytes::from(body);
        let policy = self.options.retry;
        let mut attempts = 0;
        loop {
            self.wait_for_server().await?;
            if let Some(pace) = &self.pace {
                pace.turn().await;
            }
            let failure = {
                // The semaphore is never closed.
                let _place = self.places.acquire().await;
                if self.breaker.is_gone() {
                    continue;
                }
                attempts += 1;
                match self.attempt(body.clone()).await {
                    Ok(reply) => return Ok(ChatReply { attempts, elapsed: started.elapsed(), ..reply }),
                    Err(failure) => failure,
                }
            };
            let (why, asked) = match failure {
                Failure::Refused { status, message } => {
                    let (url, status) = (self.completions.to_string(), status.as_u16());
                    return Err(ChatError::Refused { url, status, message });
                }
                Failure::Unwell { why, asked } => (why, asked),
                Failure::Unreached { why } => {
                    if self.breaker.not_reached(&why) {
                        add(&self.counters.outages, 1);
                        tracing::warn!("{}: {why}; waiting for the server", self.completions);
                    }
                    if self.breaker.is_gone() {
                        // Not the request's fault.
                        attempts -= 1;
                        continue;
                    }
                    (why, None)
                }
            };
            if attempts >= policy.attempts.max(1) {
                let url = self.completions.to_string();
                return Err(ChatError::GaveUp { url, attempts, last: why });
            }
            let wait = policy.wait(attempts, asked, rand::random());
            tracing::debug!("attempt {attempts} failed: {why}; the next in {wait:?}");
            add(&self.counters.retries, 1);
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, body: Bytes) -> Result<ChatReply, Failure> {
        let unreached = |error: reqwest::Error| {
            let why = causes(&error);
            if error.is_timeout() && !error.is_connect() {
                // It took the request and is slow: not gone.
                return Failure::Unwell { why, asked: None };
            }
            Failure::Unreached { why }
        };
        let response = self.http.post(self.completions.clone()).body(body).send().await.map_err(unreached)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(unreached)?;
        if matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT) {
            // A proxy speaks for a server that is not there.
            return Err(Failure::Unreached { why: format!("{status}: {}", message(&body)) });
        }
        if status.is_success() {
            self.breaker.reached();
            return reply::parse(&body).map_err(|problem| {
                let why = format!("the answer is of no use: {problem}");
                Failure::Unwell { why, asked: None }
            });
        }
        let asked = retry::asked_for(&headers, SystemTime::now());
        let message = message(&body);
        if status == StatusCode::SERVICE_UNAVAILABLE && asked.is_none() && !is_of_api(&body) {
            // So does a proxy without a server behind it, and a server that is starting.
            return Err(Failure::Unreached { why: format!("{status}: {message}") });
        }
        self.breaker.reached();
        let may_pass = status.is_server_error()
            || matches!(status.as_u16(), 408 | 409 | 425 | 429) && !is_out_of_money(&body);
        if may_pass {
            return Err(Failure::Unwell { why: format!("{status}: {message}"), asked });
        }
        Err(Failure::Refused { status, message })
    }

    /// Returns when the server is there, as far as is known.
    async fn wait_for_server(&self) -> Result<(), ChatError> {
        let patience = self.options.patience;
        let mut pause = self.options.retry.first_wait;
        loop {
            match self.breaker.pass(patience).await {
                Door::Open => return Ok(()),
                Door::Gone { waited, last } => {
                    let url = self.completions.to_string();
                    return Err(ChatError::Gone { url, waited, last });
                }
                Door::Ask(asking) => {
                    tokio::time::sleep(pause.min(LONGEST_ASK_PAUSE).min(patience)).await;
                    pause = pause.saturating_mul(2);
                    let asked = self.http.get(self.models.clone()).timeout(ASK_TIMEOUT).send().await;
                    match asked {
                        // Any answer of its own will do: not all servers have this endpoint.
                        Ok(response) if !matches!(response.status().as_u16(), 502..=504) => {
                            tracing::info!("{} is back", self.completions);
                            self.breaker.reached();
                        }
                        Ok(response) => {
                            self.breaker.not_reached(&response.status().to_string());
                        }
                        Err(error) => {
                            self.breaker.not_reached(&causes(&error));
                        }
                    }
                    drop(asking);
                }
            }
        }
    }
}

/// Whether a URL has parts that are secrets, which would be written into ledgers and logs. What Azure asks for is none.
fn holds_secrets(url: &Url) -> bool {
    !url.username().is_empty()
        || url.password().is_some()
        || url.fragment().is_some()
        || url.query_pairs().any(|(name, _)| name != "api-version")
}

/// TLS as the operating system trusts, with ring's cryptography.
fn tls() -> Result<rustls::ClientConfig, ChatError> {
    let failed = |error: rustls::Error| ChatError::Tls { source: error.into() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(failed)?
        .with_no_client_auth())
}

/// What the body of an error says.
fn message(body: &[u8]) -> String {
    const LONGEST: usize = 500;
    let text = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(json) => reply::message_of(json.get("error").unwrap_or(&json)),
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    if text.is_empty() {
        return "no message".to_owned();
    }
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Whether an error has the form of OpenAI's, or of vLLM's: the server itself speaks.
fn is_of_api(body: &[u8]) -> bool {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    !json["error"].is_null() || json["object"] == "error"
}

/// 429 that waiting does not cure.
fn is_out_of_money(body: &[u8]) -> bool {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let says = |member: &str| json["error"][member] == "insufficient_quota";
    says("code") || says("type")
}

/// An error with its causes, without the address, which the caller names.
fn causes(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    let mut text = if error.is_timeout() { "timed out".to_owned() } else { "no answer".to_owned() };
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
