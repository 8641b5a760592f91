//! Tiles of latents against blocks of tokens, left to the compiler to vectorise.
//!
//! A block of `TOKENS` tokens meets one tile of `LATENTS` latents at a time: the tile is converted to f32 once (or
//! borrowed, where it is stored so), multiplied, and filtered by each token's running k-th value. So the `[tokens, latents]`
//! matrix never exists, and weights are never converted whole. Sums are f32 in `LANES` interleaved partial sums
//! that are combined in one fixed order.
//!
//! With at least one block per worker, workers take whole blocks; with fewer, each takes a share of the latents of
//! one block and their candidates are merged. Neither changes a bit of the result.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;
use sae_types::SparseCodes;

use super::{Code, Decoder, Encoder, Par, TopKRows};
use crate::SaeError;

/// Tokens that share one conversion of a tile.
const TOKENS: usize = 64;
/// Latents of a tile; 16 x 4096 f32 stay in a 512 KiB cache beside the block.
const LATENTS: usize = 16;
/// Interleaved partial sums of a dot product: two SSE registers, one AVX register.
const LANES: usize = 8;
/// Rows of codes that one task decodes.
const DECODE_ROWS: usize = 16;

/// Buffers of [`encode`](super::encode), one set per worker, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    workers: Vec<Worker>,
}

impl Scratch {
    /// No buffers yet.
    pub fn new() -> Self {
        Self::default()
    }
}

#[derive(Debug, Default)]
struct Worker {
    /// `x - b_dec` of the block, `[tokens, d_in]`.
    centred: Vec<f32>,
    /// Converted weights of the tile, `[latents, d_in]`.
    tile: Vec<f32>,
    /// Pre-activations of one token against the tile.
    pre: Vec<[f32; LATENTS]>,
    /// Per token of the block.
    running: Vec<Running>,
    /// The first pre-activation that is not finite: row, latent, value.
    bad: Option<(usize, usize, f32)>,
}

/// The best codes of one token so far.
#[derive(Debug, Default)]
struct Running {
    codes: Vec<Code>,
    /// Latents come in ascending order, so one that only equals the k-th value has lost its tie.
    threshold: f32,
}

impl Running {
    fn clear(&mut self, k: usize) {
        self.codes.clear();
        self.codes.reserve(2 * k + LATENTS);
        self.threshold = 0.0;
    }

    fn prune(&mut self, k: usize) {
        if self.codes.len() > k {
            let (_, kth, _) = self.codes.select_nth_unstable_by(k - 1, Code::rank);
            self.threshold = kth.value;
            self.codes.truncate(k);
        }
    }
}

pub(super) fn encode(
    par: Par,
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
    out: &mut TopKRows,
) -> Result<(), SaeError> {
    let k = encoder.k;
    let num_latents = encoder.bias.len();
    out.reset(x.nrows(), k);
    let n_workers = par.workers();
    if scratch.workers.len() < n_workers {
        scratch.workers.resize_with(n_workers, Worker::default);
    }
    let workers = &mut scratch.workers[..n_workers];
    for worker in &mut *workers {
        worker.bad = None;
    }
    let n_blocks = x.nrows().div_ceil(TOKENS);
    let blocks = x
        .axis_chunks_iter(Axis(0), TOKENS)
        .zip(out.codes.chunks_mut(TOKENS * k).zip(out.counts.chunks_mut(TOKENS)))
        .enumerate();
    if n_workers == 1 || n_blocks >= n_workers {
        let queue = Mutex::new(blocks);
        let drain = |worker: &mut Worker| {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((block, (x, (codes, counts)))) = next else { break };
                worker.run(encoder, x, block * TOKENS, 0..num_latents);
                for (token, count) in counts.iter_mut().enumerate() {
                    *count = worker.running[token].finish(k, &mut codes[token * k..][..k]);
                }
            }
        };
        match par {
            Par::Serial => workers.iter_mut().for_each(drain),
            Par::Rayon => workers.par_iter_mut().for_each(drain),
        }
    } else {
        let share = num_latents.div_ceil(n_workers).next_multiple_of(LATENTS);
        for (block, (x, (codes, counts))) in blocks {
            workers.par_iter_mut().enumerate().for_each(|(index, worker)| {
                let start = (index * share).min(num_latents);
                worker.run(encoder, x, block * TOKENS, start..(start + share).min(num_latents));
            });
            let Some((first, others)) = workers.split_first_mut() else { continue };
            for (token, count) in counts.iter_mut().enumerate() {
                let merged = &mut first.running[token];
                for other in &*others {
                    merged.codes.extend_from_slice(&other.running[token].codes);
                }
                *count = merged.finish(k, &mut codes[token * k..][..k]);
            }
        }
    }
    let bad = workers.iter().filter_map(|worker| worker.bad).min_by_key(|&(row, latent, _)| (row, latent));
    match bad {
        Some((row, latent, value)) => Err(SaeError::PreActivationNotFinite { row, latent, value }),
        None => Ok(()),
    }
}

impl Running {
    /// Writes the k best, ascending by latent, and says how many there are.
    fn finish(&mut self, k: usize, out: &mut [Code]) -> usize {
        self.prune(k);
        self.codes.sort_unstable_by_key(|code| code.latent);
        out[..self.codes.len()].copy_from_slice(&self.codes);
        self.codes.len()
    }
}

impl Worker {
    /// Leaves the best codes among `latents` for the tokens of `x`, the first of which is row `first_row`.
    fn run(
        &mut self,
        encoder: &Encoder<'_>,
        x: ArrayView2<'_, f32>,
        first_row: usize,
        latents: Range<usize>,
    ) {
        let (tokens, d_in) = x.dim();
        self.centred.clear();
        for row in x.rows() {
            self.centred.extend(row.iter().zip(encoder.decoder_bias).map(|(x, bias)| x - bias));
        }
        self.pre.resize(tokens, [0.0; LATENTS]);
        if self.running.len() < tokens {
            self.running.resize_with(tokens, Running::default);
        }
        for running in &mut self.running[..tokens] {
            running.clear(encoder.k);
        }
        for start in latents.clone().step_by(LATENTS) {
            let end = (start + LATENTS).min(latents.end);
            let tile = encoder.weight.rows_f32(start..end, &mut self.tile);
            multiply(&self.centred, tile, d_in, end - start, &mut self.pre);
            let bias = &encoder.bias[start..end];
            for (token, pre) in self.pre.iter_mut().enumerate() {
                let running = &mut self.running[token];
                for (pre, bias) in pre.iter_mut().zip(bias) {
                    *pre += bias;
                }
                let pre = &pre[..bias.len()];
                // NaN is not below anything, so it goes the slow way with the candidates.
                #[expect(clippy::needless_bitwise_bool, reason = "no branch per latent: vectorises")]
                let below = pre.iter().fold(true, |below, &pre| below & (pre <= running.threshold));
                if below {
                    continue;
                }
                for (offset, &value) in pre.iter().enumerate() {
                    let latent = start + offset;
                    if value > running.threshold && value < f32::INFINITY {
                        running.codes.push(Code { value, latent: latent as u32 });
                    } else if value.is_nan() || value == f32::INFINITY {
                        let found = (first_row + token, latent);
                        if self.bad.is_none_or(|(row, latent, _)| found < (row, latent)) {
                            self.bad = Some((found.0, found.1, value));
                        }
                    }
                }
                if running.codes.len() >= 2 * encoder.k {
                    running.prune(encoder.k);
                }
            }
        }
    }
}

/// `out[t][l] = x[t] · w[l]` for all tokens of `x` `[tokens, d_in]` and the `latents` rows of `w`.
fn multiply(x: &[f32], w: &[f32], d_in: usize, latents: usize, out: &mut [[f32; LATENTS]]) {
    let token = |t: usize| &x[t * d_in..][..d_in];
    let latent = |l: usize| &w[l * d_in..][..d_in];
    for t in (0..out.len()).step_by(2) {
        // At an odd end the last row stands in for its missing neighbour; the result is written twice.
        let t1 = (t + 1).min(out.len() - 1);
        for l in (0..latents).step_by(2) {
            let l1 = (l + 1).min(latents - 1);
            let [a, b, c, d] = dots(token(t), token(t1), latent(l), latent(l1));
            out[t][l] = a;
            out[t][l1] = b;
            out[t1][l] = c;
            out[t1][l1] = d;
        }
    }
}

/// `[x0·w0, x0·w1, x1·w0, x1·w1]`, each summed as if alone.
fn dots(x0: &[f32], x1: &[f32], w0: &[f32], w1: &[f32]) -> [f32; 4] {
    let mut sums = [[0.0_f32; LANES]; 4];
    let (x0, x0_tail) = x0.as_chunks::<LANES>();
    let (x1, x1_tail) = x1.as_chunks::<LANES>();
    let (w0, w0_tail) = w0.as_chunks::<LANES>();
    let (w1, w1_tail) = w1.as_chunks::<LANES>();
    for (((x0, x1), w0), w1) in x0.iter().zip(x1).zip(w0).zip(w1) {
        for lane in 0..LANES {
            sums[0][lane] += x0[lane] * w0[lane];
            sums[1][lane] += x0[lane] * w1[lane];
            sums[2][lane] += x1[lane] * w0[lane];
            sums[3][lane] += x1[lane] * w1[lane];
        }
    }
    let tail = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
    [
        combine(sums[0]) + tail(x0_tail, w0_tail),
        combine(sums[1]) + tail(x0_tail, w1_tail),
        combine(sums[2]) + tail(x1_tail, w0_tail),
        combine(sums[3]) + tail(x1_tail, w1_tail),
    ]
}

/// The partial sums in one fixed, pairwise order.
fn combine(sums: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

pub(super) fn decode(par: Par, decoder: &Decoder<'_>, codes: &SparseCodes, mut out: ArrayViewMut2<'_, f32>) {
    let run = |(chunk, mut out): (usize, ArrayViewMut2<'_, f32>)| {
        let mut scratch = Vec::new();
        let mut sum = vec![0.0_f32; decoder.bias.len()];
        for (offset, out) in out.rows_mut().into_iter().enumerate() {
            sum.copy_from_slice(decoder.bias);
            for (feature, value) in codes.row(chunk * DECODE_ROWS + offset).iter() {
                let row = decoder.weight.rows_f32(feature.index()..feature.index() + 1, &mut scratch);
                for (sum, weight) in sum.iter_mut().zip(row) {
                    *sum += value * weight;
                }
            }
            for (out, sum) in out.into_iter().zip(&sum) {
                *out = *sum;
            }
        }
    };
    let chunks = out.axis_chunks_iter_mut(Axis(0), DECODE_ROWS).enumerate();
    match par {
        Par::Serial => chunks.for_each(run),
        Par::Rayon => chunks.par_bridge().for_each(run),
    }
}
