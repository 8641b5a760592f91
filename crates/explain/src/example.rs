//! Which samples show a feature best.

use act_cache::{Duplicates, FeatureSlice, Ranking, Selection};
use sae_types::SampleId;

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
    let id = feature.feature();
    let ranked = feature
        .pick(Ranking::BaseMean, Selection::Top(n), Duplicates::Drop)
        .map_err(|source| ExplainError::Cache { feature: id, source })?;
    ranked
        .into_iter()
        .map(|ranked| {
            Ok(Example { sample: ranked.sample, score: ranked.score, heat: heat(feature, ranked.sample)? })
        })
        .collect()
}

/// The feature's activations over the base tile of one sample.
fn heat(feature: &FeatureSlice<'_>, sample: SampleId) -> Result<HeatMap, ExplainError> {
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
