//! From flags to a running server, and to its end.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use lmm_prep::{ChatOptions, Message, Processor};
use model_kit::{ModelFolder, OpenModel};
use stage_kit::{Interrupt, UsageError};
use steering::Steerer;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;

use crate::api;
use crate::args::Args;
use crate::engine::Engine;
use crate::key::Key;
use crate::metrics::Metrics;
use crate::prepare::Preparer;
use crate::queue::{BatchLimits, Closed, Queue};
use crate::server::{App, router};
use crate::steer;
use crate::work::Workers;

/// An answer's tokens where neither the request, nor a flag, nor the model's folder says.
const MAX_TOKENS: usize = 512;
/// Threads that talk to clients.
const HTTP_THREADS: usize = 2;
/// How often a signal is looked for.
const SIGNAL_POLL: Duration = Duration::from_millis(50);
/// How long a request's head may take to arrive, and a connection may be kept without a request.
const HEAD: Duration = Duration::from_secs(15);
/// Tokens stand for so many bytes at least in what bounds the bytes of a prompt: in some vocabularies a word of any length that is
/// not theirs is one token.
const LONG_TOKEN: usize = 64;
/// How long answers under way may take after a signal.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// Serves until a signal comes.
///
/// # Errors
/// When the model or the autoencoders cannot be used, or the address is taken.
pub(crate) fn run(args: &Args) -> Result<()> {
    let key = Key::from_env(args.api_key_env.as_deref())?;
    // Before the model is read, which can take minutes.
    let listener = TcpListener::bind((args.host.as_str(), args.port))
        .with_context(|| format!("cannot listen on {} port {}", args.host, args.port))?;
    let address = listener.local_addr()?;
    let folder = ModelFolder::find(&args.model)?;
    let generation = folder.generation_config()?;
    let model = folder.load(args.torch, args.precision.weights())?;
    let steerer = match &args.sae {
        Some(source) => steer::load(source, &model.network)?,
        None => Steerer::default(),
    };
    let steerable = steerer.steerable().clone();
    let steering = steer::of_flags(&steerable, &args.steer)
        .map_err(|reason| UsageError::new(format!("--steer: {reason}")))?;
    check_template(&model.processor)?;
    let limits = BatchLimits { rows: args.max_batch.get(), tokens: args.max_batch_tokens.get() };
    let context = model.network.config().text_config.max_position_embeddings.min(limits.tokens);
    let max_tokens = args.max_tokens.map(std::num::NonZeroUsize::get);
    let preparer = Preparer {
        processor: model.processor.clone(),
        steerable,
        steering,
        max_tokens: max_tokens.or(generation.max_new_tokens).unwrap_or(MAX_TOKENS),
        generation,
        context,
        longest_prompt: context.saturating_mul(model.processor.tokenizer().longest_token().max(LONG_TOKEN)),
        max_images: args.max_images,
        max_pixels: args.max_pixels,
        next_seed: AtomicU64::new(args.common.seed),
        warned: AtomicBool::new(false),
    };
    let (queue, metrics) = (Arc::new(Queue::default()), Arc::new(Metrics::default()));
    let app = App {
        preparer,
        queue: queue.clone(),
        metrics: metrics.clone(),
        key,
        model: args.served_model_name.clone().unwrap_or_else(|| own_name(&args.model, &model)),
        started: api::now(),
        answers: AtomicU64::new(0),
        max_body: args.max_body.0,
        backlog: Arc::new(Semaphore::new(args.backlog.get().min(Semaphore::MAX_PERMITS))),
        backlog_size: args.backlog.get().min(Semaphore::MAX_PERMITS),
        tiled: Arc::new(Semaphore::new(limits.rows.saturating_mul(2).min(Semaphore::MAX_PERMITS))),
        workers: Workers::new(stage_kit::cores()),
    };
    if !address.ip().is_loopback() && app.key.is_none() {
        tracing::warn!("other machines can reach this server and it asks for no key: set LMM_SERVE_API_KEY");
    }
    tracing::info!(model = app.model, context, %address, "ready");
    let engine = Engine { model, steerer, limits, queue: queue.clone(), metrics }.start()?;
    writeln!(stage_kit::stdout(), "http://{address}/v1")?;
    serve(listener, app)?;
    // Its last clients are gone: at most one forward pass is left.
    queue.close(Closed::ShuttingDown);
    if engine.join().is_err() {
        bail!("the model's thread ended in a panic");
    }
    tracing::info!("all answers are given");
    Ok(())
}

/// Serves until a signal comes and the answers under way are given, or have had their time.
fn serve(listener: TcpListener, app: App) -> Result<()> {
    let interrupt = Interrupt::defer();
    let queue = app.queue.clone();
    let runtime = Builder::new_multi_thread().worker_threads(HTTP_THREADS).enable_all().build()?;
    let signal = async move {
        while !interrupt.requested() {
            tokio::time::sleep(SIGNAL_POLL).await;
        }
    };
    let result = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let mut listener = tokio::net::TcpListener::from_std(listener)?;
        let router = router(Arc::new(app));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        let connections = GracefulShutdown::new();
        let mut signal = pin!(signal);
        loop {
            let (stream, _) = tokio::select! {
                accepted = Listener::accept(&mut listener) => accepted,
                () = &mut signal => break,
            };
            // The pieces of a streamed answer are small, and wanted at once.
            let _ = stream.set_nodelay(true);
            let service = TowerToHyperService::new(router.clone());
            let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
            // A client that breaks off harms itself only.
            tokio::spawn(async { connection.await.unwrap_or_else(|error| tracing::debug!("{error}")) });
        }
        drop(listener);
        // What runs goes on; what waits is told to come back.
        queue.close(Closed::ShuttingDown);
        if tokio::time::timeout(SHUTDOWN_GRACE, connections.shutdown()).await.is_err() {
            tracing::warn!("answers under way after {} s are cut off", SHUTDOWN_GRACE.as_secs());
        }
        Ok(())
    });
    runtime.shutdown_background();
    result
}

/// Whether a chat can be made a prompt of: no request could be answered otherwise.
fn check_template(processor: &Processor) -> Result<()> {
    let options = ChatOptions { add_generation_prompt: true };
    let prompt = processor.chat(&[Message::text("user", "hello")], options);
    prompt.map(drop).context("the model's folder cannot make a prompt of a chat, which all requests are")
}

/// The name of a local folder, without where it lies; a Hub id as it is.
fn own_name(argument: &str, model: &OpenModel) -> String {
    let local = Path::new(argument).is_dir().then(|| model.folder.canonicalize().ok()).flatten();
    let name = local.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| argument.to_owned())
}
