//! [`TrainerError`].

use std::path::PathBuf;

use collectives::CollectiveError;
use sae_core::SaeError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerError {
    /// A setting out of range.
    #[error("{field}: expected {expected}, got {got}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// Widths that make no autoencoder.
    #[error("these settings make no sparse autoencoder")]
    Config {
        /// Which.
        #[source]
        source: SaeError,
    },
    /// Activations with NaN or infinity in them. Nothing was changed.
    #[error(
        "the activations of this step hold NaN or infinity in row {row}; drop that sample or run the model in a wider dtype"
    )]
    ActivationsNotFinite {
        /// The first such row.
        row: usize,
    },
    /// A row whose weight is no positive number. Nothing was changed.
    #[error("row {row} has the weight {value}, expected a positive number")]
    Weight {
        /// The first such row.
        row: usize,
        /// Its weight.
        value: f64,
    },
    /// Activations that are all equal (one vector alone, for instance), or so large that their squares overflow: the fraction of
    /// variance unexplained is undefined. Nothing was changed.
    #[error(
        "the {rows} activation vectors of this step have variance {variance}, expected a positive number; give larger batches of different vectors"
    )]
    Variance {
        /// How many vectors there are.
        rows: usize,
        /// `Σ ||x - mean||²`.
        variance: f64,
    },
    /// A loss or gradient that overflowed. The optimizer step was not taken.
    #[error(
        "the {what} of optimizer step {step} is {value}; lower the learning rate or scale the activations down"
    )]
    Diverged {
        /// Loss or gradient norm.
        what: &'static str,
        /// The optimizer step, from 0.
        step: u64,
        /// Its value.
        value: f64,
    },
    /// Weights or settings of an autoencoder that is not of the kind to be trained further.
    #[error("{field}: the autoencoder has {got}, training asks for {expected}")]
    FineTune {
        /// The setting.
        field: &'static str,
        /// What the settings say.
        expected: String,
        /// What the autoencoder has.
        got: String,
    },
    /// A state file that could not be read or written; what stood there before still stands.
    #[error("cannot {action} {}", path.display())]
    StateFile {
        /// Read or write.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file that is truncated, damaged or not a trainer's state. Nothing was changed.
    #[error("{} is not a complete trainer state: {reason}", path.display())]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The state of a trainer with other settings. Nothing was changed.
    #[error("{} belongs to other settings: {}", path.display(), differences.join("; "))]
    StateSettings {
        /// The file.
        path: PathBuf,
        /// Each difference, with both sides.
        differences: Vec<String>,
    },
    /// Parameters that make no autoencoder.
    #[error("the parameters make no sparse autoencoder")]
    Parameters {
        /// The cause.
        #[source]
        source: SaeError,
    },
    /// Tensors that could not be read from or put on the device.
    #[error("cannot move {what} to or from the device")]
    Device {
        /// What was moved.
        what: String,
        /// libtorch's message.
        #[source]
        source: tch::TchError,
    },
    /// A rank that is lost, stuck or does something else; the message names it.
    #[error("training over several ranks stopped")]
    Collective {
        /// The cause.
        #[source]
        source: CollectiveError,
    },
    /// Ranks that should hold the same parameters and do not.
    #[error(
        "ranks {ranks:?} hold other parameters than rank 0, as processors do that round otherwise; use machines of one kind, or exchange gradients instead of codes"
    )]
    Replicas {
        /// All that differ.
        ranks: Vec<usize>,
    },
    /// Another rank's rows that it cannot train on, or its part of a file that it cannot write.
    #[error("rank {rank} failed: see its message")]
    OtherRank {
        /// The first such rank.
        rank: usize,
    },
}
