//! Intersection over union of one feature: what became of each of its images, and its score.

use serde::{Deserialize, Serialize};

use crate::Agreement;

/// What became of one image of a feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageOutcome {
    /// The feature's mask and the concept's overlap by this much, 0 to 1.
    Scored(f64),
    /// Both masks are empty: nothing can be said.
    BothEmpty,
    /// The feature is on somewhere, but its explanation was found nowhere in the image.
    NoDetection,
    /// The image could not be scored, for this reason.
    Failed(String),
}

/// What an image without a score counts as in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountAs {
    /// An overlap of 0.
    Zero,
    /// Nothing: it is left out of the mean, and counted apart.
    Apart,
}

impl CountAs {
    fn overlap(self) -> Option<f64> {
        match self {
            Self::Zero => Some(0.0),
            Self::Apart => None,
        }
    }
}

/// What images without a score count as. Two empty masks always count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Explanations that are found nowhere in the image.
    pub no_detection: CountAs,
    /// Images that could not be scored.
    pub failed: CountAs,
}

impl Policy {
    /// multimodal-sae's, where a detector that finds nothing raises an exception, and every exception counts as 0.
    pub const MSAE: Self = Self { no_detection: CountAs::Zero, failed: CountAs::Zero };
}

impl Default for Policy {
    /// What an explanation names and the image lacks is a miss of the explanation, and counts 0; a fault of the machinery is no
    /// fault of the explanation, and counts apart.
    fn default() -> Self {
        Self { no_detection: CountAs::Zero, failed: CountAs::Apart }
    }
}

impl ImageOutcome {
    /// From the feature's mask and that of what was found, `[height * width]` each, row by row.
    ///
    /// # Panics
    /// When the masks differ in length.
    #[track_caller]
    pub fn of(feature: &[bool], found: &[bool]) -> Self {
        let Some(iou) = Agreement::of(feature, found).iou() else { return Self::BothEmpty };
        if found.contains(&true) { Self::Scored(iou) } else { Self::NoDetection }
    }
}

/// The score of one feature over its images, with what became of those that are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureScore {
    /// The mean overlap of the images that count; `None` where none does.
    pub mean: Option<f64>,
    /// Images that count in the mean.
    pub counted: usize,
    /// Of all images those with an overlap.
    pub scored: usize,
    /// Those with two empty masks.
    pub both_empty: usize,
    /// Those in which the explanation was not found.
    pub no_detection: usize,
    /// Those that could not be scored.
    pub failed: usize,
}

impl FeatureScore {
    /// Sums up what became of a feature's images.
    pub fn of<'a>(images: impl IntoIterator<Item = &'a ImageOutcome>, policy: Policy) -> Self {
        let mut score = Self::default();
        let mut counted = Vec::new();
        for image in images {
            let (counter, overlap) = match image {
                ImageOutcome::Scored(overlap) => (&mut score.scored, Some(*overlap)),
                ImageOutcome::BothEmpty => (&mut score.both_empty, None),
                ImageOutcome::NoDetection => (&mut score.no_detection, policy.no_detection.overlap()),
                ImageOutcome::Failed(_) => (&mut score.failed, policy.failed.overlap()),
            };
            *counter += 1;
            counted.extend(overlap);
        }
        score.counted = counted.len();
        let sum = counted.iter().fold(0.0, |sum, overlap| sum + overlap);
        score.mean = (score.counted > 0).then(|| sum / score.counted as f64);
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_four_outcomes() {
        let (none, left, all) = ([false, false], [true, false], [true, true]);
        assert_eq!(ImageOutcome::of(&left, &all), ImageOutcome::Scored(0.5));
        assert_eq!(ImageOutcome::of(&left, &none), ImageOutcome::NoDetection);
        assert_eq!(ImageOutcome::of(&none, &none), ImageOutcome::BothEmpty);
        // The feature is off where the concept is found: a miss, not nothing.
        assert_eq!(ImageOutcome::of(&none, &left), ImageOutcome::Scored(0.0));
    }

    #[test]
    fn the_policy_says_what_counts() {
        let images = [
            ImageOutcome::Scored(0.75),
            ImageOutcome::Scored(0.25),
            ImageOutcome::NoDetection,
            ImageOutcome::BothEmpty,
            ImageOutcome::Failed("out of memory".to_owned()),
        ];
        let counts = |score: FeatureScore| {
            (score.mean, score.counted, score.scored, score.both_empty, score.no_detection, score.failed)
        };
        assert_eq!(counts(FeatureScore::of(&images, Policy::default())), (Some(1.0 / 3.0), 3, 2, 1, 1, 1));
        assert_eq!(counts(FeatureScore::of(&images, Policy::MSAE)), (Some(0.25), 4, 2, 1, 1, 1));
        let apart = Policy { no_detection: CountAs::Apart, failed: CountAs::Apart };
        assert_eq!(counts(FeatureScore::of(&images, apart)), (Some(0.5), 2, 2, 1, 1, 1));
        assert_eq!(counts(FeatureScore::of(&images[3..], apart)), (None, 0, 0, 1, 0, 1));
        assert_eq!(FeatureScore::of(&[], Policy::MSAE), FeatureScore::default());
    }

    #[test]
    fn outcomes_are_read_back() {
        for (outcome, text) in [
            (ImageOutcome::Scored(0.5), r#"{"scored":0.5}"#),
            (ImageOutcome::BothEmpty, r#""both_empty""#),
            (ImageOutcome::NoDetection, r#""no_detection""#),
            (ImageOutcome::Failed("x".to_owned()), r#"{"failed":"x"}"#),
        ] {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), text);
            assert_eq!(serde_json::from_str::<ImageOutcome>(text).unwrap(), outcome);
        }
    }
}
