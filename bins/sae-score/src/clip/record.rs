//! [`ClipRecord`]: what became of scoring one feature with CLIP, a line of the ledger.

use explain::FeatureKey;
use explain_kit::Entry;
use sae_types::{FeatureId, HookPoint, SampleId};
use scoring::published::ClipRow;
use scoring::{FeatureEntry, FeatureOutcome, Summary};
use serde::{Deserialize, Serialize};

/// The baselines of the score of whole images, and of that of regions.
pub(crate) const WHOLE_BASELINES: [&str; 2] = ["explanation of another feature", "random images"];
pub(crate) const REGION_BASELINES: [&str; 2] = ["explanation of another feature", "rest of the image"];

/// One feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClipRecord {
    hook: HookPoint,
    feature: FeatureId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    about: Option<String>,
    /// What the images are compared with.
    pub(crate) text: String,
    /// What another feature was said to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) other_text: Option<String>,
    /// The images in which it is strongest, in order.
    pub(crate) images: Vec<ImageScores>,
    /// The explanation with random images; none of one whose embedding has no direction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) random: Vec<Option<f64>>,
    /// The explanation with images that were made of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) generated: Vec<Option<f64>>,
    /// Why nothing could be scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// The scores of one image, 0 to 100.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageScores {
    pub(crate) sample: SampleId,
    /// The image with the explanation.
    pub(crate) whole: Option<f64>,
    /// With that of another feature.
    pub(crate) other: Option<f64>,
    /// Where the feature is on, black elsewhere, with the explanation; none if it is on nowhere.
    pub(crate) region: Option<f64>,
    /// With that of another feature.
    pub(crate) region_other: Option<f64>,
    /// Where the feature is off, with the explanation; none if it is on everywhere.
    pub(crate) rest: Option<f64>,
}

impl ClipRecord {
    pub(crate) fn new(key: &FeatureKey, text: &str) -> Self {
        Self {
            hook: key.hook.clone(),
            feature: key.feature,
            about: None,
            text: text.to_owned(),
            other_text: None,
            images: Vec::new(),
            random: Vec::new(),
            generated: Vec::new(),
            failed: None,
        }
    }

    /// A feature that cannot be scored at all.
    pub(crate) fn failed(key: &FeatureKey, text: &str, reason: String) -> Self {
        Self { failed: Some(reason), ..Self::new(key, text) }
    }

    fn mean(&self, score: impl Fn(&ImageScores) -> Option<f64>) -> Option<f64> {
        Summary::of(self.images.iter().filter_map(score)).map(|summary| summary.mean)
    }

    fn entry(
        &self,
        concept: Option<String>,
        score: Option<f64>,
        baselines: Vec<Option<f64>>,
    ) -> FeatureEntry {
        let outcome =
            if self.failed.is_some() { FeatureOutcome::Failed } else { FeatureOutcome::from(score) };
        FeatureEntry { concept, outcome, baselines }
    }

    /// What whole images add to a table.
    pub(crate) fn whole(&self, concept: Option<String>) -> FeatureEntry {
        let random = Summary::of(self.random.iter().copied().flatten()).map(|summary| summary.mean);
        self.entry(concept, self.mean(|image| image.whole), vec![self.mean(|image| image.other), random])
    }

    /// What regions add to a table.
    pub(crate) fn region(&self, concept: Option<String>) -> FeatureEntry {
        let baselines = vec![self.mean(|image| image.region_other), self.mean(|image| image.rest)];
        self.entry(concept, self.mean(|image| image.region), baselines)
    }

    /// The mean over images that were made of the explanation.
    pub(crate) fn generated_mean(&self) -> Option<f64> {
        Summary::of(self.generated.iter().copied().flatten()).map(|summary| summary.mean)
    }

    /// As multimodal-sae writes it; `None` of a feature that was not scored.
    pub(crate) fn published(&self) -> Option<ClipRow> {
        let scores: Vec<f64> = self.images.iter().filter_map(|image| image.whole).collect();
        (!scores.is_empty()).then(|| ClipRow::of(self.key().to_string(), &*self.text, scores))
    }
}

impl Entry for ClipRecord {
    fn key(&self) -> FeatureKey {
        FeatureKey { hook: self.hook.clone(), feature: self.feature }
    }

    fn about(&self) -> Option<&str> {
        self.about.as_deref()
    }

    fn set_about(&mut self, about: Option<String>) {
        self.about = about;
    }

    fn is_failed(&self) -> bool {
        self.failed.is_some()
    }

    fn worth(&self) -> u8 {
        u8::from(!self.is_failed())
    }
}
