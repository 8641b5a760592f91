//! Decoding: sums of the few rows of `W_dec` that are on.
//!
//! Each row of codes gathers its rows of `W_dec`, a few at a time and the next few asked for meanwhile, at the speed of the
//! memory. Rows of `W_dec` that neighbouring rows of codes share are found in the cache. Going through a batch in the order
//! of the latents instead, or by slices of columns that fit the cache, reads less from memory and is slower nonetheless
//! (by a factor of 1.2 to 1.6, docs/benchmarks): what is saved on weights is spent on sums that leave the first-level cache.

use ndarray::{ArrayView1, ArrayViewMut2};
use rayon::prelude::*;
use sae_types::{CodeRow, SparseCodes};

use super::rows::Sum;
use super::simd::Simd;
use super::{Decoder, Par};

/// Columns of a task, where there are fewer rows than keep the workers busy.
const COLUMNS: usize = 512;
/// Bytes of `W_dec` that one thread has gathered before another has woken up.
const FEW_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// What is decoded into where the output is not row-major.
    dense: Vec<f32>,
}

/// Decodes, of each row, the latents below `prefix`.
pub(super) fn decode<S: Simd>(
    simd: S,
    par: Par,
    decoder: &Decoder<'_>,
    codes: &SparseCodes,
    prefix: usize,
    scratch: &mut Scratch,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let d_in = decoder.bias.len();
    let bytes = codes.n_codes().saturating_mul(decoder.weight.row_size());
    let par = if bytes < FEW_BYTES { Par::Serial } else { par };
    let columns = |row: usize, first: usize, out: &mut [f32]| {
        let CodeRow { latents, values } = codes.row(row);
        let end = latents.partition_point(|&latent| (latent as usize) < prefix);
        out.copy_from_slice(&decoder.bias[first..][..out.len()]);
        let (indices, factors) = (&latents[..end], &values[..end]);
        Sum { matrix: decoder.weight, indices, factors, first, out }.add(simd);
    };
    let run = |out: &mut [f32]| match par {
        Par::Serial => out.chunks_mut(d_in).enumerate().for_each(|(row, out)| columns(row, 0, out)),
        Par::Rayon if codes.n_rows() >= 4 * par.workers() => {
            out.par_chunks_mut(d_in).enumerate().for_each(|(row, out)| columns(row, 0, out));
        }
        Par::Rayon => {
            for (row, out) in out.chunks_mut(d_in).enumerate() {
                let slices = out.par_chunks_mut(COLUMNS).enumerate();
                slices.for_each(|(slice, out)| columns(row, slice * COLUMNS, out));
            }
        }
    };
    if let Some(out) = out.as_slice_mut() {
        return run(out);
    }
    scratch.dense.resize(out.len(), 0.0);
    run(&mut scratch.dense);
    let rows = out.rows_mut().into_iter().zip(scratch.dense.chunks(d_in));
    rows.for_each(|(mut out, dense)| out.assign(&ArrayView1::from(dense)));
}
