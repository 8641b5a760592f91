//! Rankings and statistics over a feature's activations.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sae_types::{FeatureId, SampleId};

use crate::{CacheError, FeatureSlice, HookCache};

/// What becomes of samples that show the same image, by [`SampleRecord::image_sha256`].
///
/// [`SampleRecord::image_sha256`]: crate::SampleRecord::image_sha256
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// Each is ranked.
    Keep,
    /// Only the best ranked is.
    Drop,
}

/// A sample and what it was ranked by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedSample {
    /// The sample.
    pub sample: SampleId,
    /// What it was ranked by, higher first.
    pub score: f64,
}

/// What can be said of a feature from all its activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureStatistics {
    /// The feature.
    pub feature: FeatureId,
    /// How many activations it has.
    pub n_activations: u64,
    /// In how many samples it is active.
    pub n_samples: u64,
    /// Share of the tokens it is active on.
    pub density: f64,
    /// Mean of its activations, zeros not counted; 0 without any.
    pub mean: f64,
    /// Largest of its activations; 0 without any.
    pub max: f32,
}

impl FeatureSlice<'_> {
    /// The mean over the base tile's tokens, zeros counted, of every sample with an image the feature is active
    /// in; ascending by sample. Sums are f64 in the order of tokens.
    ///
    /// # Errors
    /// When the cache names no base tile.
    pub fn base_means(&self) -> Result<Vec<RankedSample>, CacheError> {
        let layout = &self.cache().manifest().token_layout;
        if layout.base.is_none() {
            return Err(CacheError::NoBaseTile);
        }
        let mean = |(sample, slice): (SampleId, FeatureSlice<'_>)| {
            let base = self.cache().sample(sample)?.base_tokens(layout)?;
            let within = slice.iter().filter(|activation| base.contains(&activation.token.0));
            let sum: f64 = within.map(|activation| f64::from(activation.value)).sum();
            Some(RankedSample { sample, score: sum / base.len() as f64 })
        };
        Ok(self.by_sample().filter_map(mean).collect())
    }

    /// The `n` samples with the highest mean over the base tile's tokens, zeros counted; highest first, of
    /// equal ones the lower sample first. Samples the feature is not active in on the base tile are left out.
    ///
    /// # Errors
    /// When the cache names no base tile.
    pub fn top_samples_by_base_mean(
        &self,
        n: usize,
        duplicates: Duplicates,
    ) -> Result<Vec<RankedSample>, CacheError> {
        let means = self.base_means()?.into_iter().filter(|ranked| ranked.score > 0.0);
        let mut heap: BinaryHeap<Ranked> = means.map(Ranked).collect();
        let mut seen = HashSet::new();
        let mut top = Vec::new();
        while top.len() < n
            && let Some(Ranked(ranked)) = heap.pop()
        {
            let image = match duplicates {
                Duplicates::Keep => None,
                Duplicates::Drop => {
                    self.cache().sample(ranked.sample).and_then(|record| record.image_sha256.as_deref())
                }
            };
            if image.is_none_or(|image| seen.insert(image)) {
                top.push(ranked);
            }
        }
        Ok(top)
    }
}

impl HookCache<'_> {
    /// Statistics of every stored feature, ascending, active or not. One pass over all activations on all
    /// threads of the current rayon pool; the result does not depend on their number.
    pub fn statistics(&self) -> Vec<FeatureStatistics> {
        self.stored().par_iter().map(|&feature| self.statistics_of(feature)).collect()
    }

    fn statistics_of(&self, feature: FeatureId) -> FeatureStatistics {
        let slice = self.slice(feature);
        let n = slice.len() as u64;
        let (mut sum, mut max) = (0.0, f32::NEG_INFINITY);
        for activation in slice.iter() {
            sum += f64::from(activation.value);
            max = max.max(activation.value);
        }
        let changes = slice.samples().windows(2).filter(|pair| pair[0] != pair[1]).count() as u64;
        FeatureStatistics {
            feature,
            n_activations: n,
            n_samples: changes + u64::from(n > 0),
            density: if self.n_tokens() == 0 { 0.0 } else { n as f64 / self.n_tokens() as f64 },
            mean: if n == 0 { 0.0 } else { sum / n as f64 },
            max: if n == 0 { 0.0 } else { max },
        }
    }
}

/// Greatest is ranked first.
struct Ranked(RankedSample);

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.score.total_cmp(&other.0.score).then(other.0.sample.cmp(&self.0.sample))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}
