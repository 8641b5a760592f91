//! [`ImageRun`]: a score of explained features by their images: each made ready in the background, scored, and recorded as it comes.

use std::io::Write;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use explain::FeatureKey;
use explain_kit::{Entry, Folder, Records, RunArgs, Selection, Stage, Texts, file_name};
use mm_data::Field;
use serde::Serialize;
use stage_kit::{CommonArgs, Interrupt, Interrupted, Progress, RunManifest, World, prefetch};

use crate::explained::{Explained, ExplainedArgs};
use crate::images::{Finder, ImageArgs, Images};
use crate::other_texts::OtherTexts;
use crate::record::{OfImage, ScoreRecord};

/// So many features wait ready: each holds its pictures.
const AHEAD: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");

/// A run about to score features by their images.
pub(crate) struct ImageRun {
    pub(crate) manifest: RunManifest,
    pub(crate) finder: Arc<Finder>,
    explained: Explained,
    selection: Selection,
    /// None, unless they are drawn.
    others: OtherTexts,
    world: World,
}

impl ImageRun {
    /// Opens explanations, cache and data set, of which `fields` are read, and notes what decides which images are looked at.
    pub(crate) fn open(
        explained: &ExplainedArgs,
        images: &ImageArgs,
        fields: &[Field],
        common: &CommonArgs,
    ) -> Result<Self> {
        let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
        manifest.seed = Some(common.seed);
        let world = common.world()?;
        manifest.world(world);
        let source = &explained.source;
        let (explained, selection) = explained.open(world)?;
        let finder = images.open(source, explained.cache, &selection, fields, common.seed, &mut manifest)?;
        Ok(Self {
            manifest,
            finder: Arc::new(finder),
            explained,
            selection,
            others: OtherTexts::default(),
            world,
        })
    }

    /// Also holds each feature against what another one was said to show, which does not depend on the features that are chosen.
    pub(crate) fn draw_others(&mut self, seed: u64) {
        self.others = OtherTexts::of(self.explained.said(), seed);
    }

    /// Scores every feature that the folder at `path` does not have yet, lets `report` write what is made of all records, and prints
    /// what it gives. `score` is given a feature with what it and what another one was said to show, and its images.
    ///
    /// A line counts as long as both texts are what they were.
    pub(crate) fn score<I, S, T: Serialize>(
        self,
        label: &'static str,
        stage: Stage,
        path: &Path,
        args: &RunArgs,
        mut score: impl FnMut(&FeatureKey, &str, Option<&str>, &Images) -> Result<ScoreRecord<I, S>>,
        report: impl FnOnce(&Explained, &Finder, Records<'_, ScoreRecord<I, S>>) -> Result<T>,
    ) -> Result<()>
    where
        I: OfImage,
        ScoreRecord<I, S>: Entry,
    {
        let Self {
            mut manifest,
            finder,
            explained,
            selection,
            others: OtherTexts { texts: others, .. },
            world,
        } = self;
        let asked = |(key, text): (&FeatureKey, &str)| match others.get(key) {
            Some(other) => (key.clone(), format!("{text}\n{other}")),
            None => (key.clone(), text.to_owned()),
        };
        let asked = Texts::new(explained.said().map(asked).collect());
        let folder = Folder::open(path, stage, args, world, &selection, asked, &mut manifest)?;
        let score = |key: &FeatureKey, text: &str, found: Result<Images>| {
            let other = others.get(key);
            let scored = found.and_then(|images| caught(|| score(key, text, other, &images)));
            scored.unwrap_or_else(|error| {
                tracing::warn!("{key}: {error:#}");
                ScoreRecord::failed(key, text, other, format!("{error:#}"))
            })
        };
        let counts = score_all(label, selection, &explained.texts, &folder, Arc::clone(&finder), score)?;
        counts.note(&mut manifest);
        let summary = folder.write(&mut manifest, |_, records| report(&explained, &finder, records))?;
        counts.check(&path.join(file_name(stage.name, world)))?;
        writeln!(stage_kit::stdout(), "{}", serde_json::to_string(&summary)?)?;
        Ok(())
    }
}

/// What became of a run's features.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// By earlier runs: scored, unable, and failed without another try.
    before: u64,
    failed_before: u64,
    scored: u64,
    /// Of those that are scored the ones of which not every image could be looked at.
    in_part: u64,
    unable: u64,
    failed: u64,
    signal: Option<i32>,
}

impl Counts {
    fn add<I: OfImage, S>(&mut self, record: &ScoreRecord<I, S>)
    where
        ScoreRecord<I, S>: Entry,
    {
        if record.unable {
            self.unable += 1;
        } else if record.is_known() {
            self.scored += 1;
            self.in_part += u64::from(record.is_failed());
        } else {
            self.failed += 1;
        }
    }

    /// Notes what became of the features.
    fn note(self, manifest: &mut RunManifest) {
        manifest.count("scored", self.scored);
        manifest.count("scored in part", self.in_part);
        manifest.count("unable", self.unable);
        manifest.count("failed", self.failed);
        manifest.count("scored before", self.before);
        manifest.count("failed before", self.failed_before);
    }

    /// Once the files are written: whether the run came to its end, and to anything.
    ///
    /// # Errors
    /// When a signal broke it off, or not one feature could be scored, now or before.
    fn check(self, ledger: &Path) -> Result<()> {
        let ledger = ledger.display();
        if let Some(signal) = self.signal {
            let advice = format!("what was scored is in {ledger}: go on with --resume");
            return Err(Interrupted(signal)).context(advice);
        }
        let failed = self.failed + self.failed_before;
        ensure!(
            self.scored + self.before > 0 || failed == 0,
            "none of the {failed} features could be scored: {ledger} says why; try again with --resume --retry-failed"
        );
        if failed + self.in_part > 0 {
            tracing::warn!(
                "{failed} features could not be scored, and {} by some of their images only: {ledger} says why; try again with --resume \
                 --retry-failed",
                self.in_part
            );
        }
        Ok(())
    }
}

/// Scores every feature of the selection that the folder does not have yet; those without a text are those that the explainer was unable to
/// say anything of.
///
/// # Errors
/// When the ledger cannot be read or written. What goes wrong with one feature is for `score` to record.
fn score_all<I: OfImage, S>(
    label: &'static str,
    selection: Selection,
    texts: &Texts,
    folder: &Folder<ScoreRecord<I, S>>,
    finder: Arc<Finder>,
    mut score: impl FnMut(&FeatureKey, &str, Result<Images>) -> ScoreRecord<I, S>,
) -> Result<Counts>
where
    ScoreRecord<I, S>: Entry,
{
    let interrupt = Interrupt::defer();
    let mut counts = Counts::default();
    let progress = Progress::new(label, "features", Some(selection.len() as u64));
    let mut left = Vec::new();
    for key in selection.keys() {
        match folder.done(&key)? {
            Some(record) if record.unable || record.is_known() => counts.before += 1,
            Some(_) => counts.failed_before += 1,
            None if texts.contains(&key) => left.push(key),
            None => {
                let record = ScoreRecord::unable(&key);
                folder.add(&record)?;
                counts.add(&record);
            }
        }
    }
    progress.skip(counts.before + counts.failed_before + counts.unable);
    let ready = prefetch(left.into_iter(), AHEAD, move |key| {
        let found = caught(|| finder.find(&key));
        (key, found)
    });
    for (key, found) in ready {
        if interrupt.requested() {
            break;
        }
        let record = score(&key, texts.get(&key).unwrap_or_default(), found);
        folder.add(&record)?;
        counts.add(&record);
        progress.inc(1);
    }
    progress.finish();
    counts.signal = interrupt.signal();
    Ok(counts)
}

/// What `make` gives; a panic, such as libtorch's where memory runs out, is the failure of this feature alone.
fn caught<T>(make: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(anyhow!("a model or this program broke down: {text}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_failure_of_one_feature() {
        let memory = 80;
        let error = caught::<()>(|| panic!("CUDA out of memory: {memory} GiB")).unwrap_err().to_string();
        assert!(error.ends_with("broke down: CUDA out of memory: 80 GiB"), "{error}");
        assert_eq!(caught(|| Ok(memory)).unwrap(), 80);
    }

    #[test]
    fn failures_of_earlier_runs_are_no_success() {
        let ledger = Path::new("iou/iou.rank-1.jsonl");
        let error = Counts { failed_before: 3, ..Counts::default() }.check(ledger).unwrap_err().to_string();
        assert!(error.contains("none of the 3 features") && error.contains("iou.rank-1.jsonl"), "{error}");
        for counts in [
            Counts { before: 1, failed_before: 3, ..Counts::default() },
            Counts { scored: 1, failed: 3, ..Counts::default() },
            Counts { unable: 2, ..Counts::default() },
            Counts::default(),
        ] {
            assert!(counts.check(ledger).is_ok(), "{counts:?}");
        }
        let broken_off = Counts { scored: 5, signal: Some(15), ..Counts::default() };
        assert!(broken_off.check(ledger).is_err());
    }
}
