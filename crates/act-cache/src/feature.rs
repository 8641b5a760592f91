//! [`FeatureSlice`]: the activations of one feature.

use std::ops::Range;

use sae_types::{FeatureId, SampleId, TokenIndex};

use crate::Cache;
use crate::split::{SplitFile, Tokens, Values};

/// Activations of one feature, ascending by (sample, token): all of them, or those of one sample.
#[derive(Clone, Copy, Debug)]
pub struct FeatureSlice<'a> {
    cache: &'a Cache,
    feature: FeatureId,
    sample: &'a [u32],
    token: Tokens<'a>,
    activation: Values<'a>,
}

/// One activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    /// The sample it was seen in.
    pub sample: SampleId,
    /// The position within the sample.
    pub token: TokenIndex,
    /// How strong it was.
    pub value: f32,
}

impl<'a> FeatureSlice<'a> {
    /// The activations of `feature`, one of the split's.
    pub(crate) fn of_split(cache: &'a Cache, split: &'a SplitFile, feature: FeatureId) -> Self {
        let entries = split.entries(feature.index());
        Self {
            cache,
            feature,
            sample: &split.samples()[entries.clone()],
            token: split.tokens().slice(entries.clone()),
            activation: split.values().slice(entries),
        }
    }

    /// The feature.
    pub fn feature(&self) -> FeatureId {
        self.feature
    }

    /// The cache it comes from.
    pub fn cache(&self) -> &'a Cache {
        self.cache
    }

    /// How many activations there are.
    pub fn len(&self) -> usize {
        self.sample.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sample.is_empty()
    }

    /// `[len]` samples, one per activation, never falling.
    pub fn samples(&self) -> &'a [u32] {
        self.sample
    }

    /// The position of activation `i`.
    ///
    /// # Panics
    /// When there is no such activation.
    #[track_caller]
    pub fn token(&self, i: usize) -> TokenIndex {
        TokenIndex(self.token.get(i))
    }

    /// The value of activation `i`, widened to f32.
    ///
    /// # Panics
    /// When there is no such activation.
    #[track_caller]
    pub fn activation(&self, i: usize) -> f32 {
        self.activation.get(i)
    }

    /// All activations.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Activation> + use<'a> {
        let slice = *self;
        (0..self.len()).map(move |i| Activation {
            sample: SampleId(slice.sample[i]),
            token: slice.token(i),
            value: slice.activation(i),
        })
    }

    /// The samples it is active in, ascending, each with its own activations.
    pub fn by_sample(&self) -> impl Iterator<Item = (SampleId, FeatureSlice<'a>)> + use<'a> {
        let mut rest = *self;
        std::iter::from_fn(move || {
            let &first = rest.sample.first()?;
            // A sample has few of a feature's activations. At least one, so that a file that is not sorted cannot keep the
            // iterator in place.
            let count = rest.sample.iter().take_while(|&&sample| sample == first).count();
            let group = rest.range(0..count);
            rest = rest.range(count..rest.len());
            Some((SampleId(first), group))
        })
    }

    /// The activations in `sample`, none if it was never active there.
    pub fn in_sample(&self, sample: SampleId) -> FeatureSlice<'a> {
        let start = self.sample.partition_point(|&s| s < sample.0);
        let count = self.sample[start..].partition_point(|&s| s <= sample.0);
        self.range(start..start + count)
    }

    /// The activations in samples of a range.
    pub(crate) fn in_samples(&self, samples: Range<u64>) -> Self {
        let start = self.sample.partition_point(|&s| u64::from(s) < samples.start);
        let count = self.sample[start..].partition_point(|&s| u64::from(s) < samples.end);
        self.range(start..start + count)
    }

    fn range(&self, range: Range<usize>) -> Self {
        Self {
            sample: &self.sample[range.clone()],
            token: self.token.slice(range.clone()),
            activation: self.activation.slice(range),
            ..*self
        }
    }
}
