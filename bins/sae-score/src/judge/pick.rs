//! [`Picker`]: which samples of a feature a judge is asked about.

use std::collections::{BTreeMap, HashSet};

use act_cache::{Duplicates, HookCache, Ranking, Selection};
use anyhow::Result;
use explain::{Counterexample, FeatureKey, Outcome, counterexamples_by, is_on_in_text};
use sae_types::SampleId;
use scoring::{Random, baselines, samples};

use crate::chance::{Draw, random};

/// How many of the strongest samples an explainer is taken to have seen where nothing says which: multimodal-sae and delphi's explainers
/// are shown the first ones.
const SEEN_BY_OTHERS: usize = 5;
/// So many times the negatives that are wanted are looked at, since not every sample has an image or a text.
const DRAWN: usize = 4;

/// What samples show: where a feature has to be on, and what ranks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The base tile.
    Image,
    /// Tokens that are no image's.
    Text,
}

/// Picks samples that the explainer has not seen.
pub(crate) struct Picker {
    pub(crate) side: Side,
    /// What it has seen.
    pub(crate) seen: BTreeMap<FeatureKey, Vec<SampleId>>,
    pub(crate) positives: usize,
    pub(crate) negatives: usize,
    pub(crate) quantiles: usize,
    /// Features with fewer unseen samples are passed over.
    pub(crate) min_activating: usize,
    pub(crate) seed: u64,
}

/// Samples of a feature.
pub(crate) struct Picked {
    /// In which it is on, with how strong it is there, from every quantile.
    pub(crate) positives: Vec<(SampleId, f64)>,
    /// In which it is off and a feature that often comes with it is on, hardest first.
    pub(crate) hard: Vec<Counterexample>,
    /// In which it is off, drawn from all.
    pub(crate) easy: Vec<SampleId>,
    /// For what else is drawn for this feature.
    pub(crate) random: Random,
}

impl Picker {
    /// As many positives as asked for or as there are, and as many negatives of either kind.
    ///
    /// # Errors
    /// The outcome of a feature that is passed over, or failed.
    pub(crate) fn pick(&self, key: &FeatureKey, hook: &HookCache<'_>) -> Result<Picked, Outcome> {
        let picked = self.look(key, hook).map_err(|error| Outcome::Failed(format!("{error:#}")))?;
        let what = match self.side {
            Side::Image => "images",
            Side::Text => "texts",
        };
        if picked.positives.len() < self.min_activating.clamp(1, self.positives) {
            let reason =
                format!("active in fewer than {} {what} that were not explained", self.min_activating);
            return Err(Outcome::Skipped(reason));
        }
        Ok(picked)
    }

    fn look(&self, key: &FeatureKey, hook: &HookCache<'_>) -> Result<Picked> {
        let mut random = random(self.seed, key, Draw::Samples);
        let (cache, feature) = (hook.cache(), hook.feature(key.feature)?);
        let layout = &cache.manifest().token_layout;
        let image = |sample| cache.sample(sample).and_then(|record| record.image_sha256.as_deref());
        let ranking = match self.side {
            Side::Image => Ranking::BaseMean,
            Side::Text => Ranking::Max,
        };
        let mut ranked = feature.pick(ranking, Selection::Top(usize::MAX), Duplicates::Drop)?;
        if self.side == Side::Text {
            ranked.retain(|ranked| is_on_in_text(&feature, ranked.sample));
        }
        let strongest = ranked.first().map(|ranked| ranked.sample);
        let seen: Vec<SampleId> = match self.seen.get(key) {
            Some(seen) => seen.clone(),
            None => ranked.iter().take(SEEN_BY_OTHERS).map(|ranked| ranked.sample).collect(),
        };
        let mut samples: HashSet<SampleId> = seen.iter().copied().collect();
        let mut images: HashSet<&str> = seen.iter().filter_map(|&sample| image(sample)).collect();
        ranked.retain(|ranked| {
            !samples.contains(&ranked.sample)
                && image(ranked.sample).is_none_or(|image| !images.contains(image))
        });

        let activations: Vec<f32> = ranked.iter().map(|ranked| ranked.score as f32).collect();
        let positives = samples::positives(&activations, self.quantiles, self.positives, &mut random);
        let positives: Vec<(SampleId, f64)> = positives
            .into_iter()
            .map(|positive| (ranked[positive.at].sample, ranked[positive.at].score))
            .collect();
        // Nothing is compared, and much time saved, where a feature is passed over.
        if positives.len() < self.min_activating.clamp(1, self.positives) {
            return Ok(Picked { positives, hard: Vec::new(), easy: Vec::new(), random });
        }

        // The strongest says what comes with the feature, seen or not.
        let like: Vec<SampleId> =
            strongest.into_iter().chain(seen).chain(positives.iter().map(|&(sample, _)| sample)).collect();
        let hard = counterexamples_by(hook, &feature, &like, ranking, self.negatives)?;

        samples.extend(like.iter().chain(hard.iter().map(|found| &found.sample)));
        images.extend(samples.iter().filter_map(|&sample| image(sample)));
        let on = feature.by_sample().map(|(sample, _)| sample);
        let without: Vec<usize> = on
            .chain(samples.iter().copied())
            .filter_map(|sample| cache.samples().binary_search_by_key(&sample, |record| record.sample).ok())
            .collect();
        let drawn = DRAWN * self.negatives + 16;
        let drawn = baselines::other_images(cache.samples().len(), &without, drawn, &mut random);
        let easy = drawn
            .into_iter()
            .map(|line| &cache.samples()[line])
            .filter(|record| match self.side {
                Side::Image => record.base_tokens(layout).is_some(),
                Side::Text => true,
            })
            .filter(|record| record.image_sha256.as_deref().is_none_or(|image| images.insert(image)))
            .map(|record| record.sample)
            .take(self.negatives)
            .collect();
        Ok(Picked { positives, hard, easy, random })
    }
}
