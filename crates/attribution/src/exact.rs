//! [`Ablation`]: features switched off one at a time, by running the rest of the pass without them.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use sae_types::FeatureId;
use tch::{Kind, Tensor};

use crate::parts::{Parts, read, without_nodes};
use crate::{Agreement, AttributionError, Clean, Downstream, Effect, Effects, Site};

/// Switches features off that are on in a clean pass: `score - score without the feature`, so that positive supports the
/// answer. Bias, error and all other features of the site stay as they are; no other feature takes the place that becomes free.
///
/// Both scores come of one pass, which holds the unchanged state as a row of its own: what a batch's size does to rounding
/// does not count as an effect.
#[derive(Debug)]
pub struct Ablation<'c, 'd, D> {
    clean: &'c Clean<'d, D>,
    rows: NonZeroUsize,
}

/// What a fast method says and what is exact, feature by feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Feature, what was said, what is exact.
    pub pairs: Vec<(FeatureId, f64, f64)>,
    /// How they agree.
    pub agreement: Agreement,
}

impl<'c, 'd, D: Downstream> Ablation<'c, 'd, D> {
    /// Goes on from a clean pass, with `rows` features in a pass, and a row for the unchanged state.
    pub fn new(clean: &'c Clean<'d, D>, rows: NonZeroUsize) -> Self {
        Self { clean, rows }
    }

    /// The effect of each of `features` at site number `site`, switched off on all tokens. A feature that is off has none.
    ///
    /// # Errors
    /// When a feature is beyond the autoencoder, a pass fails, or an effect is not finite.
    ///
    /// # Panics
    /// When there is no such site.
    pub fn features(&self, site: usize, features: &[FeatureId]) -> Result<Vec<f64>, AttributionError> {
        let (own, parts) = self.site(site, features)?;
        let decoder = own.sae.decoder_weight();
        let mut effects = vec![0.0; features.len()];
        let on: Vec<usize> = (0..features.len()).filter(|&at| parts.is_on(features[at])).collect();
        for chunk in on.chunks(self.rows.get()) {
            let without = |&at: &usize| {
                let direction = decoder.get(i64::from(features[at].0)).to_kind(Kind::Float);
                &parts.state - parts.activations(features[at]).outer(&direction)
            };
            let without: Vec<Tensor> = chunk.iter().map(without).collect();
            for (&at, effect) in chunk.iter().zip(self.effects(site, without)?) {
                effects[at] = effect;
            }
        }
        Ok(effects)
    }

    /// The effect of each of `features` (`None`: of all that are on) at site number `site`, switched off on one token at a
    /// time: a row of a pass for every code. The error's and the bias' are not measured.
    ///
    /// # Errors
    /// As [`Ablation::features`].
    ///
    /// # Panics
    /// When there is no such site.
    pub fn per_token(
        &self,
        site: usize,
        features: Option<&[FeatureId]>,
    ) -> Result<Effects, AttributionError> {
        let (own, parts) = self.site(site, features.unwrap_or_default())?;
        let codes = parts.on(features);
        let decoder = own.sae.decoder_weight();
        let mut entries = Vec::with_capacity(codes.len());
        for chunk in codes.chunks(self.rows.get()) {
            let without = |code: &Effect| {
                let state = parts.state.copy();
                let direction = decoder.get(i64::from(code.feature.0)).to_kind(Kind::Float);
                let _ = state.get(i64::from(code.token.0)).g_sub_(&(direction * f64::from(code.value)));
                state
            };
            let effects = self.effects(site, chunk.iter().map(without).collect())?;
            let with = |(code, effect): (&Effect, f64)| Effect { value: effect as f32, ..*code };
            entries.extend(chunk.iter().zip(effects).map(with));
        }
        without_nodes(own, parts, entries)
    }

    /// The effect of the reconstruction error at site number `site`, left out on all tokens: how much of the score the
    /// features do not carry.
    ///
    /// # Errors
    /// When a pass fails, or the effect is not finite.
    ///
    /// # Panics
    /// When there is no such site.
    pub fn error(&self, site: usize) -> Result<f64, AttributionError> {
        let (_, parts) = self.site(site, &[])?;
        Ok(self.effects(site, vec![&parts.state - &parts.error])?[0])
    }

    /// The effect of all features of a site at once, bias and error kept.
    ///
    /// # Errors
    /// As [`Ablation::error`].
    ///
    /// # Panics
    /// When there is no such site.
    pub fn all_features(&self, site: usize) -> Result<f64, AttributionError> {
        let (_, parts) = self.site(site, &[])?;
        Ok(self.effects(site, vec![&parts.state - &parts.features])?[0])
    }

    /// Holds the `top` strongest features of each of `fast`, effects at site number `site` by several methods, against what is exact.
    /// A feature that several of them name is switched off once.
    ///
    /// # Errors
    /// As [`Ablation::features`].
    ///
    /// # Panics
    /// When there is no such site.
    pub fn check(&self, site: usize, fast: &[&Effects], top: usize) -> Result<Vec<Check>, AttributionError> {
        let said: Vec<Vec<(FeatureId, f64)>> = fast.iter().map(|fast| fast.strongest(top)).collect();
        let mut exact: BTreeMap<FeatureId, f64> =
            said.iter().flatten().map(|&(feature, _)| (feature, 0.0)).collect();
        let features: Vec<FeatureId> = exact.keys().copied().collect();
        exact.extend(features.iter().copied().zip(self.features(site, &features)?));
        let check = |said: Vec<(FeatureId, f64)>| {
            let pairs: Vec<(FeatureId, f64, f64)> =
                said.into_iter().map(|(feature, fast)| (feature, fast, exact[&feature])).collect();
            let (fast, exact): (Vec<f64>, Vec<f64>) =
                pairs.iter().map(|&(_, fast, exact)| (fast, exact)).unzip();
            Check { agreement: Agreement::new(&fast, &exact), pairs }
        };
        Ok(said.into_iter().map(check).collect())
    }

    /// What the score loses with each of the states `[tokens, width]` in the place of the clean one.
    fn effects(&self, site: usize, mut without: Vec<Tensor>) -> Result<Vec<f64>, AttributionError> {
        let _guard = tch::no_grad_guard();
        let (own, seen) = self.clean.seen(site);
        without.insert(0, seen.parts.state.shallow_clone());
        let scores = read("scores", &self.clean.downstream.scores(site, &Tensor::stack(&without, 0))?)?;
        if !scores.iter().all(|score| score.is_finite()) {
            return Err(AttributionError::NotFinite { point: own.point.clone() });
        }
        Ok(scores[1..].iter().map(|&score| f64::from(scores[0]) - f64::from(score)).collect())
    }

    fn site(&self, site: usize, features: &[FeatureId]) -> Result<(Site<'d>, &'c Parts), AttributionError> {
        let (own, seen) = self.clean.seen(site);
        own.check(features)?;
        Ok((own, &seen.parts))
    }
}
