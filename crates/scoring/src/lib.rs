//! How well an explanation fits its feature: the arithmetic of scores.
//!
//! Scores of single samples:
//!
//! * [`Agreement`] of two masks and [`ImageOutcome`], their intersection over union or why there is none.
//! * [`clip_score`] of an image and a text.
//! * [`verdicts`] and [`verdict_probabilities`] of a judge, who is asked with the instructions of [`detection`], [`fuzz`] and [`intruder`] about
//!   what [`samples`] picks.
//! * [`Embeddings::monosemanticity`], which needs no explanation.
//!
//! Scores of features: [`FeatureScore`], [`ClipComparison`], and [`JudgeScore`], which holds a [`Confusion`] and an [`Auc`].
//!
//! Scores of many: [`Summary`], [`Proportion`] and [`Paired`], each with its confidence interval; [`ScoreTable`], per concept and
//! in total, beside the [`baselines`]; [`report`], a page of them; [`published`], the rows of multimodal-sae and delphi.
//!
//! What is undefined is said to be so and counted, never scored: two empty masks have no overlap to speak of, a mean of one score
//! has no interval, a feature that is on in one image has no monosemanticity. What is drawn by chance depends on a seed and a
//! stream ([`Random`]), not on threads or workers.
//!
//! The crate owns no model, sends nothing and reads no file: masks come in as booleans, embeddings as numbers, answers as text.
//!
//! ```
//! use scoring::{Agreement, Paired, Summary};
//!
//! let feature = [true, true, false, false];
//! let concept = [true, false, false, true];
//! let agreement = Agreement::of(&feature, &concept);
//! assert_eq!(agreement.iou(), Some(1.0 / 3.0));
//!
//! let summary = Summary::of([0.2, 0.4, 0.6]).unwrap();
//! assert!((summary.mean - 0.4).abs() < 1e-12);
//!
//! // Explained features beside the same features with explanations of others.
//! let paired = Paired::of([(0.5, 0.1), (0.4, 0.08), (0.6, 0.15), (0.45, 0.1)]).unwrap();
//! let [least, _] = paired.ratio_interval_99.unwrap();
//! assert!(least > 3.0);
//! ```

mod agreement;
mod answers;
mod auc;
pub mod baselines;
mod clip_score;
mod confidence;
mod confusion;
pub mod detection;
mod error;
pub mod fuzz;
pub mod intruder;
mod iou;
mod judged;
mod monosemanticity;
mod paired;
mod proportion;
pub mod published;
mod python_json;
mod random;
pub mod report;
pub mod samples;
mod summary;
mod table;

pub use agreement::Agreement;
pub use answers::{AnswerToken, verdict_probabilities, verdicts};
pub use auc::Auc;
pub use clip_score::{ClipComparison, clip_score, clip_score_of_cosine};
pub use confidence::Confidence;
pub use confusion::Confusion;
pub use error::ScoringError;
pub use iou::{CountAs, FeatureScore, ImageOutcome, Policy};
pub use judged::{JudgeScore, Judged};
pub use monosemanticity::Embeddings;
pub use paired::Paired;
pub use proportion::Proportion;
pub use random::Random;
pub use summary::Summary;
pub use table::{BaselineScore, FeatureEntry, FeatureOutcome, ScoreRow, ScoreTable};
