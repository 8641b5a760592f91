//! [`Explanations`]: what was explained, from this project's ledgers or from files that multimodal-sae published.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use explain::parse::Answer;
use explain::{FeatureKey, Outcome, Published, Record, parse, read_published};
use sae_types::{FeatureId, HookPoint, SampleId};

use crate::ExplainKitError;
use crate::ledgers::{Ledgers, files};

/// The stage whose ledgers are explanations.
pub const EXPLANATIONS: &str = "explanations";

/// Texts by feature, all in memory: some hundred bytes each.
#[derive(Debug, Default)]
pub struct Explanations {
    /// The texts.
    pub texts: BTreeMap<FeatureKey, String>,
    /// The samples that the explainer was shown of each, where that is known: published files do not say.
    pub shown: BTreeMap<FeatureKey, Vec<SampleId>>,
    /// The features that have none because the model was unable to say anything.
    pub unable: BTreeSet<FeatureKey>,
    /// How many have none for another reason.
    pub without: u64,
}

impl Explanations {
    /// Reads a ledger, a published file, or a folder with ledgers of `stage` or else with published files.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(path: &Path, stage: &str) -> Result<Self, ExplainKitError> {
        Self::open_current(path, stage, &|_, _| true)
    }

    /// As [`Explanations::open`], of what a stage made of earlier texts. Answers about a text that is no longer what is said of the feature
    /// do not count, and a warning says how many features they leave without: `is_current` is given a feature and the start of the
    /// hash of the text that was asked about ([`crate::short_hash`]). Answers that do not say count, as those of published files.
    ///
    /// # Errors
    /// As [`Explanations::open`].
    pub fn open_current(
        path: &Path,
        stage: &str,
        is_current: &dyn Fn(&FeatureKey, &str) -> bool,
    ) -> Result<Self, ExplainKitError> {
        if !path.exists() {
            return Err(ExplainKitError::Missing { path: path.to_owned() });
        }
        let mut read = Self::default();
        if path.is_dir() {
            let ledgers = files(path, stage)?;
            if ledgers.is_empty() {
                let published = published_files(path, stage)?;
                if published.is_empty() {
                    return Err(ExplainKitError::NoExplanations {
                        path: path.to_owned(),
                        stage: stage.to_owned(),
                    });
                }
                for (file, published) in published {
                    read.published(&file, published);
                }
            } else {
                read.ledgers(&ledgers, is_current)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "jsonl") {
            read.ledgers(&[path.to_owned()], is_current)?;
        } else {
            read.published(path, read_published(path).map_err(ExplainKitError::Published)?);
        }
        if read.texts.is_empty() {
            return Err(ExplainKitError::NoTexts { path: path.to_owned() });
        }
        let unable = read.unable.len() as u64;
        if unable + read.without > 0 {
            tracing::info!(
                "{} features are passed over: of {unable} the model had nothing to say, {} have no text for another reason",
                unable + read.without,
                read.without
            );
        }
        Ok(read)
    }

    fn ledgers(
        &mut self,
        files: &[PathBuf],
        is_current: &dyn Fn(&FeatureKey, &str) -> bool,
    ) -> Result<(), ExplainKitError> {
        let outdated = RefCell::new(BTreeSet::new());
        let counts = |record: &Record| {
            let key = record.key();
            let counts = record.about.as_deref().is_none_or(|about| is_current(&key, about));
            if !counts {
                outdated.borrow_mut().insert(key);
            }
            counts
        };
        for record in Ledgers::<Record>::read(files)?.records(&counts) {
            let record = record?;
            let key = record.key();
            outdated.borrow_mut().remove(&key);
            if !record.shown.is_empty() {
                self.shown.insert(key.clone(), record.shown.iter().map(|shown| shown.sample).collect());
            }
            self.add(
                key,
                match record.outcome {
                    Outcome::Answered(text) => Answer::Given(text),
                    Outcome::Unable => Answer::Unable,
                    Outcome::Unparsed | Outcome::Skipped(_) | Outcome::Failed(_) => Answer::Unparsed,
                },
            );
        }
        let outdated = outdated.into_inner().len();
        if outdated > 0 {
            let first = files.first().map(|file| file.display().to_string()).unwrap_or_default();
            tracing::warn!(
                "{first}: what is there of {outdated} features was made of texts that have changed since, and is left out: run that stage again"
            );
        }
        Ok(())
    }

    fn published(&mut self, path: &Path, published: Published) {
        if published.duplicates > 0 {
            tracing::warn!(
                "{}: {} features are there more than once; the last counts",
                path.display(),
                published.duplicates
            );
        }
        for (key, text) in published.texts {
            self.add(key, parse::published(&text));
        }
    }

    fn add(&mut self, key: FeatureKey, answer: Answer) {
        match answer {
            Answer::Given(text) => drop(self.texts.insert(key, text)),
            Answer::Unable => drop(self.unable.insert(key)),
            Answer::Unparsed => self.without += 1,
        }
    }

    /// The features with a text, by hook point.
    pub fn features(&self) -> Vec<(&HookPoint, Vec<FeatureId>)> {
        let keys: Vec<&FeatureKey> = self.texts.keys().collect();
        let of_hook = |keys: &[&FeatureKey]| keys.iter().map(|key| key.feature).collect();
        keys.chunk_by(|a, b| a.hook == b.hook).map(|keys| (&keys[0].hook, of_hook(keys))).collect::<Vec<_>>()
    }
}

/// The published files of a stage in a folder: those named after the hook point whose features they hold,
/// `model_layers_24.json`, or of what was made of them `model_layers_24_labels.json`.
fn published_files(folder: &Path, stage: &str) -> Result<Vec<(PathBuf, Published)>, ExplainKitError> {
    let suffix = if stage == EXPLANATIONS { String::new() } else { format!("_{stage}") };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ExplainKitError::io("the folder", folder))? {
        let path = entry.map_err(ExplainKitError::io("the folder", folder))?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_none_or(|extension| extension != "json") || !stem.ends_with(&suffix) {
            continue;
        }
        // Manifests and much else are JSON too.
        let Ok(published) = read_published(&path) else {
            tracing::debug!("{} holds no texts of features", path.display());
            continue;
        };
        let fits = |key: &FeatureKey| format!("{}{suffix}", key.hook.file_stem()) == stem;
        if published.texts.keys().any(fits) {
            found.push((path, published));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}
