//! Counterexamples: samples in which a feature is off although what usually comes with it is there.

use std::cmp::Reverse;
use std::collections::HashSet;

use act_cache::{Duplicates, FeatureSlice, HookCache, Ranking, Selection, Together};
use sae_types::{FeatureId, SampleId};

use crate::{Example, ExplainError};

/// How many features that are on beside the feature are compared.
const NEIGHBOURS: usize = 16;
/// A neighbour with so many times the feature's activations says little about it, and comparing it takes long.
const DENSER: usize = 10;
/// How many of a neighbour's first samples are looked at per counterexample.
const DEPTH: usize = 8;

/// A sample in which a feature is on nowhere and one that often comes with it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The sample.
    pub sample: SampleId,
    /// The feature that is on.
    pub neighbour: FeatureId,
}

/// Up to `n` hard counterexamples to `feature`, whose first example is `like[0]`; no image twice, and none of `like`.
///
/// The features that share most patches with it in its first example, dense ones aside, are ordered by how often they are on
/// on the same tokens of all samples (Jaccard index), and take turns: each gives its strongest sample that is not taken yet and
/// in which `feature` is on nowhere, not on other tiles or in the text either. Looks for one sample in every feature of the hook point, which takes `width` binary searches.
///
/// # Errors
/// When the cache has no base tile, does not know a sample or cannot be read.
pub fn counterexamples(
    hook: &HookCache<'_>,
    feature: &FeatureSlice<'_>,
    like: &[Example],
    n: usize,
) -> Result<Vec<Counterexample>, ExplainError> {
    let like: Vec<SampleId> = like.iter().map(|example| example.sample).collect();
    counterexamples_by(hook, feature, &like, Ranking::BaseMean, n)
}

/// As [`counterexamples`], of samples whose strength `ranking` tells: those of text have no base tile.
///
/// # Errors
/// As [`counterexamples`].
pub fn counterexamples_by(
    hook: &HookCache<'_>,
    feature: &FeatureSlice<'_>,
    like: &[SampleId],
    ranking: Ranking,
    n: usize,
) -> Result<Vec<Counterexample>, ExplainError> {
    let failed = ExplainError::cache(feature.feature());
    let (Some(&first), true) = (like.first(), n > 0) else { return Ok(Vec::new()) };
    let image =
        |sample: SampleId| feature.cache().sample(sample).and_then(|record| record.image_sha256.as_deref());
    let mut images: HashSet<&str> = like.iter().filter_map(|&sample| image(sample)).collect();
    let mut samples: HashSet<SampleId> = like.iter().copied().collect();
    let neighbours = neighbours(hook, feature, first)?;
    let mut strongest: Vec<_> = neighbours.into_iter().map(|neighbour| (neighbour, None)).collect();
    let mut found = Vec::new();
    while !strongest.is_empty() {
        let mut left = Vec::new();
        for (neighbour, ranked) in strongest {
            if found.len() == n {
                return Ok(found);
            }
            let mut ranked = if let Some(ranked) = ranked {
                ranked
            } else {
                let slice = hook.feature(neighbour).map_err(&failed)?;
                let selection = Selection::Top(DEPTH * n + like.len());
                slice.pick(ranking, selection, Duplicates::Drop).map_err(&failed)?.into_iter()
            };
            let next = ranked.by_ref().map(|ranked| ranked.sample).find(|&sample| {
                feature.in_sample(sample).is_empty()
                    && samples.insert(sample)
                    && image(sample).is_none_or(|image| images.insert(image))
            });
            if let Some(sample) = next {
                found.push(Counterexample { sample, neighbour });
                left.push((neighbour, Some(ranked)));
            }
        }
        strongest = left;
    }
    Ok(found)
}

/// The features that come with `feature`, closest first.
fn neighbours(
    hook: &HookCache<'_>,
    feature: &FeatureSlice<'_>,
    sample: SampleId,
) -> Result<Vec<FeatureId>, ExplainError> {
    let failed = ExplainError::cache(feature.feature());
    let view = hook.sample(sample).map_err(&failed)?;
    let on: HashSet<u32> = feature.in_sample(sample).iter().map(|activation| activation.token.0).collect();
    let mut beside = Vec::new();
    for (other, activations) in view.features().filter(|(other, _)| *other != feature.feature()) {
        let shared = activations.iter().filter(|activation| on.contains(&activation.token.0)).count();
        // A feature that was lost is in the view and not in the cache.
        let Ok(slice) = hook.feature(other) else { continue };
        if shared > 0 && slice.len() <= DENSER.saturating_mul(feature.len()) {
            beside.push((Reverse(shared), other));
        }
    }
    beside.sort_unstable();
    let compared: Vec<FeatureId> = std::iter::once(feature.feature())
        .chain(beside.into_iter().map(|(_, other)| other))
        .take(1 + NEIGHBOURS)
        .collect();
    let together = hook.co_occurrence(&compared, Together::Token).map_err(&failed)?;
    let mut order: Vec<usize> = (1..compared.len()).collect();
    let jaccard = |i: usize| together.jaccard(0, i).unwrap_or(0.0);
    order.sort_by(|&i, &j| jaccard(j).total_cmp(&jaccard(i)));
    Ok(order.into_iter().map(|i| compared[i]).collect())
}
