//! What came of a run: counted while it goes on, told at its end.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chat_client::Totals;
use explain::{Outcome, Record};
use serde::Serialize;
use stage_kit::RunManifest;

use crate::error::Trying;
use crate::{ExplainKitError, Server};

/// What became of the features so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Done by earlier runs.
    pub(crate) before: AtomicU64,
    answered: AtomicU64,
    unable: AtomicU64,
    unparsed: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicU64,
    first_failure: Mutex<Option<String>>,
}

impl Counters {
    pub(crate) fn count(&self, record: &Record) {
        let counter = match &record.outcome {
            Outcome::Answered(_) => &self.answered,
            Outcome::Unable => &self.unable,
            Outcome::Unparsed => &self.unparsed,
            Outcome::Skipped(_) => &self.skipped,
            Outcome::Failed(reason) => {
                tracing::debug!("{}: {reason}", record.key());
                let mut first = self.first_failure.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| format!("{}: {reason}", record.key()));
                &self.failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How many this run is done with.
    pub(crate) fn done(&self) -> u64 {
        [&self.answered, &self.unable, &self.unparsed, &self.skipped, &self.failed]
            .map(|counter| counter.load(Ordering::Relaxed))
            .into_iter()
            .sum()
    }

    /// A line for the progress bar.
    pub(crate) fn line(&self, totals: &Totals) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let cost = totals.cost.map_or_else(String::new, |cost| format!(", cost {cost:.2}"));
        format!(
            "{} answered, {} unable, {} unparsed, {} failed, {} + {} tokens{cost}",
            of(&self.answered),
            of(&self.unable),
            of(&self.unparsed),
            of(&self.failed),
            totals.usage.prompt_tokens,
            totals.usage.completion_tokens
        )
    }
}

/// What came of a run; as JSON its counts, tokens and speed.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    model: String,
    /// Features that earlier runs had done.
    before: u64,
    answered: u64,
    unable: u64,
    unparsed: u64,
    skipped: u64,
    failed: u64,
    /// Requests that were answered, and how many were sent again.
    requests: u64,
    retries: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    seconds: f64,
    features_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failure: Option<String>,
}

impl Summary {
    pub(crate) fn of(counters: &Counters, server: &Server, took: Duration) -> Self {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (totals, seconds) = (server.totals(), took.as_secs_f64());
        Self {
            model: server.model.clone(),
            before: of(&counters.before),
            answered: of(&counters.answered),
            unable: of(&counters.unable),
            unparsed: of(&counters.unparsed),
            skipped: of(&counters.skipped),
            failed: of(&counters.failed),
            requests: totals.answered,
            retries: totals.retries,
            prompt_tokens: totals.usage.prompt_tokens,
            completion_tokens: totals.usage.completion_tokens,
            cost: totals.cost,
            seconds: (seconds * 1000.0).round() / 1000.0,
            features_per_second: (counters.done() as f64 / seconds.max(1e-9) * 10.0).round() / 10.0,
            first_failure: counters.first_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Puts the counts into the run's manifest.
    pub(crate) fn note(&self, manifest: &mut RunManifest) {
        for (what, n) in [
            ("done before", self.before),
            ("answered", self.answered),
            ("unable", self.unable),
            ("unparsed", self.unparsed),
            ("skipped", self.skipped),
            ("failed", self.failed),
            ("requests", self.requests),
            ("retries", self.retries),
            ("prompt tokens", self.prompt_tokens),
            ("completion tokens", self.completion_tokens),
        ] {
            manifest.count(what, n);
        }
    }

    /// Tells the log; fails where nothing came of the run but failures.
    pub(crate) fn judge(&self) -> Result<(), ExplainKitError> {
        let Self { before, answered, unable, unparsed, skipped, failed, .. } = self;
        tracing::info!(
            "{answered} answered, {unable} unable, {unparsed} unparsed, {skipped} skipped, {failed} failed, {before} done before"
        );
        let Some(first) = &self.first_failure else { return Ok(()) };
        if answered + unable + unparsed == 0 {
            return Err(ExplainKitError::NothingAnswered { failed: *failed, first: first.clone() });
        }
        tracing::warn!(
            "{failed} features failed: ask again with --resume --retry-failed; the first: {first}"
        );
        Ok(())
    }

    /// Prints one JSON object, with what a stage has to add.
    ///
    /// # Errors
    /// When standard output takes nothing, or `more` is no JSON object.
    pub fn print(&self, more: &impl Serialize) -> Result<(), ExplainKitError> {
        #[derive(Serialize)]
        struct Whole<'a, T> {
            #[serde(flatten)]
            summary: &'a Summary,
            #[serde(flatten)]
            more: &'a T,
        }
        let cannot = || "cannot print the summary".to_owned();
        let line = serde_json::to_string(&Whole { summary: self, more }).trying(cannot)?;
        writeln!(stage_kit::stdout(), "{line}").trying(cannot)
    }
}

/// Nothing to add to a summary.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Nothing {}
