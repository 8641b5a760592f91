//! Gradients with respect to codes and parameters, of the latents that are on and no others.

use std::ops::Range;

use ndarray::ArrayView2;
use rayon::prelude::*;
use sae_types::SparseCodes;

use super::by_latent::ByLatent;
use super::rows::{RowDots, Sum};
use super::simd::Simd;
use super::{Decoder, Encoder, Par};
use crate::Weights;

/// Columns of a task of the decoder's bias.
const COLUMNS: usize = 256;

/// Gradients of a loss, sparse: what has no row here has a gradient of zero.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// The latents that are on in some row, ascending.
    pub latents: Vec<u32>,
    /// With respect to their rows of `W_enc`, `[latents, d_in]`.
    pub encoder_weight: Vec<f32>,
    /// With respect to their `b_enc`, `[latents]`.
    pub encoder_bias: Vec<f32>,
    /// With respect to their rows of `W_dec`, `[latents, d_in]`.
    pub decoder_weight: Vec<f32>,
    /// With respect to `b_dec`, which encoding subtracts and decoding adds, `[d_in]`.
    pub decoder_bias: Vec<f32>,
    /// With respect to the activation of each code, in the order of [`SparseCodes::values`].
    pub codes: Vec<f32>,
}

impl Gradients {
    /// None yet; the buffers grow with the first call that writes here and are kept.
    pub fn new() -> Self {
        Self::default()
    }
}

#[derive(Debug, Default)]
pub(super) struct Scratch {
    by_latent: ByLatent,
    /// Activations and their gradients, by latent.
    values: Vec<f32>,
    d_values: Vec<f32>,
    /// `x - b_dec`.
    centred: Vec<f32>,
    /// The gradient of the output, if it was not row-major.
    d_out: Vec<f32>,
    /// What is subtracted for `b_dec`, per latent.
    negative: Vec<f32>,
    ones: Vec<f32>,
    rows: Vec<u32>,
}

/// Operands of a call.
pub(super) struct Operands<'a> {
    pub(super) encoder: &'a Encoder<'a>,
    pub(super) decoder: &'a Decoder<'a>,
    pub(super) x: ArrayView2<'a, f32>,
    pub(super) codes: &'a SparseCodes,
    pub(super) d_out: ArrayView2<'a, f32>,
}

impl Operands<'_> {
    #[track_caller]
    pub(super) fn check(&self) {
        let Self { encoder, decoder, x, codes, d_out } = self;
        assert_eq!(encoder.weight.shape(), decoder.weight.shape(), "shape of W_enc against W_dec");
        encoder.check(*x);
        decoder.check(codes, d_out.dim());
        assert_eq!(x.dim(), d_out.dim(), "shape of x against the gradient of the output");
    }
}

pub(super) fn gradients<S: Simd>(
    simd: S,
    par: Par,
    operands: &Operands<'_>,
    scratch: &mut Scratch,
    out: &mut Gradients,
) {
    let Operands { encoder, decoder, x, codes, d_out } = *operands;
    let (rows, d_in) = x.dim();
    scratch.by_latent.sort(codes, 0..rows);
    let by_latent = &scratch.by_latent;

    scratch.centred.clear();
    for row in x.rows() {
        scratch.centred.extend(row.iter().zip(encoder.decoder_bias).map(|(x, bias)| x - bias));
    }
    let d_out = if let Some(d_out) = d_out.to_slice() {
        d_out
    } else {
        scratch.d_out.clear();
        scratch.d_out.extend(d_out.iter());
        &scratch.d_out
    };

    // With respect to the codes: d_out · W_dec.
    out.codes.resize(codes.n_codes(), 0.0);
    let dots = CodeDots { simd, codes, matrix: decoder.weight, x: d_out, d_in };
    match par {
        Par::Serial => dots.serial(0..rows, &mut out.codes),
        Par::Rayon => dots.parallel(0..rows, &mut out.codes),
    }

    // With respect to rows of weights: sums of vectors over the rows a latent is on in.
    scratch.values.clear();
    scratch.values.extend(by_latent.codes.iter().map(|&code| codes.values()[code]));
    scratch.d_values.clear();
    scratch.d_values.extend(by_latent.codes.iter().map(|&code| out.codes[code]));
    out.latents.clone_from(&by_latent.latents);
    let weights = |vectors: &[f32], factors: &[f32], out: &mut Vec<f32>| {
        out.resize(by_latent.latents.len() * d_in, 0.0);
        let matrix = Weights::from_f32(rows, d_in, vectors);
        let row = |(index, out): (usize, &mut [f32])| {
            let range = by_latent.range(index);
            out.fill(0.0);
            let (indices, factors) = (&by_latent.rows[range.clone()], &factors[range]);
            Sum { matrix, indices, factors, first: 0, out }.add(simd);
        };
        match par {
            Par::Serial => out.chunks_mut(d_in).enumerate().for_each(row),
            Par::Rayon => out.par_chunks_mut(d_in).enumerate().for_each(row),
        }
    };
    weights(d_out, &scratch.values, &mut out.decoder_weight);
    weights(&scratch.centred, &scratch.d_values, &mut out.encoder_weight);

    out.encoder_bias.clear();
    let biases = (0..by_latent.latents.len())
        .map(|index| scratch.d_values[by_latent.range(index)].iter().sum::<f32>());
    out.encoder_bias.extend(biases);

    // With respect to b_dec: it is added to every row, and each pre-activation has -W_enc of it.
    scratch.rows.clear();
    scratch.rows.extend(0..rows as u32);
    scratch.ones.resize(rows, 1.0);
    scratch.negative.clear();
    scratch.negative.extend(out.encoder_bias.iter().map(|bias| -bias));
    out.decoder_bias.resize(d_in, 0.0);
    let column = |(slice, out): (usize, &mut [f32])| {
        let first = slice * COLUMNS;
        out.fill(0.0);
        let matrix = Weights::from_f32(rows, d_in, d_out);
        Sum { matrix, indices: &scratch.rows, factors: &scratch.ones, first, out }.add(simd);
        let (indices, factors) = (&by_latent.latents[..], &scratch.negative[..]);
        Sum { matrix: encoder.weight, indices, factors, first, out }.add(simd);
    };
    match par {
        Par::Serial => out.decoder_bias.chunks_mut(COLUMNS).enumerate().for_each(column),
        Par::Rayon => out.decoder_bias.par_chunks_mut(COLUMNS).enumerate().for_each(column),
    }
}

/// Dot products of each row of `x` `[n, d_in]` with the rows of `matrix` that its codes name.
#[derive(Clone, Copy)]
struct CodeDots<'a, S> {
    simd: S,
    codes: &'a SparseCodes,
    matrix: Weights<'a>,
    x: &'a [f32],
    d_in: usize,
}

impl<S: Simd> CodeDots<'_, S> {
    /// Fills `out`, which is as long as there are codes in `rows`.
    fn serial(self, rows: Range<usize>, mut out: &mut [f32]) {
        for row in rows {
            let indices = self.codes.row(row).latents;
            let (these, others) = out.split_at_mut(indices.len());
            out = others;
            let x = &self.x[row * self.d_in..][..self.d_in];
            RowDots { matrix: self.matrix, x, indices, out: these }.run(self.simd);
        }
    }

    fn parallel(self, rows: Range<usize>, out: &mut [f32]) {
        if rows.len() <= 1 {
            return self.serial(rows, out);
        }
        let middle = rows.start + rows.len() / 2;
        let offsets = self.codes.offsets();
        let (first, second) = out.split_at_mut(offsets[middle] - offsets[rows.start]);
        rayon::join(|| self.parallel(rows.start..middle, first), || self.parallel(middle..rows.end, second));
    }
}
