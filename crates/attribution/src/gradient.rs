//! [`one_pass`] and [`integrated`]: all features at once, from gradients.

use std::num::NonZeroUsize;

use tch::Tensor;

use crate::parts::Parts;
use crate::{AttributionError, Downstream, Effects};

/// The effects of all features at every site, in the order of the sites, from one pass forward and one backward:
/// `z[t, j] · <D[j], g_t>` with `g` the gradient of the score with respect to the state, in the model's own pass.
///
/// # Errors
/// When the pass fails or gives numbers that are not finite.
pub fn one_pass(downstream: &impl Downstream) -> Result<Vec<Effects>, AttributionError> {
    integrated(downstream, NonZeroUsize::MIN)
}

/// Integrated gradients: as [`one_pass`], but with the mean of the gradients at `steps` points on the way from the state
/// without its features to the state, `x - (1 - i/steps) · Σ z D` for i = 1, 2, ..; bias and error stay. Each site goes that way on
/// its own, all others following it. With one step it is [`one_pass`]; with many, the effects of the features of a site sum to
/// what the score loses when all are off.
///
/// # Errors
/// As [`one_pass`].
pub fn integrated(
    downstream: &impl Downstream,
    steps: NonZeroUsize,
) -> Result<Vec<Effects>, AttributionError> {
    let (_, observed) = downstream.observe()?;
    let mut all = Vec::with_capacity(observed.len());
    for (number, (site, observed)) in downstream.sites().into_iter().zip(&observed).enumerate() {
        let parts = Parts::new(site, observed);
        let mut sum = observed.gradient.shallow_clone();
        // The last point is the state itself, whose gradient is there.
        for step in 1..steps.get() {
            let missing = 1.0 - step as f64 / steps.get() as f64;
            let state: Tensor = &parts.state - &parts.features * missing;
            sum = sum + downstream.gradients(number, &state.unsqueeze(0))?.squeeze_dim(0);
        }
        all.push(parts.effects(site, &(sum / steps.get() as f64))?);
    }
    Ok(all)
}
