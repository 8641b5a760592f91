//! [`msae`]: what multimodal-sae computes, two passes per feature.

use std::num::NonZeroUsize;

use sae_core::Activation;
use sae_torch::TopK;
use sae_types::FeatureId;
use tch::{Kind, Tensor};

use crate::parts::{read, without_nodes};
use crate::{AttributionError, Clean, Downstream, Effect, Effects};

/// Effects as multimodal-sae has them (`features/patching/attribution.py` at 60265c3), at site number `site`, of `features`, or
/// of all that are on, `rows` at a time.
///
/// The reconstruction takes the place of the state; the error is lost. Feature j is masked on all tokens before TopK, so that the
/// next latent enters where j was; with `x̂'` that reconstruction and `g'` the gradient of the score in the pass it goes
/// into, the effect on token t is `<x̂_t - x̂'_t, g'_t>`. It is 0 wherever j is off. There are no error nodes.
///
/// # Errors
/// When a feature is beyond the autoencoder, the site has a transcoder, or a pass fails.
///
/// # Panics
/// When there is no such site.
pub fn msae<D: Downstream>(
    clean: &Clean<'_, D>,
    site: usize,
    features: Option<&[FeatureId]>,
    rows: NonZeroUsize,
) -> Result<Effects, AttributionError> {
    let (own, seen) = clean.seen(site);
    let sae = own.sae;
    if sae.config().transcode {
        return Err(AttributionError::Transcoder { point: own.point.clone() });
    }
    own.check(features.unwrap_or_default())?;
    let parts = &seen.parts;
    let reconstruction = (&parts.state - &parts.error).to_kind(Kind::Float);
    // The latent that enters on each token when one of its own goes.
    let next = match sae.config().activation {
        Activation::BatchTopK { .. } => None,
        _ if sae.k() == sae.num_latents() => None,
        _ => Some(next_after(&sae.encode_centred(&sae.centre(&seen.input), sae.k() + 1))),
    };
    let entering = next.map(|next| sae.decode_without_bias(&next).to_kind(Kind::Float));

    let codes = parts.on(features);
    let by_feature: Vec<&[Effect]> = codes.chunk_by(|a, b| a.feature == b.feature).collect();
    let mut found = Vec::new();
    for chunk in by_feature.chunks(rows.get()) {
        let lost = |codes: &&[Effect]| {
            let feature = codes[0].feature;
            let activations = parts.activations(feature);
            let direction = sae.decoder_weight().get(i64::from(feature.0)).to_kind(Kind::Float);
            let gone = activations.outer(&direction);
            match &entering {
                Some(entering) => gone - entering * activations.ne(0.0).unsqueeze(1).to_kind(Kind::Float),
                None => gone,
            }
        };
        // x̂ - x̂', [rows, tokens, width].
        let lost = Tensor::stack(&chunk.iter().map(lost).collect::<Vec<_>>(), 0);
        let gradients = clean.downstream.gradients(site, &(reconstruction.unsqueeze(0) - &lost))?;
        let effects = read("effects", &(lost * gradients).sum_dim_intlist(2, false, Kind::Float))?;
        for (codes, effects) in chunk.iter().zip(effects.chunks(parts.n_tokens())) {
            found.extend(codes.iter().map(|code| Effect { value: effects[code.token.index()], ..*code }));
        }
    }
    without_nodes(own, parts, found)
}

/// The last of the codes of each row, the smallest.
fn next_after(codes: &TopK) -> TopK {
    let last = codes.indices.size()[1] - 1;
    TopK { indices: codes.indices.narrow(1, last, 1), values: codes.values.narrow(1, last, 1) }
}
