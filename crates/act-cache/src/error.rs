//! [`CacheError`]: what can be wrong with a cache, or with what is put into one.

use std::path::{Path, PathBuf};

use sae_types::{FeatureId, FilterError, HookPoint, SampleId};

use crate::{ActivationDtype, Shard};

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
    /// A memory budget that the machine cannot give.
    #[error("there are no {bytes} bytes of memory for buffered codes: choose a smaller memory budget")]
    Memory {
        /// What was asked for.
        bytes: usize,
    },
    /// A file that does not belong where it is.
    #[error("{} is not of this cache: move it away, or remove the whole folder to start again", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A part that another process writes.
    #[error("another process is writing {}: wait for it, or give every worker a --rank of its own", path.display())]
    Locked {
        /// The part's folder.
        path: PathBuf,
    },
    /// Parts that were begun with another job.
    #[error("{} was begun with {member} {begun}, now it is {got}: go on with the same, or remove the folder to start again", path.display())]
    OtherJob {
        /// The file that names the job.
        path: PathBuf,
        /// What differs.
        member: String,
        /// Its value when the parts were begun.
        begun: String,
        /// Its value now.
        got: String,
    },
    /// Parts of another number of workers.
    #[error("{} was begun by {begun} workers, not {asked}: go on with --world-size {begun}, or remove the folder to start again", path.display())]
    Division {
        /// The folder of the parts.
        path: PathBuf,
        /// How many workers there were.
        begun: usize,
        /// How many there are now.
        asked: usize,
    },
    /// A merge before all parts are complete.
    #[error("{}: {}", path.display(), unfinished(missing))]
    Incomplete {
        /// The folder of the parts.
        path: PathBuf,
        /// The parts that are missing or not complete.
        missing: Vec<Shard>,
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
    /// A feature that the cache's filters left out, or that was lost before the cache was made.
    #[error("feature {feature} of {hook} is not in this cache: make one whose filters include it")]
    NotCached {
        /// The hook point.
        hook: HookPoint,
        /// The feature asked for.
        feature: FeatureId,
    },
    /// A sample the cache does not hold.
    #[error("the cache does not hold sample {sample}; it holds {n_samples}, listed in its samples.jsonl")]
    UnknownSample {
        /// The sample asked for.
        sample: SampleId,
        /// How many there are.
        n_samples: usize,
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
    /// A folder that holds no cache of msae's or delphi's.
    #[error("{} holds no cache of msae or delphi: expected <hook point>/<first latent>_<last latent>.safetensors below it", path.display())]
    NotForeign {
        /// The folder.
        path: PathBuf,
    },
    /// A cache of msae or delphi that does not show which of the two it is.
    #[error("{}: nothing shows whether it is msae's or delphi's, which count latents differently: say which", path.display())]
    UnknownLayout {
        /// The folder.
        path: PathBuf,
    },
    /// An entry of a foreign split that cannot be used, or that another copy of the cache has otherwise.
    #[error("{}: entry {entry}: {problem}", path.display())]
    ForeignEntry {
        /// The file.
        path: PathBuf,
        /// The entry, from 0 in the order of the file.
        entry: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Two splits of one hook point that hold the same latent.
    #[error("{} and {} both hold latent {latent}: remove the one that does not belong here", path.display(), other.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The one before it.
        other: PathBuf,
        /// The first latent both hold.
        latent: usize,
    },
    /// Tables that would not fit the memory allowed.
    #[error("{what} of {} need {needs} bytes of tables, more than the memory allowed, {budget}: allow more if the numbers are right", path.display())]
    Budget {
        /// The folder.
        path: PathBuf,
        /// What the tables are of.
        what: &'static str,
        /// Bytes needed.
        needs: usize,
        /// Bytes allowed.
        budget: usize,
    },
    /// An export to delphi of a cache without token ids.
    #[error(
        "the cache keeps no token ids, from which delphi shows text: make it with its token ids, or ask for padding in their place"
    )]
    NoTokens,
}

impl CacheError {
    /// The file or folder it is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::Exists { path }
            | Self::Json { path, .. }
            | Self::Field { path, .. }
            | Self::Header { path, .. }
            | Self::Tensor { path, .. }
            | Self::Hash { path, .. }
            | Self::Entry { path, .. }
            | Self::Foreign { path }
            | Self::Locked { path }
            | Self::OtherJob { path, .. }
            | Self::Division { path, .. }
            | Self::Incomplete { path, .. } => Some(path),
            _ => None,
        }
    }

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

fn unfinished(missing: &[Shard]) -> String {
    let Some(first) = missing.first() else { return "there are no parts here".to_owned() };
    let ranks: Vec<String> = missing.iter().map(|shard| shard.index.to_string()).collect();
    let ranks = ranks.join(", ");
    format!("not complete: rank {ranks} of {}; run each again with --resume, then merge", first.count)
}
