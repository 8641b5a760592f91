//! What can go wrong between what comes from outside and a score.

/// Why something could not be scored or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScoringError {
    /// A level of confidence that no interval has.
    #[error("a level of confidence lies above 0 and below 1 - 1e-12, got {got}")]
    Confidence {
        /// The level.
        got: f64,
    },
    /// An embedding that points nowhere.
    #[error("the embedding of image {image} has length {length}: it has no direction")]
    Embedding {
        /// The row.
        image: usize,
        /// Its Euclidean length.
        length: f64,
    },
    /// An activation on an image that has no embedding.
    #[error("the feature is on in image {image}, but there are embeddings of {n_images} images")]
    UnknownImage {
        /// The image.
        image: u32,
        /// Embeddings.
        n_images: usize,
    },
    /// An activation that a feature cannot have.
    #[error("the feature's activation in image {image} is {value}: expected a finite number from 0 on")]
    Activation {
        /// The image.
        image: u32,
        /// What was given.
        value: f32,
    },
    /// An answer without a list of verdicts.
    #[error("the answer holds no list of zeros and ones such as [1, 0]")]
    NoVerdicts,
    /// An answer whose list of verdicts is not about what was asked.
    #[error("the answer's list has {found} verdicts, expected {expected}")]
    VerdictCount {
        /// Questions.
        expected: usize,
        /// Verdicts.
        found: usize,
    },
    /// An answer that names no intruder.
    #[error("the answer names none of the examples 1 to {examples}")]
    NoIntruder {
        /// How many were shown.
        examples: usize,
    },
    /// A file of scores that is not one.
    #[error("this is no list of score rows")]
    Rows(#[source] serde_json::Error),
}
