//! CLIP score: how near an image and a text lie in CLIP's space.
//!
//! `max(100 cos(E_image, E_text), 0)`, of Hessel et al. (2104.08718) as torchmetrics scales it: theirs is 2.5 times the cosine. Unrelated
//! images and texts lie near 20, not near 0, so a score says something only beside that of other images: multimodal-sae reports
//! 23.6 for the images in which a feature is strongest, against 18.2 for random ones.

use serde::{Deserialize, Serialize};

use crate::Summary;

/// The score of an image and a text from their embeddings, of any length; sums are f64. `None` where one has no direction: its
/// length is 0 or no number.
///
/// # Panics
/// When they differ in dimension.
#[track_caller]
pub fn clip_score(image: &[f32], text: &[f32]) -> Option<f64> {
    assert_eq!(image.len(), text.len(), "an image of {} numbers, a text of {}", image.len(), text.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let lengths = (dot(image, image) * dot(text, text)).sqrt();
    (lengths > 0.0 && lengths.is_finite()).then(|| clip_score_of_cosine(dot(image, text) / lengths))
}

/// The score of an image and a text whose embeddings have this cosine.
pub fn clip_score_of_cosine(cosine: f64) -> f64 {
    (100.0 * cosine).clamp(0.0, 100.0)
}

/// The scores of one explanation: with the images in which its feature is strong, and with others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipComparison {
    /// With the feature's own images; `None` without any.
    pub own: Option<Summary>,
    /// With other images; `None` without any.
    pub others: Option<Summary>,
    /// The mean with its own less that with others: what the explanation has to do with the feature.
    pub margin: Option<f64>,
    /// How likely an own image scores higher than another, ties counted half; `None` unless there are both.
    pub own_above_others: Option<f64>,
}

impl ClipComparison {
    /// From the scores of an explanation with its own images and with others.
    ///
    /// # Panics
    /// When a score is no number.
    #[track_caller]
    pub fn of(own: &[f64], others: &[f64]) -> Self {
        let [of_own, of_others] = [own, others].map(|scores| Summary::of(scores.iter().copied()));
        let margin = of_own.zip(of_others).map(|(own, others)| own.mean - others.mean);
        let labelled = |is_own: bool, scores: &[f64]| -> Vec<(bool, f64)> {
            scores.iter().map(|&score| (is_own, score)).collect()
        };
        let area = crate::Auc::of([labelled(true, own), labelled(false, others)].concat());
        Self { own: of_own, others: of_others, margin, own_above_others: area.map(|auc| auc.area) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_a_hundred_cosines() {
        assert!((clip_score(&[3.0, 4.0], &[2.0, 0.0]).unwrap() - 60.0).abs() < 1e-12);
        assert_eq!(clip_score(&[1.0, 0.0], &[-1.0, 0.0]), Some(0.0));
        assert_eq!(clip_score(&[1.0, 1.0], &[0.0, 0.0]), None);
        assert_eq!(clip_score(&[f32::NAN, 1.0], &[1.0, 0.0]), None);
        // Rounding must not take equal directions above 100.
        let image = [0.1, 0.2, 0.3];
        assert!(clip_score(&image, &image).unwrap() <= 100.0);
    }

    #[test]
    fn own_images_stand_beside_others() {
        let comparison = ClipComparison::of(&[24.0, 26.0], &[18.0, 20.0, 25.0, 17.0]);
        assert_eq!(comparison.margin, Some(5.0));
        assert_eq!((comparison.own.unwrap().mean, comparison.others.unwrap().n), (25.0, 4));
        // 24 is above three of four, 26 above all.
        assert_eq!(comparison.own_above_others, Some(7.0 / 8.0));
        let alone = ClipComparison::of(&[24.0], &[]);
        assert_eq!((alone.margin, alone.others, alone.own_above_others), (None, None, None));
    }

    #[test]
    #[should_panic(expected = "an image of 2 numbers, a text of 1")]
    fn spaces_are_the_same() {
        clip_score(&[1.0, 2.0], &[1.0]);
    }
}
