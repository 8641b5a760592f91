//! [`EvalError`].

use lmm_hooks::HookError;
use sae_torch::TorchSaeError;
use sae_types::HookPoint;

/// Why an evaluation could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model does not have the hook point, or cannot run the batch.
    #[error("the model cannot be run with its hooks")]
    Model {
        /// Why.
        #[source]
        source: Box<HookError>,
    },
    /// A hook point before the language model, where rows are tiles and not tokens.
    #[error(
        "{name}: hook point {point} lies in the vision part of the model, whose rows are tiles, not tokens"
    )]
    VisionPoint {
        /// The autoencoder.
        name: String,
        /// The hook point.
        point: HookPoint,
    },
    /// An autoencoder of another width than the model.
    #[error("{name} is for vectors of {expected} numbers, the model's at {point} have {got}")]
    Width {
        /// The autoencoder.
        name: String,
        /// The hook point.
        point: HookPoint,
        /// Its `d_in`.
        expected: usize,
        /// The model's width.
        got: usize,
    },
    /// An autoencoder that cannot encode the model's activations, or that the device cannot hold or run.
    #[error("{name} cannot be run on the model's activations")]
    Encode {
        /// The autoencoder.
        name: String,
        /// Which row, and why.
        #[source]
        source: Box<TorchSaeError>,
    },
    /// Numbers that could not be read back from the device.
    #[error("cannot read {what} back from the device")]
    ReadBack {
        /// What was read.
        what: &'static str,
        /// libtorch's message.
        #[source]
        source: tch::TchError,
    },
}

impl EvalError {
    pub(crate) fn model(source: HookError) -> Self {
        Self::Model { source: Box::new(source) }
    }
}
