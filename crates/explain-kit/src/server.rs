//! [`Server`]: the model that is asked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chat_client::{
    ApiKey, ChatClient, ChatError, ChatMessage, ChatReply, ChatRequest, ClientOptions, FinishReason, Prices,
    RetryPolicy, Totals,
};
use explain::parse::Answer;
use explain::{Asked, Outcome};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::ExplainKitError;
use crate::args::ServerArgs;

/// The temperature from the second time on that the same is asked: at 0 the same words would come again.
const AGAIN: f64 = 0.7;
/// How long to wait before looking again for a server that is not there yet.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// How many of the likeliest tokens are asked for at each place: the first of these that the server does not refuse. Two are enough where
/// the answer is one of two; the last asks for nothing.
const TOP_LOGPROBS: [u32; 3] = [5, 2, 0];

/// Whether the log-probabilities of an answer are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logprobs {
    /// No.
    Leave,
    /// With those of the likeliest tokens at each place, if the server gives them.
    Ask,
}

/// What came of asking for something that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told<T> {
    /// It was.
    Read(T),
    /// The model answered, however often it was asked, nothing that could be read.
    Unparsed,
    /// The server refuses to answer this, for this reason.
    Refused(String),
    /// There was no answer, because of this; another time there may be one.
    Failed(String),
}

/// The model that is asked.
#[derive(Debug)]
pub struct Server {
    client: ChatClient,
    /// Its name.
    pub model: String,
    temperature: f64,
    max_tokens: u32,
    asks: u32,
    seed: u64,
    taken: Taken,
}

/// How many log-probabilities the server takes.
#[derive(Debug, Default)]
struct Taken {
    /// The entry of [`TOP_LOGPROBS`], the first one until it is known.
    entry: AtomicUsize,
    is_known: AtomicBool,
    /// Held while it is found out, so that one request is refused and not all that wait.
    asking: Mutex<()>,
}

impl Server {
    /// Finds the server, for which it waits, and the model on it.
    ///
    /// # Errors
    /// When it does not come, or has not the model.
    pub fn connect(args: &ServerArgs, seed: u64, runtime: &Runtime) -> Result<Self, ExplainKitError> {
        let prices = args.price_prompt.zip(args.price_completion);
        let options = ClientOptions {
            key: ApiKey::from_env(&args.api_key_env),
            timeout: Duration::from_secs_f64(args.timeout),
            retry: RetryPolicy { attempts: args.attempts, ..RetryPolicy::default() },
            patience: Duration::from_secs_f64(args.patience),
            max_concurrent: args.concurrency,
            requests_per_minute: args.requests_per_minute,
            prices: prices.map(|(prompt, completion)| Prices { prompt, completion }),
            ..ClientOptions::new(&args.endpoint)
        };
        let client = ChatClient::new(options)
            .map_err(|error| ExplainKitError::usage(format!("--endpoint: {error}")))?;
        let model = model(args, runtime.block_on(listed(args, &client)))?;
        Ok(Self {
            client,
            model,
            temperature: args.temperature,
            max_tokens: args.max_tokens,
            asks: args.asks,
            seed,
            taken: Taken::default(),
        })
    }

    /// What was sent and answered so far.
    pub fn totals(&self) -> Totals {
        self.client.totals()
    }

    /// Asks until an answer can be read, but no more often than agreed.
    ///
    /// # Errors
    /// When every other question would fail as well.
    pub async fn ask(
        &self,
        messages: Vec<ChatMessage>,
        prompt: String,
        read: fn(&str, bool) -> Answer,
    ) -> Result<(Outcome, Asked), ChatError> {
        let read = |reply: &ChatReply| match read(&reply.text, reply.finish_reason != FinishReason::Length) {
            Answer::Unparsed => None,
            answer => Some(answer),
        };
        let (told, asked) = self.ask_for(messages, prompt, Logprobs::Leave, read).await?;
        let outcome = match told {
            Told::Read(Answer::Given(text)) => Outcome::Answered(text),
            Told::Read(Answer::Unable | Answer::Unparsed) => Outcome::Unable,
            Told::Unparsed => Outcome::Unparsed,
            Told::Refused(reason) | Told::Failed(reason) => Outcome::Failed(reason),
        };
        Ok((outcome, asked))
    }

    /// As [`Server::ask`], for whatever `read` makes of a reply; `None` of it is asked again.
    ///
    /// # Errors
    /// As [`Server::ask`].
    pub async fn ask_for<T>(
        &self,
        messages: Vec<ChatMessage>,
        prompt: String,
        logprobs: Logprobs,
        read: impl Fn(&ChatReply) -> Option<T>,
    ) -> Result<(Told<T>, Asked), ChatError> {
        let started = Instant::now();
        let mut request = ChatRequest {
            temperature: Some(self.temperature),
            max_tokens: Some(self.max_tokens),
            ..ChatRequest::new(&self.model, messages)
        };
        let mut asked = Asked { prompt, ..Asked::default() };
        let mut told = Told::Unparsed;
        while asked.asks < self.asks {
            let temperature = if asked.asks == 0 { self.temperature } else { self.temperature.max(AGAIN) };
            request.temperature = Some(temperature);
            // Not every server knows seeds, and the likeliest answer needs none.
            request.seed = (temperature > 0.0).then(|| self.seed.wrapping_add(u64::from(asked.asks)));
            asked.asks += 1;
            let reply = match self.complete(&mut request, logprobs, &mut asked).await {
                Ok(reply) => reply,
                Err(error) if self.concerns_all(&error) => return Err(error),
                Err(error) => {
                    match &error {
                        ChatError::GaveUp { attempts, .. } => asked.attempts += attempts,
                        ChatError::Refused { .. } => asked.attempts += 1,
                        _ => {}
                    }
                    told = match error {
                        ChatError::Refused { .. } => Told::Refused(error.to_string()),
                        _ => Told::Failed(error.to_string()),
                    };
                    break;
                }
            };
            asked.attempts += reply.attempts;
            asked.prompt_tokens += reply.usage.prompt_tokens;
            asked.completion_tokens += reply.usage.completion_tokens;
            let read = read(&reply);
            if read.is_none() && reply.finish_reason == FinishReason::Length {
                tracing::debug!("an answer reached --max-tokens {} before its marker", self.max_tokens);
            }
            asked.model = reply.model;
            asked.answer = reply.text;
            if let Some(read) = read {
                told = Told::Read(read);
                break;
            }
        }
        asked.seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        Ok((told, asked))
    }

    /// One answer. A request that is refused with log-probabilities and not without them is how a server says that it gives none, or
    /// fewer.
    async fn complete(
        &self,
        request: &mut ChatRequest,
        logprobs: Logprobs,
        asked: &mut Asked,
    ) -> Result<ChatReply, ChatError> {
        let is_known = || self.taken.is_known.load(Ordering::SeqCst);
        let asking = match logprobs {
            Logprobs::Ask if !is_known() => Some(self.taken.asking.lock().await),
            _ => None,
        };
        // Another may have found it out while this one waited.
        let asking = asking.filter(|_| !is_known());
        let mut entry = match logprobs {
            Logprobs::Ask => self.taken.entry.load(Ordering::SeqCst),
            Logprobs::Leave => TOP_LOGPROBS.len() - 1,
        };
        let mut refused = None;
        loop {
            let top = TOP_LOGPROBS[entry];
            request.logprobs = top > 0;
            request.top_logprobs = (top > 0).then_some(top);
            match self.client.complete(request).await {
                Err(ChatError::Refused { status: 400 | 422, message, .. }) if top > 0 => {
                    asked.attempts += 1;
                    entry += 1;
                    refused = Some(message);
                }
                Ok(reply) => {
                    if asking.is_some() {
                        self.taken.entry.store(entry, Ordering::SeqCst);
                        self.taken.is_known.store(true, Ordering::SeqCst);
                        match refused {
                            Some(message) if top == 0 => {
                                tracing::warn!("the server gives no log-probabilities: {message}");
                            }
                            Some(message) => {
                                tracing::info!(
                                    "the server gives no more than {top} log-probabilities: {message}"
                                );
                            }
                            None => {}
                        }
                    }
                    return Ok(reply);
                }
                other => return other,
            }
        }
    }

    /// Whether the next question would fare no better: the server is gone, or knows not the key, the address or the model.
    fn concerns_all(&self, error: &ChatError) -> bool {
        match error {
            ChatError::Gone { .. } => true,
            // A filter of contents says this as well, of one question, and only to a key that is good.
            ChatError::Refused { status: 403, .. } => self.totals().answered == 0,
            ChatError::Refused { status, .. } => matches!(status, 401 | 402 | 404 | 429),
            _ => false,
        }
    }
}

/// What the server says of its models, once it is there.
async fn listed(args: &ServerArgs, client: &ChatClient) -> Result<Vec<String>, ChatError> {
    let (started, mut told) = (Instant::now(), false);
    let patience = Duration::from_secs_f64(args.patience);
    loop {
        let listed = client.models().await;
        let is_gone = match &listed {
            Err(ChatError::Models { status: None, .. }) => true,
            // A proxy before a server that is starting; with a name it may be asked without.
            Err(ChatError::Models { status: Some(502..=504), .. }) => args.explainer.is_none(),
            _ => false,
        };
        if !is_gone || started.elapsed() >= patience {
            return listed;
        }
        if let Err(error) = listed
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!("{error}; waiting {} s for a server at {}", args.patience, args.endpoint);
        }
        tokio::time::sleep(ASK_PAUSE.min(patience)).await;
    }
}

/// The model's name: as asked for, or the only one there is.
fn model(args: &ServerArgs, listed: Result<Vec<String>, ChatError>) -> Result<String, ExplainKitError> {
    let listed = match (listed, &args.explainer) {
        (Ok(listed), _) => listed,
        // Not every server lists its models, or to every key; one that answers may know the name.
        (Err(ChatError::Models { status: Some(status), .. }), Some(name)) if status != 401 => {
            return Ok(name.clone());
        }
        (Err(error @ ChatError::Models { status, .. }), _) => {
            let advice = match status {
                None => format!(
                    "no server at {}: start one, for example `lmm-serve MODEL --port 30000` or SGLang's `python -m sglang.launch_server \
                     --model-path MODEL --port 30000`, or name another with --endpoint",
                    args.endpoint
                ),
                Some(401 | 403) => format!(
                    "the server wants a key: set {}, or name another variable with --api-key-env",
                    args.api_key_env
                ),
                Some(404) if !args.endpoint.trim_end_matches('/').ends_with("/v1") => {
                    format!("--endpoint {} should end with /v1", args.endpoint)
                }
                Some(_) => "the server does not list its models: name one with --explainer".to_owned(),
            };
            return Err(ExplainKitError::Server { advice, source: Box::new(error) });
        }
        (Err(error), _) => {
            let advice = format!("cannot ask {} for its models", args.endpoint);
            return Err(ExplainKitError::Server { advice, source: Box::new(error) });
        }
    };
    let names = || listed.join(", ");
    match (&args.explainer, listed.as_slice()) {
        (Some(name), _) if listed.contains(name) => Ok(name.clone()),
        (Some(name), []) => Ok(name.clone()),
        (Some(name), _) => Err(ExplainKitError::usage(format!(
            "the server has no model {name:?}; --explainer may be: {}",
            names()
        ))),
        (None, [one]) => Ok(one.clone()),
        (None, []) => Err(ExplainKitError::NoModel),
        (None, _) => Err(ExplainKitError::usage(format!(
            "the server has several models: add --explainer, one of {}",
            names()
        ))),
    }
}
