//! [`Downstream`]: a score that depends on the states at some sites.

use sae_torch::TorchSae;
use sae_types::{FeatureId, HookPoint};
use tch::Tensor;

use crate::AttributionError;

/// An autoencoder with its place, one of those that a [`Downstream`] knows.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Where the state it explains is: an autoencoder's hook point, the module whose output a transcoder predicts.
    pub point: &'a HookPoint,
    /// The autoencoder, on the device of the states.
    pub sae: &'a TorchSae,
}

impl Site<'_> {
    /// Refuses features that the autoencoder does not have.
    pub(crate) fn check(&self, features: &[FeatureId]) -> Result<(), AttributionError> {
        let width = self.sae.num_latents();
        match features.iter().find(|feature| feature.index() >= width) {
            Some(&feature) => Err(AttributionError::Feature { point: self.point.clone(), feature, width }),
            None => Ok(()),
        }
    }
}

/// What a site gives in a clean pass, f32 without a graph.
#[derive(Debug)]
pub struct Observed {
    /// What the autoencoder reads, `[tokens, d_in]`.
    pub input: Tensor,
    /// The state it explains, `[tokens, width]`: the same tensor, or a module's output beside its input.
    pub state: Tensor,
    /// The gradient of the score with respect to the state, `[tokens, width]`.
    pub gradient: Tensor,
}

/// A score that depends on the states of `tokens` tokens at some sites: the answer of a model to a question
/// ([`crate::Asked`]), or any other function.
///
/// A state at a site may depend on those at sites before it, never on those at sites after it.
pub trait Downstream {
    /// The sites, in the order that all results have.
    fn sites(&self) -> Vec<Site<'_>>;

    /// A clean pass and one backwards: the score, and what each site gives.
    ///
    /// # Errors
    /// When the pass fails.
    fn observe(&self) -> Result<(f64, Vec<Observed>), AttributionError>;

    /// The scores `[rows]`, f32, with `states` `[rows, tokens, width]` in place of the state at site number `site`, each row a
    /// pass of its own.
    ///
    /// # Errors
    /// When the pass fails.
    fn scores(&self, site: usize, states: &Tensor) -> Result<Tensor, AttributionError>;

    /// The gradients, f32, of these scores with respect to `states`, in their shape.
    ///
    /// # Errors
    /// When the pass fails.
    fn gradients(&self, site: usize, states: &Tensor) -> Result<Tensor, AttributionError>;
}
