//! [`SampleView`]: what is active in one sample, by feature and by token.

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sae_types::{FeatureId, SampleId, TokenIndex};

use crate::{CacheError, HookCache, SampleRecord};

/// One activation in a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleActivation {
    /// The feature.
    pub feature: FeatureId,
    /// The position within the sample.
    pub token: TokenIndex,
    /// How strong it was.
    pub value: f32,
}

/// All activations in one sample at one hook point.
#[derive(Clone, Debug)]
pub struct SampleView<'c> {
    record: &'c SampleRecord,
    /// Ascending by (feature, token).
    by_feature: Vec<SampleActivation>,
    /// By token; of one token the strongest first, of equal ones the lower feature.
    by_token: Vec<SampleActivation>,
}

impl<'c> HookCache<'c> {
    /// Everything active in `sample`.
    ///
    /// The cache is sorted by feature, so this looks for the sample in each feature: `width` binary searches, on all threads
    /// of the current rayon pool, each of which touches a few pages of a file.
    ///
    /// # Errors
    /// When the cache does not hold the sample.
    pub fn sample(&self, sample: SampleId) -> Result<SampleView<'c>, CacheError> {
        let record = self
            .cache()
            .sample(sample)
            .ok_or(CacheError::UnknownSample { sample, n_samples: self.cache().samples().len() })?;
        let of_feature = |feature: u32| {
            let feature = FeatureId(feature);
            let part = self.slice(feature).in_sample(sample);
            part.iter()
                .map(move |activation| SampleActivation {
                    feature,
                    token: activation.token,
                    value: activation.value,
                })
                .collect::<Vec<_>>()
        };
        let by_feature: Vec<_> = (0..self.width() as u32).into_par_iter().flat_map_iter(of_feature).collect();
        let mut by_token = by_feature.clone();
        by_token.sort_by(|a, b| a.token.cmp(&b.token).then(b.value.total_cmp(&a.value)));
        Ok(SampleView { record, by_feature, by_token })
    }
}

impl<'c> SampleView<'c> {
    /// The sample.
    pub fn record(&self) -> &'c SampleRecord {
        self.record
    }

    /// The features that are active, ascending, each with its activations ascending by token.
    pub fn features(&self) -> impl Iterator<Item = (FeatureId, &[SampleActivation])> {
        self.by_feature.chunk_by(|a, b| a.feature == b.feature).map(|part| (part[0].feature, part))
    }

    /// The tokens on which a feature is active, ascending, each as [`SampleView::token`] gives it.
    pub fn tokens(&self) -> impl Iterator<Item = (TokenIndex, &[SampleActivation])> {
        self.by_token.chunk_by(|a, b| a.token == b.token).map(|part| (part[0].token, part))
    }

    /// What is active on a token, strongest first, of equal ones the lower feature first; empty beyond the sample's tokens.
    pub fn token(&self, token: TokenIndex) -> &[SampleActivation] {
        let start = self.by_token.partition_point(|activation| activation.token < token);
        let count = self.by_token[start..].partition_point(|activation| activation.token == token);
        &self.by_token[start..start + count]
    }
}
