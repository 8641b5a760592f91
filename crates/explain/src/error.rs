//! What can go wrong between a cache and an example.

use sae_types::{FeatureId, SampleId};

/// Why an example could not be made.
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
}
