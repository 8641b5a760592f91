//! [`ScoreRecord`]: what became of scoring one feature by its images, a line of a ledger.

use explain::FeatureKey;
use explain_kit::Entry;
use sae_types::{FeatureId, HookPoint};
use scoring::FeatureOutcome;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One feature: `I` is said of each of its own images, `S` of every other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScoreRecord<I, S> {
    hook: HookPoint,
    feature: FeatureId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    about: Option<String>,
    /// What the feature was said to show.
    pub(crate) text: String,
    /// What another feature was said to show, a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) other_text: Option<String>,
    /// The images in which it is strongest, in order.
    pub(crate) images: Vec<I>,
    /// Random images, multimodal-sae's baseline.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) random: Vec<S>,
    /// Images that were made of the text, for a score that looks at such ones.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) generated: Vec<S>,
    /// Whether the explainer had nothing to say, so that there is nothing to score.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unable: bool,
    /// Why nothing could be scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// What is said of an image, or why nothing can be.
pub(crate) trait OfImage {
    /// Why it could not be looked at.
    fn failure(&self) -> Option<&str>;
}

impl<I, S> ScoreRecord<I, S> {
    /// A feature of which nothing is known yet.
    pub(crate) fn new(key: &FeatureKey, text: &str, other_text: Option<&str>) -> Self {
        Self {
            hook: key.hook.clone(),
            feature: key.feature,
            about: None,
            text: text.to_owned(),
            other_text: other_text.map(str::to_owned),
            images: Vec::new(),
            random: Vec::new(),
            generated: Vec::new(),
            unable: false,
            failed: None,
        }
    }

    /// A feature of which the explainer had nothing to say.
    pub(crate) fn unable(key: &FeatureKey) -> Self {
        Self { unable: true, ..Self::new(key, "", None) }
    }

    /// A feature that cannot be scored at all.
    pub(crate) fn failed(key: &FeatureKey, text: &str, other_text: Option<&str>, reason: String) -> Self {
        Self { failed: Some(reason), ..Self::new(key, text, other_text) }
    }
}

impl<I: OfImage, S> ScoreRecord<I, S> {
    /// Whether any of its images could be looked at.
    pub(crate) fn is_known(&self) -> bool {
        self.images.iter().any(|image| image.failure().is_none())
    }

    /// What a score of it counts as in a table.
    pub(crate) fn outcome(&self, score: Option<f64>) -> FeatureOutcome {
        match (self.unable, self.is_known()) {
            (true, _) => FeatureOutcome::Unable,
            (false, true) => FeatureOutcome::from(score),
            (false, false) => FeatureOutcome::Failed,
        }
    }
}

impl<I, S> Entry for ScoreRecord<I, S>
where
    I: OfImage + Clone + Serialize + DeserializeOwned,
    S: Clone + Serialize + DeserializeOwned,
{
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
        self.failed.is_some() || self.images.iter().any(|image| image.failure().is_some())
    }

    fn worth(&self) -> u8 {
        match (self.is_failed(), self.is_known()) {
            (false, _) => 2,
            (true, true) => 1,
            (true, false) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Serialize, Deserialize)]
    struct Image(Option<String>);

    impl OfImage for Image {
        fn failure(&self) -> Option<&str> {
            self.0.as_deref()
        }
    }

    fn record(images: &[bool]) -> ScoreRecord<Image, ()> {
        let key = "model.layers.1_feature2".parse().unwrap();
        let image = |&good: &bool| Image((!good).then(|| "no mask".to_owned()));
        ScoreRecord { images: images.iter().map(image).collect(), ..ScoreRecord::new(&key, "red", None) }
    }

    #[test]
    fn images_that_could_not_be_looked_at_are_tried_again() {
        let [all, some, none] = [&[true, true][..], &[true, false], &[false, false]].map(record);
        assert_eq!([&all, &some, &none].map(Entry::is_failed), [false, true, true]);
        assert_eq!(
            [&all, &some, &none].map(|record| record.outcome(Some(0.5))),
            [FeatureOutcome::Scored(0.5), FeatureOutcome::Scored(0.5), FeatureOutcome::Failed,]
        );
        // No score of images that were looked at is another thing.
        assert_eq!(all.outcome(None), FeatureOutcome::Undefined);
        assert!(all.worth() > some.worth() && some.worth() > none.worth());
        let unable = ScoreRecord::<Image, ()>::unable(&all.key());
        assert!(unable.outcome(None) == FeatureOutcome::Unable && !unable.is_failed());
        let failed = ScoreRecord::<Image, ()>::failed(&all.key(), "red", None, "no cache".to_owned());
        assert!(failed.outcome(None) == FeatureOutcome::Failed && failed.is_failed());
    }
}
