//! The loop of every stage: questions made ready in the background, asked side by side, each answer recorded as it comes.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use chat_client::ChatMessage;
use explain::parse::Answer;
use explain::{FeatureKey, Outcome, Record, Shown};
use stage_kit::{Interrupt, Interrupted, Progress, RunManifest, prefetch};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::folder::{Folder, Records};
use crate::summary::{Counters, Summary};
use explain_kit::Selection;
use explain_kit::Server;

/// No more questions than this wait ready, whatever the concurrency: each holds its pictures.
const MOST_AHEAD: usize = 64;
/// How often a wait looks up whether to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// How long a run that is interrupted, or told to stop, waits for what is on its way.
const LAST_WAIT: Duration = Duration::from_secs(30);

/// A feature made ready.
pub(crate) enum Prepared {
    /// To be asked about.
    Ask(Question),
    /// Known without asking: passed over or failed.
    Known(Record),
}

/// What is asked about a feature.
pub(crate) struct Question {
    pub(crate) key: FeatureKey,
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) shown: Vec<Shown>,
    /// The hash of the instructions.
    pub(crate) prompt: String,
}

/// A stage, ready to run.
pub(crate) struct Job {
    /// For the progress bar: `explaining`.
    pub(crate) label: &'static str,
    pub(crate) selection: Selection,
    pub(crate) folder: Folder,
    pub(crate) server: Server,
    pub(crate) runtime: Runtime,
    pub(crate) concurrency: NonZeroUsize,
    pub(crate) read: fn(&str, bool) -> Answer,
}

/// What the tasks on the runtime share with the loop.
struct Shared {
    folder: Folder,
    server: Server,
    counters: Counters,
    read: fn(&str, bool) -> Answer,
    /// Why nothing more is to be asked.
    halt: Mutex<Option<Error>>,
    halted: AtomicBool,
}

pub(crate) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that send")
}

/// Asks about every feature of the job that is not done yet, and lets `make` write the folder's files.
///
/// # Errors
/// When the server is gone or refuses everything, nothing but failures came of it, the ledger cannot be written, or a signal
/// came. What was answered is recorded and the files are written all the same.
pub(crate) fn run<T>(
    job: Job,
    mut manifest: RunManifest,
    prepare: impl Fn(&FeatureKey) -> Result<Prepared, Outcome> + Send + Sync + 'static,
    make: impl FnOnce(&Folder, Records<'_>) -> Result<T>,
) -> Result<(Summary, T)> {
    let interrupt = Interrupt::defer();
    let started = Instant::now();
    let Job { label, selection, folder, server, runtime, concurrency, read } = job;
    let counters = Counters::default();
    let shared = Arc::new(Shared {
        folder,
        server,
        counters,
        read,
        halt: Mutex::new(None),
        halted: AtomicBool::new(false),
    });
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
        let place = loop {
            bar.show();
            match wait(&runtime, &places, 1) {
                // The place may be that of the question that told to stop.
                _ if stops() => break None,
                Some(place) => break Some(place),
                None => {}
            }
        };
        let Some(place) = place else { break };
        let shared = Arc::clone(&shared);
        runtime.spawn(async move {
            shared.ask(question).await;
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
    let path = shared.folder.path.display();
    if let Some(error) = shared.halt.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error.context(format!("stopped; what was answered is in {path}: go on with --resume")));
    }
    let made = written?;
    if let Some(signal) = interrupt.signal() {
        return Err(Interrupted(signal))
            .with_context(|| format!("what was answered is in {path}: go on with --resume"));
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
        Prepared::Ask(question) => match question.shown.iter().find(|shown| !shown.score.is_finite()) {
            None => prepared,
            Some(shown) => {
                failed(format!("its activations in sample {} are no finite numbers", shown.sample))
            }
        },
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

    async fn ask(&self, question: Question) {
        let Question { key, messages, shown, prompt } = question;
        match self.server.ask(messages, prompt, self.read).await {
            Ok((outcome, asked)) => {
                self.record(&Record { shown, asked: Some(asked), ..Record::of(&key, outcome) });
            }
            Err(error) => self.halt(error.into()),
        }
    }

    fn record(&self, record: &Record) {
        match self.folder.add(record) {
            Ok(()) => self.counters.count(record),
            Err(error) => self.halt(error.into()),
        }
    }

    /// The first reason to stop counts.
    fn halt(&self, error: Error) {
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
        let shown = Shown { sample: SampleId(3), score: f64::NAN, not: false };
        let reason = failure(move |key| {
            let (messages, prompt) = (Vec::new(), String::new());
            Ok(Prepared::Ask(Question { key: key.clone(), messages, shown: vec![shown], prompt }))
        });
        assert!(reason.contains("sample 3"), "{reason}");
    }
}
