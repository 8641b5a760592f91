//! [`DecoderCosines`]: latents whose decoder rows point where another's does.

use std::ops::Range;

use ndarray::Array2;
use rayon::prelude::*;

use crate::Weights;

/// Rows that are compared with all others at a time, and so held as f32.
const QUERIES: usize = 1024;
/// Rows that one task compares them with at a time.
const BLOCK: usize = 256;

/// For latents of a dictionary, the largest cosine of the latent's decoder row with any other's. Latents that all but
/// double another (cosine near 1) are what a dictionary wastes.
///
/// Exact up to [`DecoderCosines::EXACT`] latents. Of a wider dictionary [`DecoderCosines::SAMPLED`] latents, drawn from `seed`, are
/// compared with all others, so that share and mean are unbiased estimates: off by about 1 percentage point (one standard
/// deviation) at a share of 30 %.
///
/// Products are f32 sums of rows scaled to length 1 in f64. No matrix of latents by latents is made, and threads change no bit.
/// Rows that are zero or not finite have no direction; they are left out.
#[derive(Clone, Debug)]
pub struct DecoderCosines {
    largest: Vec<f32>,
}

impl DecoderCosines {
    /// Up to so many latents, all are compared: `latents² · d_in` multiply-adds.
    pub const EXACT: usize = 8192;
    /// Latents that are compared with all of a wider dictionary.
    pub const SAMPLED: usize = 2048;

    /// Compares the rows of `decoder` `[num_latents, d_in]`.
    pub fn new(decoder: Weights<'_>, seed: u64) -> Self {
        let [latents, _] = decoder.shape();
        let chosen = if latents <= Self::EXACT {
            (0..latents).collect()
        } else {
            sample(latents, Self::SAMPLED, seed)
        };
        let largest = chosen.chunks(QUERIES).flat_map(|chosen| largest_cosines(decoder, chosen)).collect();
        Self { largest }
    }

    /// How many latents were compared with all others.
    pub fn latents(&self) -> usize {
        self.largest.len()
    }

    /// The share of latents whose largest cosine exceeds `cosine` (0.9 is customary). `None` where none has another to be
    /// compared with.
    pub fn share_above(&self, cosine: f32) -> Option<f64> {
        let above = self.largest.iter().filter(|&&largest| largest > cosine).count();
        (!self.largest.is_empty()).then(|| above as f64 / self.largest.len() as f64)
    }

    /// The mean of the largest cosines. `None` where none has another to be compared with.
    pub fn mean(&self) -> Option<f64> {
        let sum: f64 = self.largest.iter().copied().map(f64::from).sum();
        (!self.largest.is_empty()).then(|| sum / self.largest.len() as f64)
    }
}

/// The largest cosine of each of `chosen` with another row, where both have a direction.
fn largest_cosines(decoder: Weights<'_>, chosen: &[usize]) -> Vec<f32> {
    let [latents, _] = decoder.shape();
    let queries = unit_rows(decoder, chosen.iter().map(|&latent| latent..latent + 1));
    let blocks: Vec<_> = (0..latents).step_by(BLOCK).map(|start| start..latents.min(start + BLOCK)).collect();
    let nothing = || vec![f32::NEG_INFINITY; chosen.len()];
    let compare = |block: &Range<usize>| {
        let rows = unit_rows(decoder, [block.clone()]);
        let products = queries.view().dot(&rows.t());
        let mut largest = nothing();
        for ((largest, &latent), products) in largest.iter_mut().zip(chosen).zip(products.rows()) {
            for (other, &product) in block.clone().zip(products) {
                // False for NaN too, the product with a row that has no direction.
                if other != latent && product > *largest {
                    *largest = product;
                }
            }
        }
        largest
    };
    let larger = |mut one: Vec<f32>, other: Vec<f32>| {
        one.iter_mut().zip(other).for_each(|(one, other)| *one = one.max(other));
        one
    };
    let largest = blocks.par_iter().map(compare).reduce(nothing, larger);
    // Rounding may take a product of unit rows beyond 1.
    largest
        .into_iter()
        .filter(|&largest| largest > f32::NEG_INFINITY)
        .map(|largest| largest.min(1.0))
        .collect()
}

/// Rows scaled to length 1, NaN where they have no direction.
fn unit_rows(weights: Weights<'_>, ranges: impl IntoIterator<Item = Range<usize>>) -> Array2<f32> {
    let d_in = weights.shape()[1];
    let (mut rows, mut scratch) = (Vec::new(), Vec::new());
    for range in ranges {
        for row in range {
            let row = weights.rows_f32(row..row + 1, &mut scratch);
            let length = row.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
            rows.extend(row.iter().map(|&number| (f64::from(number) / length) as f32));
        }
    }
    let n = rows.len() / d_in.max(1);
    Array2::from_shape_vec((n, d_in), rows).expect("rows of d_in numbers")
}

/// `count` of the numbers below `end`, each set as likely as any other, ascending: those with the smallest hashes.
fn sample(end: usize, count: usize, seed: u64) -> Vec<usize> {
    // The finaliser of SplitMix64, a bijection of u64.
    let hash = |number: usize| {
        let mut hash = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    };
    let mut numbers: Vec<_> = (0..end).collect();
    numbers.sort_unstable_by_key(|&number| hash(number));
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use ndarray::ArrayView2;

    use super::*;

    fn noise(n: usize) -> Vec<f32> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let draw = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(draw).collect()
    }

    #[test]
    fn by_hand() {
        let rows = [1.0, 0.0, 0.0, 2.0, 3.0, 3.0, -5.0, 0.0, 0.5, 0.0, 0.0, 0.0, f32::NAN, 1.0];
        let cosines = DecoderCosines::new(Weights::from_f32(7, 2, &rows), 0);
        let half = 0.5_f32.sqrt();
        let want = [1.0, half, half, 0.0, 1.0];
        assert_eq!(cosines.largest.len(), want.len());
        for (got, want) in cosines.largest.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} for {want}");
        }
        assert_eq!(cosines.share_above(0.9), Some(2.0 / 5.0));
        assert!((cosines.mean().unwrap() - f64::from(want.iter().sum::<f32>()) / 5.0).abs() < 1e-6);
        let lonely = DecoderCosines::new(Weights::from_f32(1, 2, &rows[..2]), 0);
        assert_eq!((lonely.latents(), lonely.mean(), lonely.share_above(0.0)), (0, None, None));
    }

    #[test]
    fn blocks_equal_the_whole_matrix() {
        // More than one block of queries and a ragged block of rows.
        let (latents, d_in) = (QUERIES + 2 * BLOCK + 7, 12);
        let mut rows = noise(latents * d_in);
        rows.copy_within(5 * d_in..6 * d_in, 1200 * d_in);
        let weights = Weights::from_f32(latents, d_in, &rows);
        let got = DecoderCosines::new(weights, 3);
        let matrix = ArrayView2::from_shape((latents, d_in), &rows).unwrap().mapv(f64::from);
        for (latent, &got) in got.largest.iter().enumerate() {
            let row = matrix.row(latent);
            let cosine = |other: usize| {
                let other = matrix.row(other);
                row.dot(&other) / (row.dot(&row) * other.dot(&other)).sqrt()
            };
            let want = (0..latents).filter(|&other| other != latent).map(cosine).fold(f64::MIN, f64::max);
            assert!((f64::from(got) - want).abs() < 1e-6, "latent {latent}: {got} for {want}");
        }
        assert!((got.largest[5] - 1.0).abs() < 1e-6 && (got.largest[1200] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_wide_dictionary_is_sampled() {
        let (latents, d_in) = (DecoderCosines::EXACT + 1, 3);
        let mut rows = noise(latents * d_in);
        // All of the upper quarter point one way.
        for row in rows.chunks_mut(d_in).skip(latents * 3 / 4) {
            row.copy_from_slice(&[4.0, 0.0, 0.0]);
        }
        let bytes: Vec<u8> =
            rows.iter().flat_map(|&number| half::bf16::from_f32(number).to_le_bytes()).collect();
        let weights = Weights::new(crate::WeightDtype::Bf16, latents, d_in, &bytes);
        let some = DecoderCosines::new(weights, 1);
        assert_eq!(some.latents(), DecoderCosines::SAMPLED);
        let same =
            some.largest.iter().filter(|&&cosine| cosine == 1.0).count() as f64 / some.latents() as f64;
        assert!((same - 0.25).abs() < 0.04, "{same} of the sample");
        assert_eq!(some.largest, DecoderCosines::new(weights, 1).largest);
        assert_ne!(some.largest, DecoderCosines::new(weights, 2).largest);
        assert_eq!(sample(10, 10, 7), (0..10).collect::<Vec<_>>());
    }
}
