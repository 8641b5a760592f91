//! [`IouRecord`]: what became of scoring one feature by overlap, a line of the ledger.

use explain_kit::Entry;
use sae_types::SampleId;
use scoring::published::IouRow;
use scoring::{FeatureEntry, FeatureScore, ImageOutcome, Policy};
use serde::{Deserialize, Serialize};

use crate::record::{OfImage, ScoreRecord};

/// The baselines, in the order of a record's scores.
pub(crate) const BASELINES: [&str; 4] =
    ["explanation of another feature", "mask moved", "whole image", "random images"];

/// One feature. Its own mask is looked for in random images too, where it is mostly empty.
pub(crate) type IouRecord = ScoreRecord<ImageScores, ImageOutcome>;

/// One image, beside baselines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageScores {
    pub(crate) sample: SampleId,
    /// The share of the image that the feature's mask covers, 0 to 1.
    pub(crate) covered: f64,
    pub(crate) own: ImageOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) other: Option<ImageOutcome>,
    pub(crate) moved: ImageOutcome,
    pub(crate) whole: ImageOutcome,
}

impl ImageScores {
    /// An image that cannot be had.
    pub(crate) fn failed(sample: SampleId, reason: &str) -> Self {
        let failed = || ImageOutcome::Failed(reason.to_owned());
        Self { sample, covered: 0.0, own: failed(), other: None, moved: failed(), whole: failed() }
    }
}

impl OfImage for ImageScores {
    fn failure(&self) -> Option<&str> {
        match &self.own {
            ImageOutcome::Failed(reason) => Some(reason),
            _ => None,
        }
    }
}

impl IouRecord {
    /// The score.
    pub(crate) fn score(&self, policy: Policy) -> FeatureScore {
        FeatureScore::of(self.images.iter().map(|image| &image.own), policy)
    }

    /// What it adds to a table under a label.
    pub(crate) fn entry(&self, policy: Policy, concept: Option<String>) -> FeatureEntry {
        let mean =
            |outcomes: &mut dyn Iterator<Item = &ImageOutcome>| FeatureScore::of(outcomes, policy).mean;
        let baselines = vec![
            mean(&mut self.images.iter().filter_map(|image| image.other.as_ref())),
            mean(&mut self.images.iter().map(|image| &image.moved)),
            mean(&mut self.images.iter().map(|image| &image.whole)),
            mean(&mut self.random.iter()),
        ];
        FeatureEntry { concept, outcome: self.outcome(self.score(policy).mean), baselines }
    }

    /// As multimodal-sae writes it; `None` of a feature that was not scored.
    pub(crate) fn published(&self) -> Option<IouRow> {
        if self.images.is_empty() {
            return None;
        }
        let outcomes: Vec<ImageOutcome> = self.images.iter().map(|image| image.own.clone()).collect();
        let counted =
            |image: &&ImageScores| !matches!(image.own, ImageOutcome::Failed(_) | ImageOutcome::NoDetection);
        let covered: Vec<f64> = self.images.iter().filter(counted).map(|image| image.covered).collect();
        Some(IouRow::of(self.key().to_string(), &*self.text, &outcomes, &covered))
    }
}
