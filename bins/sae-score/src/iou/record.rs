//! [`IouRecord`]: what became of scoring one feature by overlap, a line of the ledger.

use explain::FeatureKey;
use explain_kit::Entry;
use sae_types::{FeatureId, HookPoint, SampleId};
use scoring::published::IouRow;
use scoring::{FeatureEntry, FeatureOutcome, FeatureScore, ImageOutcome, Policy};
use serde::{Deserialize, Serialize};

/// The baselines, in the order of a record's scores.
pub(crate) const BASELINES: [&str; 4] =
    ["explanation of another feature", "mask moved", "whole image", "random images"];

/// One feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IouRecord {
    hook: HookPoint,
    feature: FeatureId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    about: Option<String>,
    /// What was looked for.
    pub(crate) text: String,
    /// What another feature was said to show, which is looked for as a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) other_text: Option<String>,
    /// The images in which it is strongest, in order.
    pub(crate) images: Vec<ImageScores>,
    /// Random images, each with the feature's own mask in it, which is mostly empty: multimodal-sae's baseline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) random: Vec<ImageOutcome>,
    /// Why nothing could be scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

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

impl IouRecord {
    pub(crate) fn new(key: &FeatureKey, text: &str) -> Self {
        Self {
            hook: key.hook.clone(),
            feature: key.feature,
            about: None,
            text: text.to_owned(),
            other_text: None,
            images: Vec::new(),
            random: Vec::new(),
            failed: None,
        }
    }

    /// A feature that cannot be scored at all.
    pub(crate) fn failed(key: &FeatureKey, text: &str, reason: String) -> Self {
        Self { failed: Some(reason), ..Self::new(key, text) }
    }

    /// The score.
    pub(crate) fn score(&self, policy: Policy) -> FeatureScore {
        FeatureScore::of(self.images.iter().map(|image| &image.own), policy)
    }

    /// What it adds to a table under a label.
    pub(crate) fn entry(&self, policy: Policy, concept: Option<String>) -> FeatureEntry {
        let mean =
            |outcomes: &mut dyn Iterator<Item = &ImageOutcome>| FeatureScore::of(outcomes, policy).mean;
        let outcome = match self.failed {
            Some(_) => FeatureOutcome::Failed,
            None => FeatureOutcome::from(self.score(policy).mean),
        };
        let baselines = vec![
            mean(&mut self.images.iter().filter_map(|image| image.other.as_ref())),
            mean(&mut self.images.iter().map(|image| &image.moved)),
            mean(&mut self.images.iter().map(|image| &image.whole)),
            mean(&mut self.random.iter()),
        ];
        FeatureEntry { concept, outcome, baselines }
    }

    /// As multimodal-sae writes it; `None` of a feature that was not scored.
    pub(crate) fn published(&self) -> Option<IouRow> {
        if self.failed.is_some() {
            return None;
        }
        let outcomes: Vec<ImageOutcome> = self.images.iter().map(|image| image.own.clone()).collect();
        let counted =
            |image: &&ImageScores| !matches!(image.own, ImageOutcome::Failed(_) | ImageOutcome::NoDetection);
        let covered: Vec<f64> = self.images.iter().filter(counted).map(|image| image.covered).collect();
        Some(IouRow::of(self.key().to_string(), &*self.text, &outcomes, &covered))
    }
}

impl Entry for IouRecord {
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
