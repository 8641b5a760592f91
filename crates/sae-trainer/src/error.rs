//! [`TrainerError`].

use sae_core::SaeError;
use sae_torch::TorchSaeError;

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
    /// Parameters that could not be read off the device, or are no autoencoder.
    #[error("cannot take the autoencoder off the device")]
    Sae {
        /// The cause.
        #[source]
        source: TorchSaeError,
    },
}
