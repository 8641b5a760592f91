//! [`CoOccurrence`]: how often each two of some features are active together.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sae_types::FeatureId;

use crate::{CacheError, FeatureSlice, HookCache};

/// What two features have to share to count as active together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// A token.
    Token,
    /// A sample, on whichever tokens.
    Sample,
}

/// A symmetric matrix of counts; the diagonal is each feature's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoOccurrence {
    features: Vec<FeatureId>,
    /// `[features, features]`, row by row.
    counts: Vec<u64>,
}

impl HookCache<'_> {
    /// How often each two of `features` are active together.
    ///
    /// One merge over the features' activations, samples shared out over the threads of the current rayon pool. It holds
    /// one matrix of `features.len()²` u64 per thread and no activations; the counts do not depend on the threads.
    ///
    /// # Errors
    /// When a feature is beyond the width or not in the cache.
    pub fn co_occurrence(
        &self,
        features: &[FeatureId],
        together: Together,
    ) -> Result<CoOccurrence, CacheError> {
        let slices = features.iter().map(|&feature| self.feature(feature)).collect::<Result<Vec<_>, _>>()?;
        let records = self.cache().samples();
        let parts = rayon::current_num_threads().clamp(1, records.len().max(1));
        // The first and the last part are open, so that no activation falls between the parts of a damaged cache.
        let edge = |part: usize| match part {
            0 => 0,
            part if part == parts => u64::from(u32::MAX) + 1,
            part => u64::from(records[part * records.len() / parts].sample.0),
        };
        let of_part = |part: usize| {
            let samples = edge(part)..edge(part + 1);
            let slices: Vec<_> = slices.iter().map(|slice| slice.in_samples(samples.clone())).collect();
            count(&slices, together)
        };
        let add = |mut sum: Vec<u64>, part: Vec<u64>| {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            sum
        };
        let zeros = || vec![0; features.len() * features.len()];
        let counts = (0..parts).into_par_iter().map(of_part).reduce(zeros, add);
        Ok(CoOccurrence { features: features.to_vec(), counts })
    }
}

impl CoOccurrence {
    /// The features, as they were given.
    pub fn features(&self) -> &[FeatureId] {
        &self.features
    }

    /// At how many tokens or samples the `i`-th and the `j`-th feature are active together; at how many the `i`-th is, if
    /// both are the same.
    ///
    /// # Panics
    /// When there is no such feature.
    #[track_caller]
    pub fn count(&self, i: usize, j: usize) -> u64 {
        let n = self.features.len();
        assert!(i < n && j < n, "features {i} and {j} of {n}");
        self.counts[i * n + j]
    }

    /// The share of the tokens or samples at which one of both is active that have both; `None` where neither ever is.
    ///
    /// # Panics
    /// When there is no such feature.
    #[track_caller]
    pub fn jaccard(&self, i: usize, j: usize) -> Option<f64> {
        let both = self.count(i, j);
        let either = self.count(i, i) + self.count(j, j) - both;
        (either > 0).then(|| both as f64 / either as f64)
    }
}

/// Counts of `[slices, slices]` by merging them.
fn count(slices: &[FeatureSlice<'_>], together: Together) -> Vec<u64> {
    let n = slices.len();
    let place = |slice: &FeatureSlice<'_>, i: usize| match together {
        Together::Token => (slice.samples()[i], slice.token(i).0),
        Together::Sample => (slice.samples()[i], 0),
    };
    let mut next = vec![0; n];
    let filled = slices.iter().enumerate().filter(|(_, slice)| !slice.is_empty());
    let mut heap: BinaryHeap<_> = filled.map(|(of, slice)| Reverse((place(slice, 0), of))).collect();
    let mut counts = vec![0; n * n];
    let mut active = Vec::new();
    while let Some(&Reverse((here, _))) = heap.peek() {
        active.clear();
        while let Some(mut first) = heap.peek_mut()
            && first.0.0 == here
        {
            let of = first.0.1;
            let (slice, at) = (&slices[of], &mut next[of]);
            *at += 1;
            while *at < slice.len() && place(slice, *at) == here {
                *at += 1;
            }
            if *at == slice.len() {
                PeekMut::pop(first);
            } else {
                first.0.0 = place(slice, *at);
            }
            active.push(of);
        }
        for &i in &active {
            for &j in &active {
                counts[i * n + j] += 1;
            }
        }
    }
    counts
}
