//! [`CacheError`]: what can be wrong with a cache, or with what is put into one.

use std::path::PathBuf;

use sae_types::{FeatureId, FilterError, HookPoint, SampleId};

use crate::ActivationDtype;

/// Why a cache could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, such as `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A folder that holds something already.
    #[error("{} exists and is not an empty folder: remove it or choose another place for the cache", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// JSON that cannot be read or lacks a member.
    #[error("{}{} is not as the cache format has it", path.display(), line.map(|n| format!(", line {n},")).unwrap_or_default())]
    Json {
        /// The file.
        path: PathBuf,
        /// The line of samples.jsonl, from 1.
        line: Option<usize>,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A value that does not fit the rest of the cache.
    #[error("{}: {field} is {got}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The member of it.
        field: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A split whose safetensors header cannot be read.
    #[error("{} has no sound safetensors header: it is truncated or not a split of a cache", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The cause, if the header was there at all.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// A tensor of a split that is missing or does not fit.
    #[error("{}: tensor {tensor} {problem}, expected {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What it should be.
        expected: String,
    },
    /// A file that changed after it was written.
    #[error("{} has SHA-256 {got}, its manifest says {expected}: the file was damaged or replaced", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// The hash in the manifest.
        expected: String,
        /// The hash of the file.
        got: String,
    },
    /// An entry of a split that breaks the format.
    #[error("{}: feature {feature}, entry {entry}: {problem}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The feature.
        feature: FeatureId,
        /// The entry among the feature's.
        entry: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A hook point the cache does not hold.
    #[error("the cache does not hold hook point {hook}; it holds {}", names(known))]
    UnknownHook {
        /// The hook point asked for.
        hook: HookPoint,
        /// Those there are.
        known: Vec<HookPoint>,
    },
    /// A feature the sparse autoencoder does not have.
    #[error("feature {feature} is beyond the {width} latents of {hook}: the last one is {}", width.saturating_sub(1))]
    BeyondWidth {
        /// The hook point.
        hook: HookPoint,
        /// The feature asked for.
        feature: FeatureId,
        /// How many latents there are.
        width: usize,
    },
    /// A feature that the cache's filters left out.
    #[error(
        "feature {feature} of {hook} is not in the filters this cache was made with: make one that includes it"
    )]
    NotCached {
        /// The hook point.
        hook: HookPoint,
        /// The feature asked for.
        feature: FeatureId,
    },
    /// A question about base tiles to a cache that has none.
    #[error("the cache names no base tile in its token layout: make it from images")]
    NoBaseTile,
    /// A description or option that makes no cache.
    #[error("{field} is {got}, expected {expected}")]
    Description {
        /// The field.
        field: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// Filters that do not fit the hook points described.
    #[error("the filters do not fit the sparse autoencoder")]
    Filters {
        /// The cause.
        #[source]
        source: FilterError,
    },
    /// A sample that does not come after the one before it.
    #[error("sample {sample} comes after sample {before}: push samples in ascending order, each once")]
    SampleOrder {
        /// The sample.
        sample: SampleId,
        /// The one before it.
        before: SampleId,
    },
    /// A sample or its codes that do not fit the cache's description.
    #[error("sample {sample}: {what} is {got}, expected {expected}")]
    Sample {
        /// The sample.
        sample: SampleId,
        /// What does not fit.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A name that is no dtype of activations.
    #[error("{text:?} is no dtype of activations: expected f32, f16 or bf16")]
    UnknownDtype {
        /// What was given.
        text: String,
    },
    /// An activation that the chosen dtype cannot hold.
    #[error(
        "sample {sample}, feature {feature}: activation {value} is beyond the range of {dtype}; use bf16 or f32"
    )]
    Overflow {
        /// The sample.
        sample: SampleId,
        /// The feature.
        feature: FeatureId,
        /// The activation.
        value: f32,
        /// The dtype of the cache.
        dtype: ActivationDtype,
    },
}

impl CacheError {
    /// For `map_err`: names the action and the path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

fn names(hooks: &[HookPoint]) -> String {
    if hooks.is_empty() {
        return "none".to_owned();
    }
    hooks.iter().map(HookPoint::as_str).collect::<Vec<_>>().join(", ")
}
