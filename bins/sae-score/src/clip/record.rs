//! [`ClipRecord`]: what became of scoring one feature with CLIP, a line of the ledger.

use explain_kit::Entry;
use sae_types::SampleId;
use scoring::published::ClipRow;
use scoring::{FeatureEntry, Summary};
use serde::{Deserialize, Serialize};

use crate::record::{OfImage, ScoreRecord};

/// The baselines of the score of whole images, and of that of regions.
pub(crate) const WHOLE_BASELINES: [&str; 2] = ["explanation of another feature", "random images"];
pub(crate) const REGION_BASELINES: [&str; 2] = ["explanation of another feature", "rest of the image"];

/// One feature. An image whose embedding has no direction has no score.
pub(crate) type ClipRecord = ScoreRecord<ImageScores, Option<f64>>;

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
    /// Why the image cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

impl ImageScores {
    /// An image that cannot be had.
    pub(crate) fn failed(sample: SampleId, reason: &str) -> Self {
        let failed = Some(reason.to_owned());
        Self { sample, whole: None, other: None, region: None, region_other: None, rest: None, failed }
    }
}

impl OfImage for ImageScores {
    fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}

impl ClipRecord {
    fn mean(&self, score: impl Fn(&ImageScores) -> Option<f64>) -> Option<f64> {
        Summary::of(self.images.iter().filter_map(score)).map(|summary| summary.mean)
    }

    /// What whole images add to a table.
    pub(crate) fn whole(&self, concept: Option<String>) -> FeatureEntry {
        let random = Summary::of(self.random.iter().copied().flatten()).map(|summary| summary.mean);
        let baselines = vec![self.mean(|image| image.other), random];
        FeatureEntry { concept, outcome: self.outcome(self.mean(|image| image.whole)), baselines }
    }

    /// What regions add to a table.
    pub(crate) fn region(&self, concept: Option<String>) -> FeatureEntry {
        let baselines = vec![self.mean(|image| image.region_other), self.mean(|image| image.rest)];
        FeatureEntry { concept, outcome: self.outcome(self.mean(|image| image.region)), baselines }
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
