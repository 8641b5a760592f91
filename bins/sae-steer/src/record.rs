//! [`Record`]: what a strength of a feature did to the answer to a prompt, a line of a ledger.

use explain::FeatureKey;
use sae_types::{FeatureId, HookPoint};
use serde::{Deserialize, Serialize};
use steering::Effect;

/// A line of `sweep.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The number of the prompt: of the data set's sample, or in the file.
    pub(crate) sample: u32,
    /// The sample's own id, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    pub(crate) hook: HookPoint,
    pub(crate) feature: FeatureId,
    pub(crate) strength: f32,
    pub(crate) prompt: String,
    /// What was answered as the model is, and steered.
    pub(crate) original: String,
    pub(crate) steered: String,
    /// Whether the two differ.
    pub(crate) changed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expected: Option<String>,
    pub(crate) original_tokens: u32,
    pub(crate) steered_tokens: u32,
    /// As `effect`'s, of the original.
    pub(crate) original_repetition: Option<f64>,
    pub(crate) original_perplexity: Option<f64>,
    /// `None` where it was not to be measured.
    pub(crate) effect: Option<Effect>,
}

/// What tells records apart: the prompt, the feature, and the strength by its bits.
pub(crate) type Key = (u32, FeatureKey, u32);

impl Record {
    pub(crate) fn key(&self) -> Key {
        (self.sample, self.feature(), self.strength.to_bits())
    }

    pub(crate) fn feature(&self) -> FeatureKey {
        FeatureKey { hook: self.hook.clone(), feature: self.feature }
    }
}
