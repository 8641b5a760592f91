//! [`TorchSaeError`].

use sae_core::SaeError;
use sae_types::CodesError;

/// What can go wrong between an autoencoder and a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchSaeError {
    /// The device refused the weights, most often for want of memory.
    #[error("cannot place tensor {tensor} ({bytes} bytes) on {device:?}")]
    Place {
        /// The tensor.
        tensor: &'static str,
        /// Its size as stored.
        bytes: usize,
        /// Where it was to go.
        device: tch::Device,
        /// libtorch's message.
        #[source]
        source: tch::TchError,
    },
    /// Activations that cannot be encoded.
    #[error("the activations cannot be encoded")]
    Encode {
        /// Which row, and why.
        #[source]
        source: SaeError,
    },
    /// Codes that are no codes: an activation that is NaN or infinite, as a NaN in the input leads to.
    #[error(
        "the encoder gave codes that cannot be used; check the activations it was given for NaN and infinity"
    )]
    Codes {
        /// Row, latent and value.
        #[source]
        source: CodesError,
    },
    /// Tensors that could not be read back from the device.
    #[error("cannot read {what} back from the device")]
    ReadBack {
        /// What was read.
        what: &'static str,
        /// libtorch's message.
        #[source]
        source: tch::TchError,
    },
    /// Parameters that do not make an autoencoder.
    #[error("these tensors make no sparse autoencoder")]
    Parameters {
        /// Which field or tensor.
        #[source]
        source: SaeError,
    },
}

impl TorchSaeError {
    /// The row of the activations that is at fault, where one is.
    pub fn row(&self) -> Option<usize> {
        match self {
            Self::Encode {
                source: SaeError::InputNotFinite { row, .. } | SaeError::PreActivationNotFinite { row, .. },
            }
            | Self::Codes { source: CodesError::Latent { row, .. } | CodesError::Value { row, .. } } => {
                Some(*row)
            }
            _ => None,
        }
    }
}
