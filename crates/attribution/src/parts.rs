//! [`Parts`]: a state taken apart into features, bias and error.

use std::collections::BTreeSet;

use sae_torch::TopK;
use sae_types::{FeatureId, TokenIndex};
use tch::{Device, Kind, Tensor};

use crate::downstream::Observed;
use crate::{AttributionError, Effect, Effects, Site};

/// `state = features + bias + error` at one site, all `[tokens, width]` in f32.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) codes: TopK,
    /// The same, those that are on, by feature, then by token.
    on: Vec<Effect>,
    pub(crate) state: Tensor,
    /// `Σ_j z[t, j] · D[j]`.
    pub(crate) features: Tensor,
    /// `b_dec`, and a transcoder's skip connection.
    bias: Tensor,
    /// What the autoencoder does not explain.
    pub(crate) error: Tensor,
}

impl Parts {
    /// # Errors
    /// When the codes cannot be read back.
    pub(crate) fn new(site: Site<'_>, observed: &Observed) -> Result<Self, AttributionError> {
        let sae = site.sae;
        let _guard = tch::no_grad_guard();
        let codes = sae.encode(&observed.input);
        let wide = |tensor: Tensor| tensor.to_kind(Kind::Float);
        let features = wide(sae.decode_without_bias(&codes));
        let bias = wide(sae.decoder_bias().unsqueeze(0).expand_as(&features));
        let bias = match sae.skip(&observed.input) {
            Some(skip) => bias + wide(skip),
            None => bias,
        };
        let state = observed.state.to_kind(Kind::Float);
        let error = &state - &features - &bias;
        let mut on = entries(&codes, &codes.values)?;
        on.sort_unstable_by_key(|code| (code.feature, code.token));
        Ok(Self { codes, on, state, features, bias, error })
    }

    /// How many tokens there are.
    pub(crate) fn n_tokens(&self) -> usize {
        self.state.size()[0] as usize
    }

    /// `z[t, j] · <D[j], g_t>` of every code, `<error, g>` and `<bias, g>` of every token, with `gradient` `[tokens, width]`.
    pub(crate) fn effects(&self, site: Site<'_>, gradient: &Tensor) -> Result<Effects, AttributionError> {
        let sae = site.sae;
        let values = &self.codes.values * along(sae.decoder_weight(), &self.codes, gradient, sae.kind());
        let with = |part: &Tensor| read("effects", &(part * gradient).sum_dim_intlist(1, false, Kind::Float));
        let [error, bias] = [with(&self.error)?, with(&self.bias)?];
        let entries = entries(&self.codes, &values)?;
        let n_tokens = error.len();
        finite(site, &error, &bias, &entries)?;
        Ok(Effects::new(site.point.clone(), sae.num_latents(), n_tokens, entries, [error, bias]))
    }

    /// The activations of one feature, `[tokens]`.
    pub(crate) fn activations(&self, feature: FeatureId) -> Tensor {
        let own = self.codes.indices.eq(i64::from(feature.0)).to_kind(Kind::Float);
        (own * self.codes.values.to_kind(Kind::Float)).sum_dim_intlist(1, false, Kind::Float)
    }

    /// The codes that are on of `features`, or of all, by feature, then by token.
    pub(crate) fn on(&self, features: Option<&[FeatureId]>) -> Vec<Effect> {
        let Some(features) = features else { return self.on.clone() };
        let features: BTreeSet<FeatureId> = features.iter().copied().collect();
        self.on.iter().filter(|code| features.contains(&code.feature)).copied().collect()
    }

    /// Whether a feature is on, on any token.
    pub(crate) fn is_on(&self, feature: FeatureId) -> bool {
        self.on.binary_search_by_key(&feature, |code| code.feature).is_ok()
    }
}

/// `<rows[index[t, i]], g_t>` for every code, `[tokens, k]`, without making `[tokens, k, width]`.
fn along(rows: &Tensor, codes: &TopK, gradient: &Tensor, kind: Kind) -> Tensor {
    if codes.indices.numel() == 0 {
        return codes.values.zeros_like();
    }
    tch::with_grad(|| {
        // The derivative of <Σ v · row, g> with respect to v.
        let weights = codes.values.detach().set_requires_grad(true);
        let codes = TopK { indices: codes.indices.shallow_clone(), values: weights.shallow_clone() };
        let sums = sae_torch::Bags::new(&codes).sum_rows(rows);
        let product = (sums * gradient.to_kind(kind)).sum(Kind::Float);
        Tensor::run_backward(&[product], &[weights], false, false).remove(0)
    })
}

/// What `values` `[tokens, k]` say of the codes that are on.
fn entries(codes: &TopK, values: &Tensor) -> Result<Vec<Effect>, AttributionError> {
    let k = codes.indices.size()[1].max(1) as usize;
    let features: Vec<i64> = read_flat("latents", &codes.indices)?;
    let on: Vec<f32> = read("activations", &codes.values)?;
    let values: Vec<f32> = read("effects", values)?;
    let of = |(place, ((feature, on), value)): (usize, ((i64, f32), f32))| {
        let (feature, token) = (FeatureId(feature as u32), TokenIndex((place / k) as u32));
        (on != 0.0).then_some(Effect { feature, token, value })
    };
    Ok(features.into_iter().zip(on).zip(values).enumerate().filter_map(of).collect())
}

/// Effects of features alone, without nodes for bias and error.
pub(crate) fn without_nodes(
    site: Site<'_>,
    parts: &Parts,
    entries: Vec<Effect>,
) -> Result<Effects, AttributionError> {
    finite(site, &[], &[], &entries)?;
    let others = [Vec::new(), Vec::new()];
    Ok(Effects::new(site.point.clone(), site.sae.num_latents(), parts.n_tokens(), entries, others))
}

/// Refuses effects that are not finite.
fn finite(site: Site<'_>, error: &[f32], bias: &[f32], entries: &[Effect]) -> Result<(), AttributionError> {
    let values = entries.iter().map(|entry| entry.value);
    if values.chain(error.iter().copied()).chain(bias.iter().copied()).all(f32::is_finite) {
        return Ok(());
    }
    Err(AttributionError::NotFinite { point: site.point.clone() })
}

/// Copies a tensor off the device as f32.
pub(crate) fn read(what: &'static str, tensor: &Tensor) -> Result<Vec<f32>, AttributionError> {
    read_flat(what, &tensor.to_kind(Kind::Float))
}

fn read_flat<T>(what: &'static str, tensor: &Tensor) -> Result<Vec<T>, AttributionError>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    let flat = tensor.detach().to_device(Device::Cpu).reshape([-1]);
    Vec::<T>::try_from(flat).map_err(|source| AttributionError::ReadBack { what, source })
}
