//! [`Ablation`]: features switched off one at a time, by running the rest of the pass without them.

use std::num::NonZeroUsize;

use sae_types::FeatureId;
use tch::{Kind, Tensor};

use crate::downstream::Observed;
use crate::parts::{Parts, finite, read};
use crate::{Agreement, AttributionError, Downstream, Effect, Effects, Site};

/// The clean pass of one question, from which features are switched off: `score - score without the feature`, so that
/// positive supports the answer. Bias, error and all other features of the site stay as they are; no other
/// feature takes the place that becomes free.
#[derive(Debug)]
pub struct Ablation<'d, D> {
    downstream: &'d D,
    score: f64,
    sites: Vec<Parts>,
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

impl<'d, D: Downstream> Ablation<'d, D> {
    /// Runs the clean pass. Later passes take `rows` features at a time.
    ///
    /// # Errors
    /// When the pass fails.
    pub fn new(downstream: &'d D, rows: NonZeroUsize) -> Result<Self, AttributionError> {
        let (score, observed) = downstream.observe()?;
        let parts = |(site, observed): (Site<'_>, &Observed)| Parts::new(site, observed);
        let sites = downstream.sites().into_iter().zip(&observed).map(parts).collect();
        Ok(Self { downstream, score, sites, rows })
    }

    /// The score of the clean pass.
    pub fn score(&self) -> f64 {
        self.score
    }

    /// The effect of each of `features` at site number `site`, switched off on all tokens. A feature that is off has none.
    ///
    /// # Errors
    /// When a feature is beyond the autoencoder, or a pass fails.
    ///
    /// # Panics
    /// When there is no such site.
    pub fn features(&self, site: usize, features: &[FeatureId]) -> Result<Vec<f64>, AttributionError> {
        let (own, parts) = (self.site(site, features)?, &self.sites[site]);
        let decoder = own.sae.decoder_weight();
        let mut effects = vec![0.0; features.len()];
        let is_on = |feature: &FeatureId| parts.activations(*feature).any().int64_value(&[]) != 0;
        let on: Vec<usize> = (0..features.len()).filter(|&at| is_on(&features[at])).collect();
        for chunk in on.chunks(self.rows.get()) {
            let without = |&at: &usize| {
                let direction = decoder.get(i64::from(features[at].0)).to_kind(Kind::Float);
                &parts.state - parts.activations(features[at]).outer(&direction)
            };
            let states = Tensor::stack(&chunk.iter().map(without).collect::<Vec<_>>(), 0);
            for (&at, score) in chunk.iter().zip(self.scores(site, &states)?) {
                effects[at] = self.score - score;
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
        let (own, parts) = (self.site(site, features.unwrap_or_default())?, &self.sites[site]);
        let mut codes = parts.on()?;
        if let Some(features) = features {
            codes.retain(|code| features.contains(&code.feature));
        }
        let decoder = own.sae.decoder_weight();
        let mut entries = Vec::with_capacity(codes.len());
        for chunk in codes.chunks(self.rows.get()) {
            let without = |code: &Effect| {
                let state = parts.state.copy();
                let direction = decoder.get(i64::from(code.feature.0)).to_kind(Kind::Float);
                let _ = state.get(i64::from(code.token.0)).g_sub_(&(direction * f64::from(code.value)));
                state
            };
            let states = Tensor::stack(&chunk.iter().map(without).collect::<Vec<_>>(), 0);
            for (code, score) in chunk.iter().zip(self.scores(site, &states)?) {
                entries.push(Effect { value: (self.score - score) as f32, ..*code });
            }
        }
        finite(own, &[], &[], &entries)?;
        let n_tokens = parts.state.size()[0] as usize;
        Ok(Effects::new(
            own.point.clone(),
            own.sae.num_latents(),
            n_tokens,
            entries,
            [Vec::new(), Vec::new()],
        ))
    }

    /// The effect of the reconstruction error at site number `site`, left out on all tokens: how much of the score the
    /// features do not carry.
    ///
    /// # Errors
    /// When a pass fails.
    ///
    /// # Panics
    /// When there is no such site.
    pub fn error(&self, site: usize) -> Result<f64, AttributionError> {
        let parts = &self.sites[site];
        let without = (&parts.state - &parts.error).unsqueeze(0);
        Ok(self.score - self.scores(site, &without)?[0])
    }

    /// The effect of all features of a site at once, bias and error kept.
    ///
    /// # Errors
    /// When a pass fails.
    ///
    /// # Panics
    /// When there is no such site.
    pub fn all_features(&self, site: usize) -> Result<f64, AttributionError> {
        let parts = &self.sites[site];
        let without = (&parts.state - &parts.features).unsqueeze(0);
        Ok(self.score - self.scores(site, &without)?[0])
    }

    /// Holds the `top` strongest features of `fast`, the effects at site number `site`, against what is exact.
    ///
    /// # Errors
    /// When a pass fails.
    ///
    /// # Panics
    /// When there is no such site.
    pub fn check(&self, site: usize, fast: &Effects, top: usize) -> Result<Check, AttributionError> {
        let said = fast.strongest(top);
        let features: Vec<FeatureId> = said.iter().map(|&(feature, _)| feature).collect();
        let exact = self.features(site, &features)?;
        let fast: Vec<f64> = said.iter().map(|&(_, value)| value).collect();
        let agreement = Agreement::new(&fast, &exact);
        let pairs =
            said.into_iter().zip(exact).map(|((feature, fast), exact)| (feature, fast, exact)).collect();
        Ok(Check { pairs, agreement })
    }

    fn scores(&self, site: usize, states: &Tensor) -> Result<Vec<f64>, AttributionError> {
        let _guard = tch::no_grad_guard();
        let scores = read("scores", &self.downstream.scores(site, states)?)?;
        Ok(scores.into_iter().map(f64::from).collect())
    }

    fn site(&self, site: usize, features: &[FeatureId]) -> Result<Site<'d>, AttributionError> {
        let own = self.downstream.sites().swap_remove(site);
        own.check(features)?;
        Ok(own)
    }
}
