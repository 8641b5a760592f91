//! The routes, and a chat request's way through them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::api::{self, Head};
use crate::key::Key;
use crate::metrics::{Metrics, Outcome, Ticket};
use crate::prepare::{Prepared, Preparer};
use crate::problem::Problem;
use crate::queue::{Job, Queue};
use crate::request::{ChatRequest, Delivery};
use crate::row::{Event, Piece};
use crate::work::Workers;

/// How long a request may take to arrive.
const ARRIVAL: Duration = Duration::from_mins(1);
/// Of a request that is too large, so many times the limit is read and thrown away.
const DISCARDED: usize = 4;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) preparer: Preparer,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) key: Option<Key>,
    pub(crate) model: String,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) answers: AtomicU64,
    pub(crate) max_body: usize,
    /// Places of requests that wait, those that arrive and are prepared included.
    pub(crate) backlog: Arc<Semaphore>,
    pub(crate) backlog_size: usize,
    /// Places of requests whose images are cut into tiles, which take far more memory than those that arrived.
    pub(crate) tiled: Arc<Semaphore>,
    pub(crate) workers: Workers,
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/chat/completions", post(chat))
        .route("/models", get(models))
        .route("/models/{*model}", get(model))
        .route_layer(from_fn_with_state(app.clone(), check_key));
    Router::new()
        .nest("/v1", v1)
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
        .with_state(app)
}

async fn no_such_path(State(app): State<Arc<App>>, request: Request) -> Response {
    let problem = Problem::no_such_path(request.method().as_str(), request.uri().path());
    app.discard(request.into_body()).await;
    problem.into_response()
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
    match app.key.as_ref().map_or(Ok(()), |key| key.check(sent)) {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            app.discard(request.into_body()).await;
            problem.into_response()
        }
    }
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.queue.is_closed() {
        return Problem::busy("the model does not run").into_response();
    }
    (StatusCode::OK, "ok\n").into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let waiting = app.backlog_size - app.backlog.available_permits();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render(waiting)).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json(api::model_list(&app.model, app.started))
}

async fn model(State(app): State<Arc<App>>, Path(model): Path<String>) -> Response {
    if model == app.model {
        return json(api::model_card(&model, app.started));
    }
    Problem::no_such_model(&model, &app.model).into_response()
}

fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Response {
    // Dropped with this future when the client leaves.
    let ticket = Ticket::new(app.metrics.clone());
    let Begun { answer, delivery } = match app.begin(request).await {
        Ok(begun) => begun,
        Err(problem) => return refuse(problem, ticket),
    };
    match delivery {
        Delivery::Stream { usage } => answer.stream(ticket, usage).await,
        Delivery::Whole => match answer.whole().await {
            Ok(body) => {
                ticket.end(Outcome::Answered);
                json(body)
            }
            Err(problem) => refuse(problem, ticket),
        },
    }
}

fn refuse(problem: Problem, ticket: Ticket) -> Response {
    ticket.end(match problem.status {
        StatusCode::SERVICE_UNAVAILABLE => Outcome::Busy,
        status if status.is_server_error() => Outcome::Failed,
        _ => Outcome::Refused,
    });
    problem.into_response()
}

/// Whether the body is said to be JSON. A page of the web cannot say so to a server that does not ask for it, so that none in a
/// browser on this machine uses a server without a key.
fn is_json(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// A request in the queue.
struct Begun {
    answer: Answer,
    delivery: Delivery,
}

/// An answer to be received.
struct Answer {
    head: Head,
    events: UnboundedReceiver<Event>,
    /// Whether log-probabilities were asked for.
    logged: bool,
}

impl App {
    /// Reads a request, prepares it and puts it in the queue.
    async fn begin(self: &Arc<Self>, request: Request) -> Result<Begun, Problem> {
        if !is_json(&request) {
            self.discard(request.into_body()).await;
            return Err(Problem::no_json());
        }
        let body = request.into_body();
        let Ok(place) = self.backlog.clone().try_acquire_owned() else {
            self.discard(body).await;
            return Err(Problem::busy(format!(
                "{} requests are waiting already (--backlog)",
                self.backlog_size
            )));
        };
        let read = read(body, self.max_body, self.max_body.saturating_mul(DISCARDED));
        let body = tokio::time::timeout(ARRIVAL, read).await.map_err(|_| Problem::too_slow())??;
        let max_images = self.preparer.max_images;
        let parse = move || ChatRequest::parse(&body, max_images);
        let (request, place) = self.workers.run(place, parse).await?;
        if request.model != self.model {
            return Err(Problem::no_such_model(&request.model, &self.model));
        }
        let closed = |_| Problem::own("the server has lost count of its places");
        let tiled = self.tiled.clone().acquire_owned().await.map_err(closed)?;
        let (delivery, logged) = (request.delivery, request.logprobs.is_some());
        let app = self.clone();
        let prepare = move || app.preparer.prepare(request);
        let (prepared, permits) = self.workers.run(vec![place, tiled], prepare).await?;
        let Prepared { inputs, options, stops, steering } = prepared;
        let (sender, events) = unbounded_channel();
        self.queue.push(Job { inputs, options, stops, steering, events: sender, permits });
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let head = Head::new(&self.model, self.started, number);
        Ok(Begun { answer: Answer { head, events, logged }, delivery })
    }

    /// Reads a body of which nothing is wanted: a client that is still sending would not see the answer.
    async fn discard(&self, body: Body) {
        let _ = tokio::time::timeout(ARRIVAL, read(body, 0, self.max_body)).await;
    }
}

/// A body of at most `limit` bytes; of a larger one, up to `discarded` are read all the same.
async fn read(body: Body, limit: usize, discarded: usize) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let (mut kept, mut length) = (Vec::new(), 0usize);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Problem::bad(format!("the request broke off: {error}")))?;
        length += chunk.len();
        if length <= limit {
            kept.extend_from_slice(&chunk);
        } else {
            kept = Vec::new();
            if length > discarded {
                break;
            }
        }
    }
    if length > limit { Err(Problem::too_large(limit)) } else { Ok(kept.into()) }
}

impl Answer {
    async fn next(&mut self) -> Event {
        self.events.recv().await.unwrap_or_else(|| Event::Failed(Problem::gone()))
    }

    /// The whole answer, as JSON.
    async fn whole(mut self) -> Result<String, Problem> {
        let mut answer = Piece::default();
        loop {
            match self.next().await {
                Event::Piece(Piece { text, logprobs }) => {
                    answer.text.push_str(&text);
                    answer.logprobs.extend(logprobs);
                }
                Event::End(ending) => return Ok(self.head.completion(answer, ending, self.logged)),
                Event::Failed(problem) => return Err(problem),
            }
        }
    }

    /// The answer as server-sent events, from its first token on: until then a failure has a status of its own.
    async fn stream(mut self, ticket: Ticket, usage: bool) -> Response {
        let first = match self.next().await {
            Event::Failed(problem) => return refuse(problem, ticket),
            event => event,
        };
        let start = self.head.first_chunk();
        let begin = data(&start);
        let frames = stream::unfold(Some((self, ticket, Some(first))), move |state| async move {
            let (mut answer, ticket, first) = state?;
            let event = match first {
                Some(event) => event,
                None => answer.next().await,
            };
            Some(match event {
                Event::Piece(piece) => {
                    (data(&answer.head.piece_chunk(piece, answer.logged)), Some((answer, ticket, None)))
                }
                Event::End(ending) => {
                    let mut frame = data(&answer.head.last_chunk(ending));
                    if usage {
                        frame.push_str(&data(&answer.head.usage_chunk(ending)));
                    }
                    frame.push_str(&data("[DONE]"));
                    ticket.end(Outcome::Answered);
                    (frame, None)
                }
                Event::Failed(problem) => {
                    ticket.end(Outcome::Failed);
                    (data(&problem.json().to_string()), None)
                }
            })
        });
        let frames = stream::once(async { begin }).chain(frames).map(Ok::<_, Infallible>);
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        (headers, Body::from_stream(frames)).into_response()
    }
}

/// A server-sent event.
fn data(text: &str) -> String {
    format!("data: {text}\n\n")
}
