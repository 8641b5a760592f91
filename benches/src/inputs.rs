//! Seeded inputs, made by all threads: the same numbers whatever the number of threads.
//!
//! A number is a hash of seed and index (SplitMix64), so any part can be made alone.

use std::collections::BTreeSet;

use half::bf16;
use ndarray::Array2;
use rayon::prelude::*;
use sae_core::{WeightDtype, Weights};
use sae_types::{FeatureId, SparseCodes};

use crate::Shape;

/// Numbers a thread makes at a time.
pub const BLOCK: usize = 1 << 16;

/// A cache line, so that rows start where the allocator of a tensor library would put them.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u64; 8]);

/// A matrix in memory, aligned to cache lines.
#[derive(Debug)]
pub struct Matrix {
    dtype: WeightDtype,
    rows: usize,
    cols: usize,
    lines: Box<[Line]>,
}

impl Matrix {
    /// Numbers between `-scale` and `scale`.
    pub fn uniform(dtype: WeightDtype, rows: usize, cols: usize, scale: f32, seed: u64) -> Self {
        let bytes = rows * cols * dtype.size();
        let mut lines = bytemuck::zeroed_slice_box::<Line>(bytes.div_ceil(size_of::<Line>()));
        fill(dtype, scale, seed, 0, &mut bytemuck::cast_slice_mut(&mut lines)[..bytes]);
        Self { dtype, rows, cols, lines }
    }

    /// As the kernels take it.
    pub fn view(&self) -> Weights<'_> {
        let bytes = self.rows * self.cols * self.dtype.size();
        Weights::new(self.dtype, self.rows, self.cols, &bytemuck::cast_slice(&self.lines)[..bytes])
    }
}

/// The seeds, so that every bench and every program sees the same autoencoder.
pub mod seeds {
    /// `W_enc`.
    pub const ENCODER_WEIGHT: u64 = 1;
    /// `b_enc`.
    pub const ENCODER_BIAS: u64 = 2;
    /// `W_dec`.
    pub const DECODER_WEIGHT: u64 = 3;
    /// `b_dec`.
    pub const DECODER_BIAS: u64 = 4;
    /// Vectors to encode.
    pub const VECTORS: u64 = 5;
    /// Gradients of what was decoded.
    pub const GRADIENTS: u64 = 6;
    /// Codes that no encoder made.
    pub const CODES: u64 = 7;
}

/// How large the weights of a shape are: such that a pre-activation is about 0.6 of a number of the vector.
pub fn scale(shape: &Shape) -> f32 {
    1.0 / (shape.d_in as f32).sqrt()
}

/// `W_enc` of a shape.
pub fn encoder_weight(shape: &Shape, dtype: WeightDtype) -> Matrix {
    Matrix::uniform(dtype, shape.latents, shape.d_in, scale(shape), seeds::ENCODER_WEIGHT)
}

/// `W_dec` of a shape.
pub fn decoder_weight(shape: &Shape, dtype: WeightDtype) -> Matrix {
    Matrix::uniform(dtype, shape.latents, shape.d_in, scale(shape), seeds::DECODER_WEIGHT)
}

/// `b_enc` of a shape.
pub fn encoder_bias(shape: &Shape) -> Vec<f32> {
    uniform(shape.latents, 0.01, seeds::ENCODER_BIAS)
}

/// `b_dec` of a shape.
pub fn decoder_bias(shape: &Shape) -> Vec<f32> {
    uniform(shape.d_in, 0.1, seeds::DECODER_BIAS)
}

/// `len` numbers between `-scale` and `scale`.
pub fn uniform(len: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut numbers = vec![0.0; len];
    fill(WeightDtype::F32, scale, seed, 0, bytemuck::cast_slice_mut(&mut numbers));
    numbers
}

/// Vectors `[tokens, d_in]` with numbers between -1 and 1, which bf16 can hold if `rounded`.
#[expect(clippy::missing_panics_doc, reason = "as many numbers as the shape has")]
pub fn vectors(tokens: usize, d_in: usize, seed: u64, rounded: bool) -> Array2<f32> {
    let mut numbers = uniform(tokens * d_in, 1.0, seed);
    if rounded {
        for number in &mut numbers {
            *number = bf16::from_f32(*number).to_f32();
        }
    }
    Array2::from_shape_vec((tokens, d_in), numbers).expect("as many numbers as the shape has")
}

/// Fills `bytes` with the numbers from `first_block * BLOCK` on of an endless row between `-scale` and `scale`.
///
/// # Panics
/// When `dtype` is neither F32 nor Bf16.
pub fn fill(dtype: WeightDtype, scale: f32, seed: u64, first_block: usize, bytes: &mut [u8]) {
    assert_ne!(dtype, WeightDtype::F16, "dtype of the inputs");
    bytes.par_chunks_mut(BLOCK * dtype.size()).enumerate().for_each(|(block, bytes)| {
        let first = ((first_block + block) * BLOCK) as u64;
        let number = |index: usize| (2.0 * unit(seed, first + index as u64) - 1.0) * scale;
        if dtype == WeightDtype::F32 {
            let numbers = bytes.as_chunks_mut::<4>().0.iter_mut().enumerate();
            numbers.for_each(|(index, bytes)| *bytes = number(index).to_le_bytes());
        } else {
            let numbers = bytes.as_chunks_mut::<2>().0.iter_mut().enumerate();
            numbers.for_each(|(index, bytes)| *bytes = bf16::from_f32(number(index)).to_le_bytes());
        }
    });
}

/// Which latents are on, of codes that no encoder made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Every latent as often as any other: hardly a row of weights is shared by two vectors.
    Uniform,
    /// The n-th most frequent latent 1/n as often as the first, as features of language are: rows are shared.
    Zipf,
}

/// `k` latents of each of `tokens` vectors, with activations between 0.5 and 1.5.
#[expect(clippy::missing_panics_doc, reason = "the codes keep the rules of their type")]
pub fn codes(shape: &Shape, tokens: usize, draw: Draw) -> SparseCodes {
    let latents = shape.latents as u64;
    let rows: Vec<Vec<(FeatureId, f32)>> = (0..tokens as u64)
        .into_par_iter()
        .map(|row| {
            let number = |index: u64| unit(seeds::CODES, (row << 32) + index);
            let mut chosen = BTreeSet::new();
            let mut index = 0;
            while chosen.len() < shape.k {
                let rank = match draw {
                    Draw::Uniform => (f64::from(number(index)) * latents as f64) as u64,
                    // The inverse of the distribution function ln(1 + rank) / ln(1 + latents).
                    Draw::Zipf => ((1.0 + latents as f64).powf(f64::from(number(index))) - 1.0) as u64,
                };
                // Frequent latents do not lie side by side: a prime that divides no table's width.
                chosen.insert((rank.min(latents - 1) * 7_919 % latents) as u32);
                index += 1;
            }
            chosen
                .into_iter()
                .zip(0u64..)
                .map(|(latent, at)| (FeatureId(latent), 0.5 + number(at + (1 << 31))))
                .collect()
        })
        .collect();
    let mut codes = SparseCodes::with_capacity(shape.latents, tokens, tokens * shape.k);
    for row in rows {
        codes.push_row(row).expect("ascending latents and activations above 0");
    }
    codes
}

/// The number `index` of a seed, from 0 inclusive to 1 exclusive, of 24 bits.
#[inline]
pub fn unit(seed: u64, index: u64) -> f32 {
    let mut bits = (seed << 48).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SHAPES;

    #[test]
    fn parts_are_those_of_the_whole() {
        let whole = uniform(3 * BLOCK, 1.0, 9);
        let mut part = vec![0.0f32; BLOCK];
        fill(WeightDtype::F32, 1.0, 9, 2, bytemuck::cast_slice_mut(&mut part));
        assert_eq!(part, whole[2 * BLOCK..]);
        assert!(whole.iter().all(|number| (-1.0..1.0).contains(number)));
        let mean = whole.iter().map(|number| f64::from(*number)).sum::<f64>() / whole.len() as f64;
        assert!(mean.abs() < 0.01, "{mean}");
    }

    #[test]
    fn zipf_shares_rows() {
        let shape = &SHAPES[1];
        let distinct = |draw| {
            let codes = codes(shape, 64, draw);
            assert_eq!(codes.n_codes(), 64 * shape.k);
            codes.latents().iter().collect::<BTreeSet<_>>().len()
        };
        let (uniform, zipf) = (distinct(Draw::Uniform), distinct(Draw::Zipf));
        assert!(uniform > 1900 && zipf < uniform * 2 / 3, "{uniform} {zipf}");
    }
}
