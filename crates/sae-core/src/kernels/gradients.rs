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

/// Sums of gradients over any number of calls, dense: a row for every latent, whether it was on or not.
///
/// What a call finds for a latent that nothing has touched overwrites what stood there, so that neither memory fresh from the
/// system nor a cleared sum is ever filled with zeros.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GradientSums {
    /// With respect to `W_enc`, `[num_latents, d_in]`; the rows of latents that nothing touched hold anything.
    pub encoder_weight: Vec<f32>,
    /// With respect to `b_enc`, `[num_latents]`; as above.
    pub encoder_bias: Vec<f32>,
    /// With respect to `W_dec`, `[num_latents, d_in]`; as above.
    pub decoder_weight: Vec<f32>,
    /// `[num_latents]`: whether a latent was on in some row since the last [`GradientSums::clear`].
    pub touched: Vec<bool>,
}

impl GradientSums {
    /// Nothing summed yet.
    pub fn new(num_latents: usize, d_in: usize) -> Self {
        Self {
            encoder_weight: vec![0.0; num_latents * d_in],
            encoder_bias: vec![0.0; num_latents],
            decoder_weight: vec![0.0; num_latents * d_in],
            touched: vec![false; num_latents],
        }
    }

    /// Forgets the sums.
    pub fn clear(&mut self) {
        self.touched.fill(false);
    }

    /// Adds gradients of some latents, as the reference gives them.
    pub(super) fn add(&mut self, gradients: &Gradients) {
        let d_in = gradients.decoder_bias.len();
        for (index, &latent) in gradients.latents.iter().enumerate() {
            let latent = latent as usize;
            let fresh = !std::mem::replace(&mut self.touched[latent], true);
            let row = |sums: &mut [f32], numbers: &[f32], width: usize| {
                let sums = &mut sums[latent * width..][..width];
                for (sum, number) in sums.iter_mut().zip(&numbers[index * width..]) {
                    *sum = if fresh { *number } else { *sum + number };
                }
            };
            row(&mut self.encoder_weight, &gradients.encoder_weight, d_in);
            row(&mut self.encoder_bias, &gradients.encoder_bias, 1);
            row(&mut self.decoder_weight, &gradients.decoder_weight, d_in);
        }
    }

    #[track_caller]
    pub(super) fn check(&self, encoder: &Encoder<'_>) {
        let weights = encoder.weight.len();
        assert_eq!(self.encoder_weight.len(), weights, "sums for W_enc against W_enc");
        assert_eq!(self.decoder_weight.len(), weights, "sums for W_dec against W_dec");
        assert_eq!(self.encoder_bias.len(), encoder.bias.len(), "sums for b_enc against b_enc");
        assert_eq!(self.touched.len(), encoder.bias.len(), "marks of latents against b_enc");
    }
}

#[derive(Debug, Default)]
pub(super) struct Scratch {
    by_latent: ByLatent,
    /// Gradients of the codes, of a call that does not give them to the caller.
    codes: Vec<f32>,
    /// Per latent where it stands in `by_latent`, or nowhere.
    places: Vec<u32>,
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
    let encoder = operands.encoder;
    let (rows, d_in) = operands.x.dim();
    scratch.prepare(simd, par, operands, &mut out.codes);
    let by_latent = &scratch.by_latent;
    let d_out = operands.d_out.to_slice().unwrap_or(&scratch.d_out);

    // With respect to rows of weights: sums of vectors over the rows a latent is on in.
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

/// Adds to `out` what [`gradients`] computes, without the decoder's bias.
pub(super) fn accumulate<S: Simd>(
    simd: S,
    par: Par,
    operands: &Operands<'_>,
    scratch: &mut Scratch,
    out: &mut GradientSums,
) {
    /// Of a latent that no code of this call names.
    const NOWHERE: u32 = u32::MAX;
    let (rows, d_in) = operands.x.dim();
    let mut codes = std::mem::take(&mut scratch.codes);
    scratch.prepare(simd, par, operands, &mut codes);
    scratch.codes = codes;
    let by_latent = &scratch.by_latent;
    let d_out = operands.d_out.to_slice().unwrap_or(&scratch.d_out);
    scratch.places.clear();
    scratch.places.resize(out.touched.len(), NOWHERE);
    for (place, &latent) in by_latent.latents.iter().enumerate() {
        scratch.places[latent as usize] = place as u32;
    }

    let GradientSums { encoder_weight, encoder_bias, decoder_weight, touched } = out;
    let (places, was_touched) = (&scratch.places, &*touched);
    let weights = |vectors: &[f32], factors: &[f32], out: &mut [f32]| {
        let matrix = Weights::from_f32(rows, d_in, vectors);
        let row = |(latent, out): (usize, &mut [f32])| {
            if places[latent] == NOWHERE {
                return;
            }
            let range = by_latent.range(places[latent] as usize);
            if !was_touched[latent] {
                out.fill(0.0);
            }
            let (indices, factors) = (&by_latent.rows[range.clone()], &factors[range]);
            Sum { matrix, indices, factors, first: 0, out }.add(simd);
        };
        match par {
            Par::Serial => out.chunks_mut(d_in).enumerate().for_each(row),
            Par::Rayon => out.par_chunks_mut(d_in).enumerate().with_min_len(16).for_each(row),
        }
    };
    weights(d_out, &scratch.values, decoder_weight);
    weights(&scratch.centred, &scratch.d_values, encoder_weight);
    for (place, &latent) in by_latent.latents.iter().enumerate() {
        let latent = latent as usize;
        let sum = scratch.d_values[by_latent.range(place)].iter().sum::<f32>();
        encoder_bias[latent] = if touched[latent] { encoder_bias[latent] + sum } else { sum };
        touched[latent] = true;
    }
}

impl Scratch {
    /// Sorts the codes by latent, centres `x`, and computes the gradients of the codes, in their order into `d_codes` and by
    /// latent. Leaves the gradient of the output here if it is not row-major.
    fn prepare<S: Simd>(&mut self, simd: S, par: Par, operands: &Operands<'_>, d_codes: &mut Vec<f32>) {
        let Operands { encoder, decoder, x, codes, d_out } = *operands;
        let (rows, d_in) = x.dim();
        self.by_latent.sort(codes, 0..rows);
        self.centred.clear();
        for row in x.rows() {
            self.centred.extend(row.iter().zip(encoder.decoder_bias).map(|(x, bias)| x - bias));
        }
        let d_out = if let Some(d_out) = d_out.to_slice() {
            d_out
        } else {
            self.d_out.clear();
            self.d_out.extend(d_out.iter());
            &self.d_out
        };

        // With respect to the codes: d_out · W_dec.
        d_codes.resize(codes.n_codes(), 0.0);
        let dots = CodeDots { simd, codes, matrix: decoder.weight, x: d_out, d_in };
        match par {
            Par::Serial => dots.serial(0..rows, d_codes),
            Par::Rayon => dots.parallel(0..rows, d_codes),
        }
        self.values.clear();
        self.values.extend(self.by_latent.codes.iter().map(|&code| codes.values()[code]));
        self.d_values.clear();
        self.d_values.extend(self.by_latent.codes.iter().map(|&code| d_codes[code]));
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
