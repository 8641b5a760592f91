//! [`HookError`]: what can go wrong between a model folder and a hidden state.

use lmm_prep::PrepError;
use sae_types::HookPoint;
use torch_nn::NnError;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// The model's configuration cannot be read or is not supported.
    #[error("the model's configuration cannot be used")]
    Config {
        /// Which file and field.
        #[source]
        source: PrepError,
    },
    /// The model's weights cannot be read or do not fit its configuration.
    #[error("the model's weights cannot be used")]
    Weights {
        /// Which file and tensors.
        #[source]
        source: NnError,
    },
    /// A configuration whose parts contradict one another.
    #[error("configuration field {field}: expected {expected}, got {got}")]
    ConfigField {
        /// The field.
        field: &'static str,
        /// What it may hold.
        expected: String,
        /// What it holds.
        got: String,
    },
    /// A hook point the model does not have.
    #[error("the model has no hook point {point}; the nearest are {}", near.iter().map(HookPoint::as_str).collect::<Vec<_>>().join(", "))]
    UnknownPoint {
        /// What was asked for.
        point: HookPoint,
        /// The nearest names there are, best first.
        near: Vec<HookPoint>,
    },
    /// A pattern that fits no hook point, or is no pattern.
    #[error("no hook point of the model matches {pattern:?}; the nearest are {}", near.iter().map(HookPoint::as_str).collect::<Vec<_>>().join(", "))]
    UnmatchedPattern {
        /// What was asked for.
        pattern: String,
        /// The nearest names there are, best first.
        near: Vec<HookPoint>,
    },
    /// A module whose input is the tensor of no hook point.
    #[error("the input of {point} cannot be read: it is no module's output")]
    NoInputPoint {
        /// The module.
        point: HookPoint,
    },
    /// A hook point of the vision side, asked of a batch without images.
    #[error("hook point {point} is never reached: no sample of the batch holds an image")]
    NotReached {
        /// The hook point.
        point: HookPoint,
    },
    /// A hook point on the vision side, where rows are tiles, asked of a pass over tokens.
    #[error("hook point {point} lies in the vision part of the model, whose rows are tiles, not tokens")]
    VisionPoint {
        /// The hook point.
        point: HookPoint,
    },
    /// A hook point that a pass taken up midway does not reach any more.
    #[error("hook point {point} lies before the place that the pass is taken up from")]
    Passed {
        /// The hook point.
        point: HookPoint,
    },
    /// A hook replaced a tensor by one of another shape.
    #[error("the hook at {point} must return a tensor of shape {expected:?}, got {got:?}")]
    ReplacedShape {
        /// The hook point.
        point: HookPoint,
        /// The shape it was given.
        expected: Vec<i64>,
        /// The shape it returned.
        got: Vec<i64>,
    },
    /// A batch without samples, or a sample without tokens.
    #[error("sample {sample} of the batch has no tokens")]
    EmptySample {
        /// Its number in the batch; 0 for a batch without samples.
        sample: usize,
    },
    /// Inputs whose tokens and images contradict one another.
    #[error("sample {sample} of the batch: {what}: expected {expected}, got {got}")]
    Inputs {
        /// Its number in the batch.
        sample: usize,
        /// What is wrong.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A token the model has no embedding for.
    #[error("token id {token} is beyond the model's vocabulary of {vocab_size}; was another tokenizer used?")]
    TokenBeyondVocabulary {
        /// The token.
        token: u32,
        /// The number of embeddings.
        vocab_size: usize,
    },
    /// Generation from a batch whose prompts end at different places.
    #[error("generation needs prompts padded on the left; build the batch with PaddingSide::Left")]
    RightPadded,
    /// Generation from a batch with an attention mask of the caller's own.
    #[error("generation cannot go on from a batch with an attention mask of its own (Batch::with_attention)")]
    GivenAttention,
    /// A generation option out of range.
    #[error("generation option {option}: expected {expected}, got {got}")]
    GenerationOption {
        /// The option.
        option: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        got: String,
    },
}
