//! [`one_pass`], [`integrated`] and [`integrated_each`]: effects from gradients.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use sae_types::FeatureId;
use tch::{Kind, Tensor};

use crate::parts::{read, without_nodes};
use crate::{AttributionError, Clean, Downstream, Effect, Effects};

/// The effects of all features at every site, in the order of the sites, from the clean pass alone, one forward and one backward:
/// `z[t, j] · <D[j], g_t>` with `g` the gradient of the score with respect to the state, in the model's own pass.
///
/// # Errors
/// When numbers are not finite.
pub fn one_pass<D: Downstream>(clean: &Clean<'_, D>) -> Result<Vec<Effects>, AttributionError> {
    integrated(clean, NonZeroUsize::MIN)
}

/// Integrated gradients on the way on which all features go together: as [`one_pass`], but with the mean of the gradients at
/// `steps` points between the state without its features and the state, `x - (1 - i/steps) · Σ z D` for i = 1, 2, ..; bias and
/// error stay. Each site goes that way on its own, all others following it. With one step it is [`one_pass`]; with many, the
/// effects of the features of a site sum to what the score loses when all are off.
///
/// # Errors
/// As [`one_pass`]; when a pass fails.
pub fn integrated<D: Downstream>(
    clean: &Clean<'_, D>,
    steps: NonZeroUsize,
) -> Result<Vec<Effects>, AttributionError> {
    let mut all = Vec::new();
    for (number, (site, seen)) in clean.all().enumerate() {
        let parts = &seen.parts;
        let mut sum = seen.gradient.copy();
        for missing in missing(steps) {
            let state: Tensor = &parts.state - &parts.features * missing;
            sum += clean.downstream.gradients(number, &state.unsqueeze(0))?.squeeze_dim(0);
        }
        all.push(parts.effects(site, &(sum / steps.get() as f64))?);
    }
    Ok(all)
}

/// Integrated gradients on the ways on which one feature goes alone: for each of `features` at site number `site`, the mean of
/// the gradients at `steps` points between the state without it (on all tokens) and the state. With one step these are the
/// effects of [`one_pass`]; with many, the effects of a feature on all tokens sum to what switching it off does. `steps - 1`
/// passes per feature, `rows` at a time. There are no error nodes.
///
/// # Errors
/// As [`integrated`]; when a feature is beyond the autoencoder.
///
/// # Panics
/// When there is no such site.
pub fn integrated_each<D: Downstream>(
    clean: &Clean<'_, D>,
    site: usize,
    features: &[FeatureId],
    steps: NonZeroUsize,
    rows: NonZeroUsize,
) -> Result<Effects, AttributionError> {
    let (own, seen) = clean.seen(site);
    let parts = &seen.parts;
    own.check(features)?;
    let features: BTreeSet<FeatureId> = features.iter().copied().filter(|&f| parts.is_on(f)).collect();
    let with_tensors = |feature: FeatureId| {
        let direction = own.sae.decoder_weight().get(i64::from(feature.0)).to_kind(Kind::Float);
        (feature, parts.activations(feature), direction)
    };
    let on: Vec<(FeatureId, Tensor, Tensor)> = features.into_iter().map(with_tensors).collect();
    // <D[j], Σ g> by token, with the gradient at the state itself to begin with.
    let mut along: Vec<Tensor> = on.iter().map(|(.., direction)| seen.gradient.mv(direction)).collect();
    let ways: Vec<(usize, f64)> =
        (0..on.len()).flat_map(|at| missing(steps).map(move |missing| (at, missing))).collect();
    for chunk in ways.chunks(rows.get()) {
        let state = |&(at, missing): &(usize, f64)| {
            let (_, activations, direction) = &on[at];
            &parts.state - (activations * missing).outer(direction)
        };
        let states = Tensor::stack(&chunk.iter().map(state).collect::<Vec<_>>(), 0);
        let gradients = clean.downstream.gradients(site, &states)?;
        for (row, &(at, _)) in chunk.iter().enumerate() {
            along[at] = &along[at] + gradients.get(row as i64).mv(&on[at].2);
        }
    }
    let mut entries = Vec::new();
    for ((feature, activations, _), along) in on.iter().zip(along) {
        let effects = read("effects", &(along * activations / steps.get() as f64))?;
        let activations = read("activations", activations)?;
        let tokens = (0_u32..).zip(effects).zip(activations).filter(|(_, on)| *on != 0.0);
        entries.extend(tokens.map(|((token, value), _)| Effect {
            feature: *feature,
            token: token.into(),
            value,
        }));
    }
    without_nodes(own, parts, entries)
}

/// How much is missing at the points before the last, the state itself, whose gradient is known.
fn missing(steps: NonZeroUsize) -> impl Iterator<Item = f64> {
    (1..steps.get()).map(move |step| 1.0 - step as f64 / steps.get() as f64)
}
