//! Encoding: product, bias, ReLU and selection in one pass over the latents; `[tokens, latents]` never exists.
//!
//! Rows of `x` are taken in blocks. For each block, workers draw shares of the latents from a queue, multiply them by the
//! whole block, and keep what may be selected ([`candidates`]); then their candidates are merged. So each weight is read
//! from memory once per block, whatever the number of threads. A pre-activation is summed in one order that
//! depends on neither the share nor the worker, and the selection is of a total order, so threads change no bit.
//!
//! Blocks of more than [`FEW`] rows go through [`tiles`], which is bound by arithmetic, the others through [`dots`], which
//! is bound by memory.

mod candidates;
mod dots;
pub(super) mod tiles;

use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;
use sae_types::SparseCodes;

use self::candidates::{Candidates, Limit};
use super::lines::Lines;
use super::simd::{Bf16, F16, F32, Simd};
use super::{Encoder, Par, Precision};
use crate::{SaeError, WeightDtype};

/// Rows of a block. More would read weights less often, but the block and its running selections leave the cache.
pub(super) const BLOCK: usize = 256;
/// Up to so many rows are bound by reading the weights.
const FEW: usize = 8;

/// A block of vectors, and per worker twice what is selected from a block.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `x - b_dec` of the block, as [`tiles`] or [`dots`] read it.
    block: Lines,
    workers: Vec<Worker>,
    candidates: Vec<Candidates>,
    /// What was selected from the blocks before, of a selection over the whole batch.
    batch: candidates::Batch,
}

#[derive(Debug, Default)]
struct Worker {
    /// Weights of a tile in the form they are multiplied in.
    tile: Lines,
    /// Sums of a tile and the block.
    sums: Lines,
}

/// What all workers read of a block.
#[derive(Clone, Copy)]
struct Block<'a> {
    encoder: &'a Encoder<'a>,
    /// Centred vectors, arranged by [`tiles::arrange`] or row-major.
    x: &'a [f32],
    rows: usize,
}

pub(super) fn encode<S: Simd>(
    simd: S,
    par: Par,
    precision: Precision,
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
    out: &mut SparseCodes,
) -> Result<(), SaeError> {
    let num_latents = encoder.bias.len();
    let n_workers = par.workers();
    if scratch.workers.len() < n_workers {
        scratch.workers.resize_with(n_workers, Worker::default);
        scratch.candidates.resize_with(n_workers, Candidates::default);
    }
    let Scratch { block, workers, candidates, batch } = scratch;
    let (workers, candidates) = (&mut workers[..n_workers], &mut candidates[..n_workers]);
    let limit = Limit::new(encoder.selection, x.nrows());
    batch.clear();
    out.reset(num_latents);
    let rounded = precision == Precision::Bf16 && encoder.weight.dtype() == WeightDtype::Bf16;
    // Shares of whole tiles, several per worker so that none waits long for the last.
    let tile = S::TILE.1;
    let share = (num_latents / (n_workers * 16)).next_multiple_of(tile).clamp(tile, 64 * tile);
    for (number, x) in x.axis_chunks_iter(Axis(0), BLOCK).enumerate() {
        let rows = x.nrows();
        let few = rows <= FEW;
        for candidates in &mut *candidates {
            candidates.start(limit, rows, batch.floor());
        }
        let centred = Centred { x, bias: encoder.decoder_bias, rounded };
        let x = if few { dots::arrange(centred, block) } else { tiles::arrange::<S>(par, centred, block) };
        let block = Block { encoder, x, rows };
        let next = AtomicUsize::new(0);
        let drain = |(worker, candidates): (&mut Worker, &mut Candidates)| {
            loop {
                let start = next.fetch_add(share, Ordering::Relaxed);
                if start >= num_latents {
                    break;
                }
                let latents = start..(start + share).min(num_latents);
                match (few, encoder.weight.dtype()) {
                    (true, WeightDtype::F32) => dots::run::<S, F32>(simd, block, latents, candidates),
                    (true, WeightDtype::F16) => dots::run::<S, F16>(simd, block, latents, candidates),
                    (true, WeightDtype::Bf16) => dots::run::<S, Bf16>(simd, block, latents, candidates),
                    (false, dtype) => tiles::run(simd, block, dtype, rounded, latents, worker, candidates),
                }
            }
        };
        match par {
            Par::Serial => workers.iter_mut().zip(&mut *candidates).for_each(drain),
            Par::Rayon => {
                workers.par_iter_mut().zip(&mut *candidates).with_max_len(1).for_each(drain);
            }
        }
        let first_row = number * BLOCK;
        if let Some(bad) =
            candidates.iter().filter_map(Candidates::bad).min_by_key(|bad| (bad.row, bad.latent))
        {
            let row = first_row + bad.row;
            return Err(SaeError::PreActivationNotFinite { row, latent: bad.latent, value: bad.value });
        }
        candidates::merge(par, limit, candidates, first_row, batch, out);
    }
    batch.finish(limit, x.nrows(), out);
    Ok(())
}

/// `x - b_dec`, rounded to bf16 if asked.
#[derive(Clone, Copy)]
struct Centred<'a> {
    x: ArrayView2<'a, f32>,
    bias: &'a [f32],
    rounded: bool,
}

impl Centred<'_> {
    /// Calls `put(column, number)` for the numbers of row `row`.
    #[inline(always)]
    fn row(self, row: usize, mut put: impl FnMut(usize, f32)) {
        let numbers = self.x.row(row).into_iter().zip(self.bias).map(|(x, bias)| x - bias);
        if self.rounded {
            numbers.enumerate().for_each(|(column, number)| put(column, bf16::from_f32(number).to_f32()));
        } else {
            numbers.enumerate().for_each(|(column, number)| put(column, number));
        }
    }
}
