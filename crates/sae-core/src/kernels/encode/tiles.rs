//! Many rows: tiles of latents against panels of rows, bound by arithmetic.
//!
//! A panel holds as many rows as a few registers have lanes, one row per lane; a tile holds a few latents. Their products
//! are summed in registers, a weight broadcast to all lanes at a time, so that no sum across lanes is needed, and one
//! comparison tests a latent against the running k-th values of a register of rows.
//!
//! The vectors are cut into chunks of [`CHUNK`] numbers. The weights of a tile and chunk are copied (and converted) into a
//! buffer that stays in the first-level cache while all panels pass; rows of `W_enc` themselves lie a power of two
//! apart, where they would evict one another. Meanwhile the next tile is asked for, a cache line every few steps.
//!
//! Where the CPU multiplies pairs of bf16 (and precision and weights are bf16), an element is such a pair. Everything
//! else is the same.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::candidates::Candidates;
use super::{Block, Centred, Worker};
use crate::WeightDtype;
use crate::kernels::Par;
use crate::kernels::lines::Lines;
use crate::kernels::rows::SplitRow;
use crate::kernels::simd::{Bf16, F16, F32, Simd, Stored, Work};

/// Elements of a tile's row: 12 rows of 256 f32 take 12 KiB of a first-level cache of 32.
const CHUNK: usize = 256;
/// Elements between the rows of a tile: an odd number of cache lines, so that the rows lie in different sets.
const STRIDE: usize = CHUNK + 16;
/// Steps between two requests for weights of the next tile.
const STEPS: usize = 8;

/// What an element is, and how two of them are multiplied.
pub(in super::super) trait Element {
    /// Numbers of a vector in one element.
    const NUMBERS: usize;

    fn multiply_add<S: Simd>(simd: S, a: S::Register, b: S::Register, c: S::Register) -> S::Register;

    /// Fills `tile` with the elements of `row` that start at number `start`; what is beyond the row is 0.
    fn copy<S: Simd>(simd: S, row: &[u8], start: usize, tile: &mut [f32]);
}

/// One f32.
struct Single<W>(std::marker::PhantomData<W>);
/// Two bf16, in the bits of an f32.
struct Pair;

impl<W: Stored> Element for Single<W> {
    const NUMBERS: usize = 1;

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, a: S::Register, b: S::Register, c: S::Register) -> S::Register {
        simd.multiply_add(a, b, c)
    }

    #[inline(always)]
    fn copy<S: Simd>(simd: S, row: &[u8], start: usize, tile: &mut [f32]) {
        let size = W::DTYPE.size();
        let row = &row[start * size..];
        let row = SplitRow::<S, W>::new(&row[..row.len().min(CHUNK * size)]);
        let (tile, _) = tile.split_at_mut(tile.len() - tile.len() % S::LANES);
        let tile: &mut [S::Lanes] = bytemuck::cast_slice_mut(tile);
        for (lanes, bytes) in tile.iter_mut().zip(row.body.iter().chain(&row.tail)) {
            simd.store(W::load(simd, bytes), lanes);
        }
    }
}

impl Element for Pair {
    const NUMBERS: usize = 2;

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, a: S::Register, b: S::Register, c: S::Register) -> S::Register {
        simd.multiply_add_pairs(a, b, c)
    }

    #[inline(always)]
    fn copy<S: Simd>(_: S, row: &[u8], start: usize, tile: &mut [f32]) {
        let row = &row[start * 2..];
        let row = &row[..row.len().min(CHUNK * 4)];
        let tile: &mut [u8] = bytemuck::cast_slice_mut(tile);
        tile[..row.len()].copy_from_slice(row);
        // An odd row ends in half a pair.
        tile[row.len()..row.len().next_multiple_of(4)].fill(0);
    }
}

/// Whether `simd` multiplies the vectors and weights as pairs.
fn pairs<S: Simd>(rounded: bool) -> bool {
    S::PAIRS && rounded
}

/// Arranges the vectors `[panel][element][lane]` in `block`; lanes without a row hold 0.
pub(super) fn arrange<'b, S: Simd>(par: Par, centred: Centred<'_>, block: &'b mut Lines) -> &'b [f32] {
    let (rows, d_in) = centred.x.dim();
    let pairs = pairs::<S>(centred.rounded);
    let elements = if pairs { d_in.div_ceil(2) } else { d_in };
    let registers = rows.div_ceil(S::LANES);
    let panel_registers = S::TILE.0;
    let x = block.numbers(registers * elements * S::LANES);
    let fill = |(panel, out): (usize, &mut [f32])| {
        let lanes = out.len() / elements;
        let first = panel * panel_registers * S::LANES;
        for lane in 0..lanes {
            let row = first + lane;
            if row >= rows {
                out[lane..].iter_mut().step_by(lanes).for_each(|number| *number = 0.0);
            } else if pairs {
                out[lane..].iter_mut().step_by(lanes).for_each(|number| *number = 0.0);
                centred.row(row, |column, number| {
                    let element = &mut out[column / 2 * lanes + lane];
                    let half = u32::from(bf16::from_f32(number).to_bits()) << (column % 2 * 16);
                    *element = f32::from_bits(element.to_bits() | half);
                });
            } else {
                centred.row(row, |column, number| out[column * lanes + lane] = number);
            }
        }
    };
    let panel_len = panel_registers * S::LANES * elements;
    match par {
        Par::Serial => x.chunks_mut(panel_len).enumerate().for_each(fill),
        Par::Rayon => x.par_chunks_mut(panel_len).enumerate().for_each(fill),
    }
    x
}

/// Offers the pre-activations of `latents` to the candidates.
pub(super) fn run<S: Simd>(
    simd: S,
    block: Block<'_>,
    dtype: WeightDtype,
    rounded: bool,
    latents: Range<usize>,
    worker: &mut Worker,
    candidates: &mut Candidates,
) {
    match dtype {
        WeightDtype::F32 => simd.run(Tiles::<Single<F32>>::new(block, latents, worker, candidates)),
        WeightDtype::F16 => simd.run(Tiles::<Single<F16>>::new(block, latents, worker, candidates)),
        WeightDtype::Bf16 if pairs::<S>(rounded) => {
            simd.run(Tiles::<Pair>::new(block, latents, worker, candidates));
        }
        WeightDtype::Bf16 => simd.run(Tiles::<Single<Bf16>>::new(block, latents, worker, candidates)),
    }
}

struct Tiles<'a, E> {
    block: Block<'a>,
    latents: Range<usize>,
    worker: &'a mut Worker,
    candidates: &'a mut Candidates,
    element: std::marker::PhantomData<E>,
}

impl<'a, E: Element> Tiles<'a, E> {
    fn new(
        block: Block<'a>,
        latents: Range<usize>,
        worker: &'a mut Worker,
        candidates: &'a mut Candidates,
    ) -> Self {
        Self { block, latents, worker, candidates, element: std::marker::PhantomData }
    }
}

impl<S: Simd, E: Element> Work<S> for Tiles<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Block { encoder, x, rows } = self.block;
        let [num_latents, d_in] = encoder.weight.shape();
        let elements = d_in.div_ceil(E::NUMBERS);
        let (registers, tile_latents) = (rows.div_ceil(S::LANES), S::TILE.1);
        let tile = self.worker.tile.numbers(tile_latents * STRIDE);
        let sums = self.worker.sums.numbers(registers * tile_latents * S::LANES);
        let sums: &mut [S::Lanes] = bytemuck::cast_slice_mut(sums);
        let x: &[S::Lanes] = bytemuck::cast_slice(x);
        let panel = S::TILE.0;
        // The weights of the next tile are asked for evenly over the steps of this one.
        let tile_lines = tile_latents * encoder.weight.row_size() / 64;
        let requests = registers.div_ceil(panel) * (elements / STEPS).max(1);
        let lines = tile_lines.div_ceil(requests);

        for first in self.latents.clone().step_by(tile_latents) {
            let end = (first + tile_latents).min(self.latents.end);
            let after = (first + tile_latents).min(num_latents - 1);
            let mut ahead = Ahead { address: encoder.weight.row(after).as_ptr(), lines };
            for chunk in (0..elements).step_by(CHUNK) {
                let len = CHUNK.min(elements - chunk);
                for (latent, tile) in (first..first + tile_latents).zip(tile.chunks_mut(STRIDE)) {
                    if latent < end {
                        E::copy(simd, encoder.weight.row(latent), chunk * E::NUMBERS, tile);
                    } else {
                        tile.fill(0.0);
                    }
                }
                for at in (0..registers).step_by(panel) {
                    let width = panel.min(registers - at);
                    let x = &x[at * elements..][..width * elements];
                    let product = Product {
                        x: &x[chunk * width..][..len * width],
                        tile,
                        sums: &mut sums[at * tile_latents..][..width * tile_latents],
                        width,
                        first: chunk == 0,
                        ahead: &mut ahead,
                    };
                    S::multiply_tile::<E>(simd, product);
                }
            }
            for at in (0..registers).step_by(panel) {
                let width = panel.min(registers - at);
                let sums = &sums[at * tile_latents..][..width * tile_latents];
                for (sums, latent) in sums.chunks(width).zip(first..end) {
                    let bias = simd.splat(encoder.bias[latent]);
                    let floor = simd.splat(encoder.floor(latent));
                    for (register, sums) in (at..).zip(sums) {
                        let pre = simd.add(simd.load(sums), bias);
                        let row = register * S::LANES;
                        let floors = simd.load(self.candidates.floors::<S>(register));
                        let mut above = simd.above(pre, simd.max(floors, floor));
                        if above != 0 {
                            let mut values = *sums;
                            simd.store(pre, &mut values);
                            while above != 0 {
                                let lane = above.trailing_zeros() as usize;
                                above &= above - 1;
                                self.candidates.offer(row + lane, latent, values.as_ref()[lane]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Requests for weights that will be needed.
pub(in super::super) struct Ahead {
    address: *const u8,
    /// Cache lines at a time.
    lines: usize,
}

impl Ahead {
    #[inline(always)]
    fn request<S: Simd>(&mut self, simd: S) {
        for _ in 0..self.lines {
            simd.prefetch(self.address);
            self.address = self.address.wrapping_add(64);
        }
    }
}

/// The product of a panel and a tile over one chunk.
pub(in super::super) struct Product<'a, S: Simd> {
    /// `[element][register]`.
    x: &'a [S::Lanes],
    /// `[latent][element]`, [`STRIDE`] apart.
    tile: &'a [f32],
    /// `[latent][register]`.
    sums: &'a mut [S::Lanes],
    /// Registers of the panel.
    pub(in super::super) width: usize,
    /// Whether sums start here.
    first: bool,
    ahead: &'a mut Ahead,
}

impl<S: Simd> Product<'_, S> {
    /// Multiplies with the sums of `REGISTERS` registers of rows and `LATENTS` latents kept in registers.
    #[inline(always)]
    pub(in super::super) fn run<E: Element, const REGISTERS: usize, const LATENTS: usize>(self, simd: S) {
        let (tile, _) = self.tile.as_chunks::<STRIDE>();
        let tile: &[[f32; STRIDE]; LATENTS] = tile.first_chunk().expect("a tile of LATENTS rows");
        let (sums, _) = self.sums.as_chunks_mut::<REGISTERS>();
        let sums: &mut [[S::Lanes; REGISTERS]; LATENTS] =
            sums.first_chunk_mut().expect("sums of LATENTS rows");
        let mut acc = [[simd.zero(); REGISTERS]; LATENTS];
        if !self.first {
            for latent in 0..LATENTS {
                for register in 0..REGISTERS {
                    acc[latent][register] = simd.load(&sums[latent][register]);
                }
            }
        }
        let (x, _) = self.x.as_chunks::<REGISTERS>();
        let x = &x[..x.len().min(CHUNK)];
        let (steps, rest) = x.as_chunks::<STEPS>();
        let mut element = 0;
        for x in steps {
            self.ahead.request(simd);
            for x in x {
                step::<S, E, REGISTERS, LATENTS>(simd, x, tile, element, &mut acc);
                element += 1;
            }
        }
        for x in rest {
            step::<S, E, REGISTERS, LATENTS>(simd, x, tile, element, &mut acc);
            element += 1;
        }
        for latent in 0..LATENTS {
            for register in 0..REGISTERS {
                simd.store(acc[latent][register], &mut sums[latent][register]);
            }
        }
    }
}

#[inline(always)]
fn step<S: Simd, E: Element, const REGISTERS: usize, const LATENTS: usize>(
    simd: S,
    x: &[S::Lanes; REGISTERS],
    tile: &[[f32; STRIDE]; LATENTS],
    element: usize,
    acc: &mut [[S::Register; REGISTERS]; LATENTS],
) {
    let x: [S::Register; REGISTERS] = std::array::from_fn(|register| simd.load(&x[register]));
    for latent in 0..LATENTS {
        let weight = simd.splat(tile[latent][element]);
        for register in 0..REGISTERS {
            acc[latent][register] = E::multiply_add(simd, x[register], weight, acc[latent][register]);
        }
    }
}
