//! [`FeatureSlice::pick`]: the samples that show a feature, best first, by rank or by chance.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sae_types::SampleId;
use serde::Serialize;

use crate::{CacheError, FeatureSlice};

/// What samples are ranked by. A sample counts if the feature is active on one of the tokens that the ranking looks at;
/// equal scores put the lower sample first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranking {
    /// Mean over the tokens of the base tile, zeros counted: the paper's choice for images. Sums are f64 in the order of
    /// tokens.
    BaseMean,
    /// Largest activation on the base tile, where a heat map can show it.
    BaseMax,
    /// Largest activation on any token, with or without an image: for text, and as delphi ranks.
    Max,
}

/// Which samples of a ranking are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The `0` first ones.
    Top(usize),
    /// The rank order is cut into `parts` parts of equal size (part `i` holds the ranks from `⌊i·n/parts⌋` up to but not
    /// including `⌊(i+1)·n/parts⌋`), and `per_part` samples are drawn from each, or all where it has fewer.
    Quantiles {
        /// How many parts; 0 gives no sample.
        parts: usize,
        /// How many samples of each.
        per_part: usize,
        /// What the draw depends on, beside the feature's number.
        seed: u64,
    },
    /// The `top` first ones, and of the ranks behind them as [`Selection::Quantiles`].
    TopAndQuantiles {
        /// How many of the first.
        top: usize,
        /// How many parts.
        parts: usize,
        /// How many samples of each.
        per_part: usize,
        /// What the draw depends on, beside the feature's number.
        seed: u64,
    },
    /// `n` samples drawn from all that count.
    Random {
        /// How many.
        n: usize,
        /// What the draw depends on, beside the feature's number.
        seed: u64,
    },
}

/// What becomes of samples that show the same image, by [`SampleRecord::image_sha256`].
///
/// [`SampleRecord::image_sha256`]: crate::SampleRecord::image_sha256
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// Each is ranked.
    Keep,
    /// Only the best ranked is; the others take no rank.
    Drop,
}

/// A sample, what it was ranked by and where it came.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RankedSample {
    /// The sample.
    pub sample: SampleId,
    /// What it was ranked by, higher first.
    pub score: f64,
    /// Its place in the ranking, 0 for the first.
    pub rank: usize,
}

impl FeatureSlice<'_> {
    /// The samples that `selection` takes from the feature's `ranking`, best first. Reads the feature's activations once;
    /// [`Selection::Top`] sorts no more than it gives. The same seed gives the same samples on every platform.
    ///
    /// # Errors
    /// When the ranking is of the base tile and the cache names none.
    pub fn pick(
        &self,
        ranking: Ranking,
        selection: Selection,
        duplicates: Duplicates,
    ) -> Result<Vec<RankedSample>, CacheError> {
        let mut order = Order { heap: BinaryHeap::from(self.scores(ranking)?), rank: 0 };
        let mut seen = HashSet::new();
        let is_new = |ranked: &RankedSample| {
            let image = match duplicates {
                Duplicates::Keep => None,
                Duplicates::Drop => self.cache().sample(ranked.sample),
            };
            image.and_then(|record| record.image_sha256.as_deref()).is_none_or(|image| seen.insert(image))
        };
        if let Selection::Top(n) = selection {
            return Ok(order.distinct(is_new).take(n).collect());
        }
        let all: Vec<RankedSample> = order.distinct(is_new).collect();
        let draw = |n: usize, from: &[RankedSample], seed: u64, part: usize| {
            draw(from.len(), n, &mut generator(seed, self.feature().0, part))
                .map(|i| from[i])
                .collect::<Vec<_>>()
        };
        let quantiles = |all: &[RankedSample], parts: usize, per_part: usize, seed: u64| -> Vec<_> {
            let edge = |part: usize| (part as u128 * all.len() as u128 / parts as u128) as usize;
            (0..parts).flat_map(|part| draw(per_part, &all[edge(part)..edge(part + 1)], seed, part)).collect()
        };
        Ok(match selection {
            Selection::Top(_) => all,
            Selection::Random { n, seed } => draw(n, &all, seed, 0),
            Selection::Quantiles { parts, per_part, seed } => quantiles(&all, parts, per_part, seed),
            Selection::TopAndQuantiles { top, parts, per_part, seed } => {
                let (first, rest) = all.split_at(top.min(all.len()));
                [first, &quantiles(rest, parts, per_part, seed)].concat()
            }
        })
    }

    /// Every sample that counts, ascending.
    fn scores(&self, ranking: Ranking) -> Result<Vec<Scored>, CacheError> {
        let layout = &self.cache().manifest().token_layout;
        if layout.base.is_none() && ranking != Ranking::Max {
            return Err(CacheError::NoBaseTile);
        }
        let score = |(sample, part): (SampleId, FeatureSlice<'_>)| {
            let (mut n, mut sum, mut max) = (0, 0.0, f32::NEG_INFINITY);
            let mut add = |value: f32| {
                n += 1;
                sum += f64::from(value);
                max = max.max(value);
            };
            let tokens = if ranking == Ranking::Max {
                part.iter().for_each(|activation| add(activation.value));
                0
            } else {
                let base = self.cache().sample(sample)?.base_tokens(layout)?;
                let within = part.iter().filter(|activation| base.contains(&activation.token.0));
                within.for_each(|activation| add(activation.value));
                base.len()
            };
            let score = if ranking == Ranking::BaseMean { sum / tokens as f64 } else { f64::from(max) };
            (n > 0).then_some(Scored { score, sample })
        };
        Ok(self.by_sample().filter_map(score).collect())
    }
}

/// Numbers of a seed, a feature and a part, independent of those of any other.
fn generator(seed: u64, feature: u32, part: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&feature.to_le_bytes());
    key[12..20].copy_from_slice(&(part as u64).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// `n` of `0..len`, all if there are fewer; ascending. Selection sampling, written out so that no upgrade of a library can
/// change what a seed gives.
fn draw(len: usize, n: usize, random: &mut ChaCha8Rng) -> impl Iterator<Item = usize> {
    let mut wanted = n.min(len);
    (0..len).filter(move |i| {
        let left = (len - i) as u128;
        let taken = wanted > 0 && ((u128::from(random.next_u64()) * left) >> 64) < wanted as u128;
        wanted -= usize::from(taken);
        taken
    })
}

/// A ranking, sorted as far as it is read.
struct Order {
    heap: BinaryHeap<Scored>,
    rank: usize,
}

impl Order {
    fn distinct(
        &mut self,
        mut is_new: impl FnMut(&RankedSample) -> bool,
    ) -> impl Iterator<Item = RankedSample> {
        std::iter::from_fn(move || {
            loop {
                let Scored { sample, score } = self.heap.pop()?;
                let ranked = RankedSample { sample, score, rank: self.rank };
                if is_new(&ranked) {
                    self.rank += 1;
                    return Some(ranked);
                }
            }
        })
    }
}

/// Greatest is ranked first.
struct Scored {
    score: f64,
    sample: SampleId,
}

impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.sample.cmp(&self.sample))
    }
}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scored {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scored {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_takes_as_many_as_asked_and_each_as_often_as_any_other() {
        let mut counts = [0; 10];
        for seed in 0..4000 {
            let drawn: Vec<usize> = draw(10, 3, &mut generator(seed, 7, 0)).collect();
            assert!(drawn.len() == 3 && drawn.is_sorted());
            for i in drawn {
                counts[i] += 1;
            }
        }
        // 1200 on average, standard deviation 29.
        assert!(counts.iter().all(|count| (1075..1325).contains(count)), "{counts:?}");
        assert_eq!(draw(2, 5, &mut generator(1, 1, 0)).count(), 2);
        assert_eq!(draw(0, 5, &mut generator(1, 1, 0)).count(), 0);
    }

    /// What a seed gives must not change: explanations are made of these samples.
    #[test]
    fn draws_are_pinned() {
        let drawn =
            |seed, feature, part| draw(1000, 5, &mut generator(seed, feature, part)).collect::<Vec<_>>();
        assert_eq!(drawn(42, 3, 0), PINNED);
        assert_ne!(drawn(43, 3, 0), PINNED);
        assert_ne!(drawn(42, 4, 0), PINNED);
        assert_ne!(drawn(42, 3, 1), PINNED);
    }

    /// Agrees with a second implementation of ChaCha8 and of the draw.
    const PINNED: [usize; 5] = [73, 453, 844, 848, 879];
}
