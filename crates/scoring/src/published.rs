//! Score files as multimodal-sae and delphi write them: lists of rows.
//!
//! multimodal-sae (commit 60265c3) dumps its scores with Python's `json.dump(rows, file, indent=4)`. Its rows of overlaps come
//! from `segment_scorer.py`, those of CLIP scores from `clip_scorer.py`, those of text from `launch/score/score.py`.
//! [`rows_to_json`] writes the same bytes for the same numbers, and [`rows_from_json`] reads them with the `NaN` that Python
//! allows. In them -1 stands for what could not be scored, and features without an explanation have a row with -1 in place of
//! every number.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Number;

use crate::{ImageOutcome, ScoringError, python_json};

/// Stands for what could not be scored.
const NONE: f64 = -1.0;

/// The overlaps of one feature. A file of several random runs has a row per feature and run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "RawIouRow", into = "RawIouRow")]
pub struct IouRow {
    /// Such as `model.layers.24_feature12`.
    pub feature: String,
    /// One per image, the strongest first: -1 where grounding failed or found nothing, NaN where both masks are empty.
    pub iou_scores: Vec<f64>,
    /// Their mean, with 0 for each that failed; -1 without an explanation.
    pub avg_iou: f64,
    /// How many images; -1 without an explanation.
    pub k: i64,
    /// The mean share of the image that the feature's mask covers, 0 to 1, over the images that did not fail, 0 if all did; -1
    /// without an explanation.
    pub activated_pct: f64,
    /// The explanation.
    pub label: String,
}

/// The CLIP scores of one feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "RawClipRow", into = "RawClipRow")]
pub struct ClipRow {
    /// Such as `model.layers.24_feature12`.
    pub feature: String,
    /// 0 to 100.
    pub clip_scores: ClipScores,
    /// Their mean; -1 without an explanation.
    pub avg_score: f64,
    /// How many; -1 without an explanation.
    pub k: i64,
    /// The explanation.
    pub label: String,
}

/// The CLIP scores of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClipScores {
    /// Of the feature's images or of random ones.
    Images(Vec<f64>),
    /// Of one generated image; there is a row for each.
    Generated(f64),
}

/// One question of the text scorer, of which each feature has a file. Its judge rates each example from 0 to 3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextRow {
    /// What was asked last, examples and explanation.
    pub examples: String,
    /// The list that was answered, of whatever length.
    pub scores: Vec<Number>,
    /// The largest activation of each example.
    pub max_activations: Vec<f64>,
}

/// One judged example of delphi's detection or fuzzing scorer, of which each feature has a file (commit 3c2e139, `sample.py`).
/// delphi writes compact JSON, as
/// `serde_json::to_string` does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DelphiSample {
    /// The tokens.
    pub str_tokens: Vec<String>,
    /// Their activations.
    pub activations: Vec<f64>,
    /// The group by activation, 0 the strongest, of one in which the feature is on; of another how far the feature is that it was
    /// picked by, -1 if by none.
    pub distance: Number,
    /// Whether the feature is on in it.
    pub activating: bool,
    /// The verdict; none where the answer could not be read.
    pub prediction: Option<bool>,
    /// The probability of yes, where the server gave one.
    pub probability: Option<f64>,
    /// Whether the verdict is right.
    pub correct: Option<bool>,
}

/// Reads a file's rows; their type is [`IouRow`], [`ClipRow`], [`TextRow`] or [`DelphiSample`].
///
/// # Errors
/// When the text is no list of such rows.
pub fn rows_from_json<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, ScoringError> {
    serde_json::from_str(&python_json::without_nan(text)).map_err(ScoringError::Rows)
}

/// The bytes of multimodal-sae's file of such rows: [`IouRow`], [`ClipRow`] or [`TextRow`].
///
/// # Errors
/// When a row cannot be written as JSON; those of this crate always can.
pub fn rows_to_json<T: Serialize>(rows: &[T]) -> Result<String, ScoringError> {
    python_json::to_string(&rows).map_err(ScoringError::Rows)
}

impl IouRow {
    /// The row of a feature with an explanation: what became of its images, and the share of each image that did not fail which
    /// the feature's mask covers. The mean is multimodal-sae's, with 0 for what failed or was not found; where two masks are
    /// empty it is NaN, as there.
    pub fn of(
        feature: impl Into<String>,
        label: impl Into<String>,
        images: &[ImageOutcome],
        covered: &[f64],
    ) -> Self {
        let score = |image: &ImageOutcome| match image {
            ImageOutcome::Scored(overlap) => *overlap,
            ImageOutcome::BothEmpty => f64::NAN,
            ImageOutcome::NoDetection | ImageOutcome::Failed(_) => NONE,
        };
        let iou_scores: Vec<f64> = images.iter().map(score).collect();
        // In the order of the original, so that the last digit is the same.
        let sum = iou_scores.iter().fold(0.0, |sum, score| sum + score);
        let failed = iou_scores.iter().filter(|&&score| score == NONE).count();
        let covered_sum: f64 = covered.iter().sum();
        Self {
            feature: feature.into(),
            avg_iou: (sum + failed as f64) / iou_scores.len() as f64,
            k: iou_scores.len() as i64,
            iou_scores,
            activated_pct: if covered.is_empty() { 0.0 } else { covered_sum / covered.len() as f64 },
            label: label.into(),
        }
    }

    /// The row of a feature that the explainer had nothing to say about, with what it said.
    pub fn unable(feature: impl Into<String>, label: impl Into<String>) -> Self {
        let (feature, label) = (feature.into(), label.into());
        Self { feature, iou_scores: Vec::new(), avg_iou: NONE, k: -1, activated_pct: NONE, label }
    }

    /// Whether it is such a row.
    pub fn is_unable(&self) -> bool {
        self.k == -1
    }
}

impl ClipRow {
    /// The row of a feature with an explanation and the scores of its images.
    pub fn of(feature: impl Into<String>, label: impl Into<String>, scores: Vec<f64>) -> Self {
        let (feature, label) = (feature.into(), label.into());
        let avg_score = scores.iter().sum::<f64>() / scores.len() as f64;
        Self { feature, avg_score, k: scores.len() as i64, clip_scores: ClipScores::Images(scores), label }
    }

    /// The row of a generated image.
    pub fn generated(feature: impl Into<String>, label: impl Into<String>, score: f64) -> Self {
        let (feature, label) = (feature.into(), label.into());
        Self { feature, avg_score: score, k: 1, clip_scores: ClipScores::Generated(score), label }
    }

    /// The row of a feature that the explainer had nothing to say about, with what it said.
    pub fn unable(feature: impl Into<String>, label: impl Into<String>) -> Self {
        let (feature, label) = (feature.into(), label.into());
        Self { feature, clip_scores: ClipScores::Images(Vec::new()), avg_score: NONE, k: -1, label }
    }

    /// Whether it is such a row.
    pub fn is_unable(&self) -> bool {
        self.k == -1
    }
}

/// A row as it is written. multimodal-sae's numbers are integers where it sets them itself, and `None` is NaN.
#[derive(Serialize, Deserialize)]
struct RawIouRow {
    feature: String,
    iou_scores: Vec<Option<Number>>,
    avg_iou: Option<Number>,
    k: i64,
    activated_pct: Option<Number>,
    label: String,
}

#[derive(Serialize, Deserialize)]
struct RawClipRow {
    feature: String,
    clip_scores: ClipScores,
    avg_score: Option<Number>,
    k: i64,
    label: String,
}

fn number(value: f64) -> Option<Number> {
    if value == NONE { Some(Number::from(-1)) } else { Number::from_f64(value) }
}

fn value(number: Option<Number>) -> f64 {
    number.and_then(|number| number.as_f64()).unwrap_or(f64::NAN)
}

impl From<IouRow> for RawIouRow {
    fn from(row: IouRow) -> Self {
        let all_failed = !row.is_unable() && row.iou_scores.iter().all(|&score| score == NONE);
        Self {
            activated_pct: if all_failed { Some(Number::from(0)) } else { number(row.activated_pct) },
            feature: row.feature,
            iou_scores: row.iou_scores.into_iter().map(number).collect(),
            avg_iou: number(row.avg_iou),
            k: row.k,
            label: row.label,
        }
    }
}

impl From<RawIouRow> for IouRow {
    fn from(row: RawIouRow) -> Self {
        Self {
            feature: row.feature,
            iou_scores: row.iou_scores.into_iter().map(value).collect(),
            avg_iou: value(row.avg_iou),
            k: row.k,
            activated_pct: value(row.activated_pct),
            label: row.label,
        }
    }
}

impl From<ClipRow> for RawClipRow {
    fn from(row: ClipRow) -> Self {
        let avg_score = number(row.avg_score);
        Self { feature: row.feature, clip_scores: row.clip_scores, avg_score, k: row.k, label: row.label }
    }
}

impl From<RawClipRow> for ClipRow {
    fn from(row: RawClipRow) -> Self {
        let avg_score = value(row.avg_score);
        Self { feature: row.feature, clip_scores: row.clip_scores, avg_score, k: row.k, label: row.label }
    }
}
