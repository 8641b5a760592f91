//! Which samples show a feature, and where in them it is on.

use std::collections::HashSet;

use act_cache::{Duplicates, FeatureSlice, Ranking, Selection};
use sae_types::{FeatureId, SampleId};

use crate::{ExplainError, HeatMap};

/// A sample in which a feature is on, with where it is on.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The sample.
    pub sample: SampleId,
    /// What it was picked by: the mean activation over the base tile's tokens, zeros counted.
    pub score: f64,
    /// The feature's activations over the base tile.
    pub heat: HeatMap,
}

/// The `n` samples with the highest mean activation over the base tile, highest first, no image twice: the paper's
/// choice of examples. Fewer where the feature is on in fewer.
///
/// # Errors
/// When the cache has no base tile or does not know a sample.
pub fn top_examples(feature: &FeatureSlice<'_>, n: usize) -> Result<Vec<Example>, ExplainError> {
    examples(feature, Selection::Top(n))
}

/// The samples that `selection` takes of the ranking by mean activation over the base tile, highest first, no image twice. Fewer
/// where the feature is on in fewer.
///
/// # Errors
/// As [`top_examples`].
pub fn examples(feature: &FeatureSlice<'_>, selection: Selection) -> Result<Vec<Example>, ExplainError> {
    let ranked = feature
        .pick(Ranking::BaseMean, selection, Duplicates::Drop)
        .map_err(ExplainError::cache(feature.feature()))?;
    let example = |ranked: act_cache::RankedSample| {
        Ok(Example { sample: ranked.sample, score: ranked.score, heat: heat_map(feature, ranked.sample)? })
    };
    ranked.into_iter().map(example).collect()
}

/// A sample with where the feature is on in it, which may be nowhere.
///
/// # Errors
/// As [`top_examples`].
pub fn example_in(feature: &FeatureSlice<'_>, sample: SampleId) -> Result<Example, ExplainError> {
    let heat = heat_map(feature, sample)?;
    let sum: f64 = heat.values().iter().map(|&value| f64::from(value)).sum();
    let score = sum / heat.values().len().max(1) as f64;
    Ok(Example { sample, score, heat })
}

/// In how many samples the feature is on, on the base tile, but no more than `enough`, where the count ends; no image twice.
///
/// # Errors
/// When the cache has no base tile.
pub fn count_up_to(feature: &FeatureSlice<'_>, enough: usize) -> Result<usize, ExplainError> {
    let layout = &feature.cache().manifest().token_layout;
    if layout.base.is_none() {
        return Err(ExplainError::NoBaseTile);
    }
    let mut images = HashSet::new();
    let is_new = |(sample, part): (SampleId, FeatureSlice<'_>)| {
        let record = feature.cache().sample(sample)?;
        let base = record.base_tokens(layout)?;
        let on = part.iter().any(|activation| base.contains(&activation.token.0));
        (on && record.image_sha256.as_ref().is_none_or(|image| images.insert(image))).then_some(())
    };
    Ok(feature.by_sample().filter_map(is_new).take(enough).count())
}

/// The feature's activations over the base tile of one sample, 0 where it is off.
///
/// # Errors
/// When the cache has no base tile or does not know the sample.
pub fn heat_map(feature: &FeatureSlice<'_>, sample: SampleId) -> Result<HeatMap, ExplainError> {
    let cache = feature.cache();
    let layout = &cache.manifest().token_layout;
    let base = layout.base.ok_or(ExplainError::NoBaseTile)?;
    let record = cache.sample(sample).ok_or(ExplainError::UnknownSample { sample })?;
    let tokens = record.base_tokens(layout).ok_or(ExplainError::NoBaseTile)?;
    let mut values = vec![0.0; tokens.len()];
    for activation in feature.in_sample(sample).iter().filter(|a| tokens.contains(&a.token.0)) {
        values[(activation.token.0 - tokens.start) as usize] = activation.value;
    }
    HeatMap::new(base.rows as usize, base.cols as usize, values)
}

impl ExplainError {
    /// Says which feature the cache was asked for.
    pub(crate) fn cache(feature: FeatureId) -> impl Fn(act_cache::CacheError) -> Self {
        move |source| Self::Cache { feature, source }
    }
}
