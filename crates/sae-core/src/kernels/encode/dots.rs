//! Few rows: dot products along the vectors, bound by reading the weights once from memory.

use std::ops::Range;

use super::candidates::Candidates;
use super::{Block, Centred};
use crate::kernels::lines::Lines;
use crate::kernels::rows::{SplitLanes, dots};
use crate::kernels::simd::{Simd, Stored, Work};

/// Arranges the vectors row-major in `block`.
pub(super) fn arrange<'b>(centred: Centred<'_>, block: &'b mut Lines) -> &'b [f32] {
    let (rows, d_in) = centred.x.dim();
    let x = block.numbers(rows * d_in);
    for (row, out) in x.chunks_mut(d_in).enumerate() {
        centred.row(row, |column, number| out[column] = number);
    }
    x
}

/// Offers the pre-activations of `latents` to the candidates.
pub(super) fn run<S: Simd, W: Stored>(
    simd: S,
    block: Block<'_>,
    latents: Range<usize>,
    candidates: &mut Candidates,
) {
    // As many sums as hide the latency of an addition, as few streams of weights as that allows.
    match block.rows {
        1 => simd.run(Dots::<W, 1, 4>::new(block, latents, candidates)),
        2 => simd.run(Dots::<W, 2, 4>::new(block, latents, candidates)),
        3 => simd.run(Dots::<W, 3, 4>::new(block, latents, candidates)),
        4 => simd.run(Dots::<W, 4, 4>::new(block, latents, candidates)),
        5 => simd.run(Dots::<W, 5, 2>::new(block, latents, candidates)),
        6 => simd.run(Dots::<W, 6, 2>::new(block, latents, candidates)),
        7 => simd.run(Dots::<W, 7, 2>::new(block, latents, candidates)),
        8 => simd.run(Dots::<W, 8, 2>::new(block, latents, candidates)),
        rows => unreachable!("{rows} are not few rows"),
    }
}

struct Dots<'a, W, const ROWS: usize, const LATENTS: usize> {
    block: Block<'a>,
    latents: Range<usize>,
    candidates: &'a mut Candidates,
    stored: std::marker::PhantomData<W>,
}

impl<'a, W: Stored, const ROWS: usize, const LATENTS: usize> Dots<'a, W, ROWS, LATENTS> {
    fn new(block: Block<'a>, latents: Range<usize>, candidates: &'a mut Candidates) -> Self {
        Self { block, latents, candidates, stored: std::marker::PhantomData }
    }

    #[inline(always)]
    fn offer(&mut self, row: usize, latent: usize, dot: f32) {
        let encoder = self.block.encoder;
        let pre = dot + encoder.bias[latent];
        let floor = self.candidates.floor(row).max(encoder.floor(latent));
        if pre > floor || pre.is_nan() {
            self.candidates.offer(row, latent, pre);
        }
    }
}

impl<S: Simd, W: Stored, const ROWS: usize, const LATENTS: usize> Work<S> for Dots<'_, W, ROWS, LATENTS> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, simd: S) {
        let Block { encoder, x, .. } = self.block;
        let weight = encoder.weight;
        let [_, d_in] = weight.shape();
        let x = std::array::from_fn(|row| SplitLanes::<S>::new(&x[row * d_in..][..d_in]));
        let mut latent = self.latents.start;
        while latent + LATENTS <= self.latents.end {
            let rows = std::array::from_fn(|offset| weight.row(latent + offset));
            // The same place in the rows after these, which come next.
            let next = rows.map(|row: &[u8]| row.as_ptr().wrapping_add(LATENTS * row.len()));
            let dots = dots::<S, W, ROWS, LATENTS>(simd, &x, rows, next);
            for (offset, dots) in dots.iter().enumerate() {
                for (row, &dot) in dots.iter().enumerate() {
                    self.offer(row, latent + offset, dot);
                }
            }
            latent += LATENTS;
        }
        for latent in latent..self.latents.end {
            let row = weight.row(latent);
            let [dots] = dots::<S, W, ROWS, 1>(simd, &x, [row], [row.as_ptr()]);
            for (row, &dot) in dots.iter().enumerate() {
                self.offer(row, latent, dot);
            }
        }
    }
}
