//! The loop over features: each made ready in the background, scored, and recorded as it comes.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use explain::FeatureKey;
use explain_kit::{Entry, Folder, Selection};
use stage_kit::{Interrupt, Interrupted, Progress, RunManifest, prefetch};

/// So many features wait ready: each holds its pictures.
const AHEAD: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");

/// What became of a run's features.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) before: u64,
    pub(crate) scored: u64,
    pub(crate) failed: u64,
    signal: Option<i32>,
}

impl Counts {
    /// Notes what became of the features.
    pub(crate) fn note(self, manifest: &mut RunManifest) {
        manifest.count("scored", self.scored);
        manifest.count("failed", self.failed);
        manifest.count("scored before", self.before);
    }

    /// Once the files are written: whether the run came to its end, and to anything.
    ///
    /// # Errors
    /// When a signal broke it off, or not one feature could be scored.
    pub(crate) fn check(self, folder: &Path, stage: &str) -> Result<()> {
        if let Some(signal) = self.signal {
            let advice = format!("what was scored is in {}: go on with --resume", folder.display());
            return Err(Interrupted(signal)).context(advice);
        }
        let Self { before, scored, failed, .. } = self;
        let ledger = folder.join(format!("{stage}.jsonl"));
        ensure!(
            scored + before > 0 || failed == 0,
            "none of the {failed} features could be scored: {} says why",
            ledger.display()
        );
        if failed > 0 {
            tracing::warn!(
                "{failed} features could not be scored, {} says why: try again with --resume --retry-failed",
                ledger.display()
            );
        }
        Ok(())
    }
}

/// Scores every feature of the selection that the folder does not have yet.
///
/// # Errors
/// When the ledger cannot be read or written. What goes wrong with one feature is for `score` to record.
pub(crate) fn score_all<R: Entry, P: Send + 'static>(
    label: &'static str,
    selection: Selection,
    folder: &Folder<R>,
    prepare: impl Fn(&FeatureKey) -> Result<P> + Send + Sync + 'static,
    mut score: impl FnMut(&FeatureKey, Result<P>) -> R,
) -> Result<Counts> {
    let interrupt = Interrupt::defer();
    let mut counts = Counts::default();
    let progress = Progress::new(label, "features", Some(selection.len() as u64));
    let mut left = Vec::new();
    for key in selection.keys() {
        if folder.is_done(&key)? {
            counts.before += 1;
        } else {
            left.push(key);
        }
    }
    progress.skip(counts.before);
    let ready = prefetch(left.into_iter(), AHEAD, move |key| {
        let prepared = catch_unwind(AssertUnwindSafe(|| prepare(&key)));
        let prepared = prepared.unwrap_or_else(|_| Err(anyhow!("a bug of this program")));
        (key, prepared)
    });
    for (key, prepared) in ready {
        if interrupt.requested() {
            break;
        }
        let record = score(&key, prepared);
        folder.add(&record)?;
        if record.is_failed() {
            counts.failed += 1;
        } else {
            counts.scored += 1;
        }
        progress.inc(1);
    }
    progress.finish();
    counts.signal = interrupt.signal();
    Ok(counts)
}
