//! The loop of every stage: questions made ready in the background, asked side by side, each answer recorded as it comes.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chat_client::{ChatError, ChatMessage};
use explain::parse::Answer;
use explain::{FeatureKey, Outcome, Record, Shown};
use stage_kit::{CommonArgs, Interrupt, Interrupted, Progress, RunManifest, prefetch};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Trying;
use crate::run::folder::{Folder, Records, Stage};
use crate::run::summary::{Counters, Summary};
use crate::run::texts::Texts;
use crate::{ExplainKitError, Instruction, RunArgs, Selection, Server, ServerArgs, settings};

/// No more questions than this wait ready, whatever the concurrency: each holds its pictures.
const MOST_AHEAD: usize = 64;
/// How often a wait looks up whether to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// How long a run that is interrupted, or told to stop, waits for what is on its way.
const LAST_WAIT: Duration = Duration::from_secs(30);

/// A feature made ready.
#[derive(Debug)]
pub enum Prepared {
    /// To be asked about.
    Ask(Question),
    /// Known without asking: passed over or failed.
    Known(Record),
}

/// What is asked about a feature.
#[derive(Debug)]
pub struct Question {
    /// The feature.
    pub key: FeatureKey,
    /// What is asked side by side.
    pub parts: Vec<Part>,
    /// The start of the hash of the instructions.
    pub prompt: String,
}

/// One request.
#[derive(Debug)]
pub struct Part {
    /// What is said and shown.
    pub messages: Vec<ChatMessage>,
    /// The samples that are shown.
    pub shown: Vec<Shown>,
}

impl Question {
    /// A question of one part.
    pub fn one(key: &FeatureKey, messages: Vec<ChatMessage>, shown: Vec<Shown>, prompt: String) -> Self {
        Self { key: key.clone(), parts: vec![Part { messages, shown }], prompt }
    }
}

/// A way of asking about a feature, and what is made of the answers.
pub trait Ask: Send + Sync + 'static {
    /// Asks, and gives what becomes of the feature.
    ///
    /// # Errors
    /// When every other question would fail as well.
    fn ask(
        &self,
        server: &Server,
        question: Question,
    ) -> impl Future<Output = Result<Record, ChatError>> + Send;
}

/// Asks one question, whose answer is read by this and is the outcome; the second argument is false of an answer that broke off. Of
/// a question of several parts it asks the first.
#[derive(Clone, Copy, Debug)]
pub struct Once(pub fn(&str, bool) -> Answer);

impl Ask for Once {
    async fn ask(&self, server: &Server, question: Question) -> Result<Record, ChatError> {
        let Question { key, mut parts, prompt } = question;
        parts.truncate(1);
        let Some(Part { messages, shown }) = parts.pop() else {
            return Ok(Record::of(&key, Outcome::Skipped("there is nothing to ask".to_owned())));
        };
        let (outcome, asked) = server.ask(messages, prompt, self.0).await?;
        Ok(Record { shown, asked: Some(asked), ..Record::of(&key, outcome) })
    }
}

/// What a stage does, where, and as which flags have it.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// For the progress bar: `explaining`.
    pub label: &'static str,
    /// Its files.
    pub stage: Stage,
    /// The folder it writes.
    pub path: &'a Path,
    /// What to do with an earlier run's.
    pub run: &'a RunArgs,
    /// Whom it asks.
    pub server: &'a ServerArgs,
    /// What it asks.
    pub instruction: &'a Instruction,
    /// The seed, and which worker this is.
    pub common: &'a CommonArgs,
}

/// A stage, ready to run.
#[derive(Debug)]
pub struct Job<A> {
    label: &'static str,
    selection: Selection,
    folder: Folder,
    server: Server,
    runtime: Runtime,
    concurrency: NonZeroUsize,
    ask: A,
}

impl<A: Ask> Job<A> {
    /// Waits for the server and opens the folder. `selection` is what is asked about, and `texts` what was said of it before, if
    /// the questions are about that. `manifest` has all settings that decide an answer but those of the server, which are added.
    ///
    /// # Errors
    /// When the server does not come, the folder is another run's, or it cannot be read.
    pub fn open(
        plan: Plan<'_>,
        ask: A,
        selection: Selection,
        texts: Texts,
        manifest: &mut RunManifest,
    ) -> Result<Self, ExplainKitError> {
        let Plan { label, stage, path, run, server: args, instruction, common } = plan;
        let world = common.world().map_err(ExplainKitError::Usage)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .trying(|| "cannot start the threads that send".to_owned())?;
        let server = Server::connect(args, common.seed, &runtime)?;
        manifest.settings.extend(settings(args, &server.model, instruction, common.seed));
        let folder = Folder::open(path, stage, run, world, &selection, texts, manifest)?;
        Ok(Self { label, selection, folder, server, runtime, concurrency: args.concurrency, ask })
    }
}

/// What the tasks on the runtime share with the loop.
struct Shared {
    folder: Folder,
    server: Server,
    counters: Counters,
    /// Why nothing more is to be asked.
    halt: Mutex<Option<ExplainKitError>>,
    halted: AtomicBool,
}

/// Asks about every feature of the job that is not done yet, and lets `make` write the folder's files.
///
/// # Errors
/// When the server is gone or refuses everything, nothing but failures came of it, the ledger cannot be written, or a signal
/// came. What was answered is recorded and the files are written all the same.
pub fn run<T, E: From<ExplainKitError>>(
    job: Job<impl Ask>,
    mut manifest: RunManifest,
    prepare: impl Fn(&FeatureKey) -> Result<Prepared, Outcome> + Send + Sync + 'static,
    make: impl FnOnce(&Folder, Records<'_>) -> Result<T, E>,
) -> Result<(Summary, T), E> {
    let interrupt = Interrupt::defer();
    let started = Instant::now();
    let Job { label, selection, folder, server, runtime, concurrency, ask } = job;
    let ask = Arc::new(ask);
    let counters = Counters::default();
    let shared =
        Arc::new(Shared { folder, server, counters, halt: Mutex::new(None), halted: AtomicBool::new(false) });
    let bar = Bar::new(label, selection.len() as u64, Arc::clone(&shared));
    let left = {
        let shared = Arc::clone(&shared);
        selection.keys().filter(move |key| !shared.is_done(key))
    };
    let ahead = concurrency.min(NonZeroUsize::new(MOST_AHEAD).unwrap_or(NonZeroUsize::MIN));
    let mut prepared = prefetch(left, ahead, move |key| sound(&key, &prepare));
    let places = Arc::new(Semaphore::new(concurrency.get().min(Semaphore::MAX_PERMITS)));
    let stops = || interrupt.requested() || shared.halted.load(Ordering::SeqCst);
    while !stops()
        && let Some(next) = prepared.next()
    {
        let question = match next {
            Prepared::Known(record) => {
                shared.record(&record);
                bar.show();
                continue;
            }
            Prepared::Ask(question) => question,
        };
        // No more requests are on their way than there are places, but a feature of many takes half of them, so that the next one's
        // begin while the last of this one's are waited for.
        let wanted = question.parts.len().min(concurrency.get()).div_ceil(2).max(1) as u32;
        let place = loop {
            bar.show();
            match wait(&runtime, &places, wanted) {
                // The place may be that of the question that told to stop.
                _ if stops() => break None,
                Some(place) => break Some(place),
                None => {}
            }
        };
        let Some(place) = place else { break };
        let (shared, ask) = (Arc::clone(&shared), Arc::clone(&ask));
        runtime.spawn(async move {
            match ask.ask(&shared.server, question).await {
                Ok(record) => shared.record(&record),
                Err(error) => shared.halt(error.into()),
            }
            drop(place);
        });
    }
    drop(prepared);
    // All places are free when nothing is on its way any more.
    let all = u32::try_from(concurrency.get()).unwrap_or(u32::MAX);
    let mut stopping = None;
    while wait(&runtime, &places, all).is_none() {
        bar.show();
        if stops() && stopping.get_or_insert_with(Instant::now).elapsed() >= LAST_WAIT {
            tracing::warn!("what is still on its way after {} s is given up", LAST_WAIT.as_secs());
            break;
        }
    }
    runtime.shutdown_background();
    bar.finish();

    let summary = Summary::of(&shared.counters, &shared.server, started.elapsed());
    summary.note(&mut manifest);
    let written = shared.folder.write(&mut manifest, make);
    let path = shared.folder.path().display();
    if let Some(error) = shared.halt.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let context = format!("stopped; what was answered is in {path}: go on with --resume");
        return Err(ExplainKitError::within(context, error).into());
    }
    let made = written?;
    if let Some(signal) = interrupt.signal() {
        let context = format!("what was answered is in {path}: go on with --resume");
        return Err(ExplainKitError::within(context, Interrupted(signal)).into());
    }
    summary.judge()?;
    Ok((summary, made))
}

/// A feature made ready, or failed: because of a panic, which is of this feature alone, or of a number that no ledger can hold.
fn sound(key: &FeatureKey, prepare: impl Fn(&FeatureKey) -> Result<Prepared, Outcome>) -> Prepared {
    let failed = |reason: String| Prepared::Known(Record::of(key, Outcome::Failed(reason)));
    let prepared = match catch_unwind(AssertUnwindSafe(|| prepare(key))) {
        Ok(prepared) => prepared.unwrap_or_else(|outcome| Prepared::Known(Record::of(key, outcome))),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            return failed(format!("a bug of this program: {text}"));
        }
    };
    match &prepared {
        Prepared::Ask(question) => {
            let mut shown = question.parts.iter().flat_map(|part| &part.shown);
            match shown.find(|shown| !shown.score.is_finite()) {
                None => prepared,
                Some(shown) => {
                    failed(format!("its activations in sample {} are no finite numbers", shown.sample))
                }
            }
        }
        Prepared::Known(_) => prepared,
    }
}

/// Waits a little for `n` places.
fn wait(runtime: &Runtime, places: &Arc<Semaphore>, n: u32) -> Option<OwnedSemaphorePermit> {
    let places = Arc::clone(places);
    // The semaphore is never closed.
    runtime.block_on(async { tokio::time::timeout(LOOK_UP, places.acquire_many_owned(n)).await }).ok()?.ok()
}

impl Shared {
    fn is_done(&self, key: &FeatureKey) -> bool {
        match self.folder.is_done(key) {
            Ok(done) => {
                if done {
                    self.counters.before.fetch_add(1, Ordering::Relaxed);
                }
                done
            }
            Err(error) => {
                self.halt(error);
                true
            }
        }
    }

    fn record(&self, record: &Record) {
        match self.folder.add(record) {
            Ok(()) => self.counters.count(record),
            Err(error) => self.halt(error.into()),
        }
    }

    /// The first reason to stop counts.
    fn halt(&self, error: ExplainKitError) {
        self.halt.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.halted.store(true, Ordering::SeqCst);
    }
}

/// The progress bar, moved by what the counters say.
struct Bar {
    progress: Progress,
    shared: Arc<Shared>,
    shown: Cell<(u64, u64)>,
}

impl Bar {
    fn new(label: &'static str, total: u64, shared: Arc<Shared>) -> Self {
        Self { progress: Progress::new(label, "features", Some(total)), shared, shown: Cell::new((0, 0)) }
    }

    fn show(&self) {
        let (before, done) =
            (self.shared.counters.before.load(Ordering::Relaxed), self.shared.counters.done());
        let (shown_before, shown_done) = self.shown.replace((before, done));
        if (before, done) != (shown_before, shown_done) {
            self.progress.skip(before - shown_before);
            self.progress.note(self.shared.counters.line(&self.shared.server.totals()));
            self.progress.inc(done - shown_done);
        }
    }

    fn finish(self) {
        self.show();
        self.progress.finish();
    }
}

#[cfg(test)]
mod tests {
    use sae_types::SampleId;

    use super::*;

    fn failure(prepare: impl Fn(&FeatureKey) -> Result<Prepared, Outcome>) -> String {
        let key: FeatureKey = "model.layers.1_feature7".parse().unwrap();
        match sound(&key, prepare) {
            Prepared::Known(Record { outcome: Outcome::Failed(reason), .. }) => reason,
            _ => panic!("it did not fail"),
        }
    }

    #[test]
    fn panics_and_numbers_that_are_none_fail_their_feature() {
        assert!(failure(|key| panic!("row {}", key.feature)).ends_with(": row 7"));
        let shown = Shown::example(SampleId(3), f64::NAN);
        let reason =
            failure(move |key| Ok(Prepared::Ask(Question::one(key, Vec::new(), vec![shown], String::new()))));
        assert!(reason.contains("sample 3"), "{reason}");
    }
}
