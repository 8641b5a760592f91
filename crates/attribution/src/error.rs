//! [`AttributionError`].

use lmm_hooks::HookError;
use sae_torch::TorchSaeError;
use sae_types::{FeatureId, HookPoint};

/// Why a question could not be traced to features.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttributionError {
    /// The model does not have the hook point, or cannot run the prompt.
    #[error("the model cannot be run with its hooks")]
    Model {
        /// Why.
        #[source]
        source: Box<HookError>,
    },
    /// A hook point before the language model, where rows are tiles and not tokens.
    #[error("hook point {point} lies in the vision part of the model, whose rows are tiles, not tokens")]
    VisionPoint {
        /// The hook point.
        point: HookPoint,
    },
    /// An autoencoder of another width than the model.
    #[error("the autoencoder at {point} is for vectors of {expected} numbers, the model's there have {got}")]
    Width {
        /// The hook point.
        point: HookPoint,
        /// Its `d_in`.
        expected: usize,
        /// The model's width.
        got: usize,
    },
    /// Two autoencoders at one hook point.
    #[error("there are two autoencoders at {point}; ask about one at a time")]
    Twice {
        /// The hook point.
        point: HookPoint,
    },
    /// A question without an answer token.
    #[error("the question names no answer token: there is no logit to trace")]
    NoAnswer,
    /// A token beyond the model's vocabulary.
    #[error("token {token} is beyond the model's vocabulary of {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// A feature that the autoencoder does not have.
    #[error("feature {feature} is beyond the autoencoder at {point}, which has latents 0 to {last}", last = width.saturating_sub(1))]
    Feature {
        /// The hook point.
        point: HookPoint,
        /// The feature asked for.
        feature: FeatureId,
        /// The number of latents there are.
        width: usize,
    },
    /// An autoencoder that the device cannot run.
    #[error("the autoencoder at {point} cannot be run on the model's activations")]
    Encode {
        /// The hook point.
        point: HookPoint,
        /// Why.
        #[source]
        source: Box<TorchSaeError>,
    },
    /// Activations or gradients that are not finite.
    #[error(
        "the effects at {point} are not finite: the model's activations or gradients overflow; try --dtype f32 or bf16"
    )]
    NotFinite {
        /// The hook point.
        point: HookPoint,
    },
    /// A score that is not finite.
    #[error(
        "the score of the answer is {score}: expected a finite number; the model's activations overflow: try --dtype f32 or bf16"
    )]
    Score {
        /// What was found.
        score: f64,
    },
    /// A transcoder, asked for what msae does with an autoencoder.
    #[error("msae's method is for autoencoders; at {point} there is a transcoder")]
    Transcoder {
        /// The hook point.
        point: HookPoint,
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

impl AttributionError {
    pub(crate) fn model(source: HookError) -> Self {
        Self::Model { source: Box::new(source) }
    }
}
