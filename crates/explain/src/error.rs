//! What can go wrong between a cache and an explanation.

use std::path::{Path, PathBuf};

use sae_types::{FeatureId, SampleId};

/// Why something could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// A heat map whose values do not fill its grid.
    #[error("a heat map of {rows} x {cols} patches needs {}, got {got} values", rows * cols)]
    HeatMapSize {
        /// Rows of patches.
        rows: usize,
        /// Columns of patches.
        cols: usize,
        /// How many values there were.
        got: usize,
    },
    /// The cache was made from prompts without an image, or does not say where the image lies.
    #[error("the cache names no base tile in its token layout: make it with `sae-cache images`")]
    NoBaseTile,
    /// The cache could not be read.
    #[error("reading feature {feature} of the cache")]
    Cache {
        /// The feature that was asked for.
        feature: FeatureId,
        /// What the cache said.
        #[source]
        source: act_cache::CacheError,
    },
    /// An activation that lies on no sample the cache knows.
    #[error("sample {sample} has an activation but no line in the cache's samples.jsonl")]
    UnknownSample {
        /// The sample.
        sample: SampleId,
    },
    /// A picture that its format cannot hold.
    #[error("cannot encode a picture of {width} x {height} pixels")]
    Encode {
        /// Pixels from left to right.
        width: u32,
        /// Pixels from top to bottom.
        height: u32,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Token ids that the tokenizer cannot turn into text.
    #[error(
        "cannot turn the token ids of sample {sample} into text: is it the model the cache was made with?"
    )]
    Text {
        /// The sample.
        sample: SampleId,
        /// The cause.
        #[source]
        source: lmm_prep::PrepError,
    },
    /// A file that is no list of published explanations.
    #[error("{} is no file of explanations: {problem}", path.display())]
    Published {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A model whose unembedding cannot be used.
    #[error("cannot use the unembedding of {}: {problem}", path.display())]
    Unembedding {
        /// The model's folder, or the file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl ExplainError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
