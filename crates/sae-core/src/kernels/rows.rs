//! What encoding few rows, decoding and gradients have in common: dot products with rows, and sums of rows.

use super::simd::{Bf16, F16, F32, Simd, Stored, Work};
use crate::{WeightDtype, Weights};

/// Rows summed at a time: as many streams as the memory system follows. Four were slower by a tenth to a third.
const STREAMS: usize = 8;
/// Registers of sums that stay in registers while rows no wider than two such blocks are added; wider rows would come by too
/// often.
const BLOCK: usize = 8;

/// A row of weights as registers, and what is left of it padded with zeros to one more.
pub(super) struct SplitRow<'a, S: Simd, W: Stored> {
    pub(super) body: &'a [W::Bytes<S>],
    pub(super) tail: Option<W::Bytes<S>>,
}

impl<'a, S: Simd, W: Stored> SplitRow<'a, S, W> {
    #[inline(always)]
    pub(super) fn new(row: &'a [u8]) -> Self {
        let (body, rest) = row.split_at(row.len() - row.len() % size_of::<W::Bytes<S>>());
        let tail = (!rest.is_empty()).then(|| {
            let mut bytes = <W::Bytes<S> as bytemuck::Zeroable>::zeroed();
            bytes.as_mut()[..rest.len()].copy_from_slice(rest);
            bytes
        });
        Self { body: bytemuck::cast_slice(body), tail }
    }
}

/// As [`SplitRow`], of numbers in memory.
pub(super) struct SplitLanes<'a, S: Simd> {
    body: &'a [S::Lanes],
    tail: Option<S::Lanes>,
}

impl<'a, S: Simd> SplitLanes<'a, S> {
    #[inline(always)]
    pub(super) fn new(numbers: &'a [f32]) -> Self {
        let (body, rest) = numbers.split_at(numbers.len() - numbers.len() % S::LANES);
        let tail = (!rest.is_empty()).then(|| {
            let mut lanes = <S::Lanes as bytemuck::Zeroable>::zeroed();
            lanes.as_mut()[..rest.len()].copy_from_slice(rest);
            lanes
        });
        Self { body: bytemuck::cast_slice(body), tail }
    }
}

/// `x[i] · rows[j]` as `[j][i]`, each summed as if alone: lane by lane, then the lanes. Meanwhile asks for the
/// rows at `next`, of equal length.
#[inline(always)]
pub(super) fn dots<S: Simd, W: Stored, const N: usize, const M: usize>(
    simd: S,
    x: &[SplitLanes<'_, S>; N],
    rows: [&[u8]; M],
    next: [*const u8; M],
) -> [[f32; N]; M] {
    let rows = rows.map(SplitRow::<S, W>::new);
    let registers = x[0].body.len();
    let x_bodies: [&[S::Lanes]; N] = std::array::from_fn(|i| &x[i].body[..registers]);
    let row_bodies: [&[W::Bytes<S>]; M] = std::array::from_fn(|j| &rows[j].body[..registers]);
    let mut sums = [[simd.zero(); N]; M];
    for register in 0..registers {
        let x: [S::Register; N] = std::array::from_fn(|i| simd.load(&x_bodies[i][register]));
        for j in 0..M {
            simd.prefetch(next[j].wrapping_add(register * size_of::<W::Bytes<S>>()));
            let row = W::load(simd, &row_bodies[j][register]);
            for i in 0..N {
                sums[j][i] = simd.multiply_add(x[i], row, sums[j][i]);
            }
        }
    }
    for j in 0..M {
        let Some(bytes) = &rows[j].tail else { continue };
        let row = W::load(simd, bytes);
        for i in 0..N {
            let Some(x) = &x[i].tail else { continue };
            sums[j][i] = simd.multiply_add(simd.load(x), row, sums[j][i]);
        }
    }
    sums.map(|sums| sums.map(|sum| simd.sum(sum)))
}

/// Adds `factors[j] * rows[j]` to `out`, in the order of `j`. Meanwhile asks for the rows at `next`, of equal length.
#[inline(always)]
pub(super) fn add_rows<S: Simd, W: Stored, const M: usize>(
    simd: S,
    rows: [&[u8]; M],
    factors: [f32; M],
    next: [*const u8; M],
    out: &mut [f32],
) {
    let rows = rows.map(SplitRow::<S, W>::new);
    let (body, tail) = out.split_at_mut(out.len() - out.len() % S::LANES);
    let body: &mut [S::Lanes] = bytemuck::cast_slice_mut(body);
    let registers = body.len();
    let row_bodies: [&[W::Bytes<S>]; M] = std::array::from_fn(|j| &rows[j].body[..registers]);
    let factors = factors.map(|factor| simd.splat(factor));
    for register in 0..registers {
        let mut sum = simd.load(&body[register]);
        for j in 0..M {
            simd.prefetch(next[j].wrapping_add(register * size_of::<W::Bytes<S>>()));
            sum = simd.multiply_add(factors[j], W::load(simd, &row_bodies[j][register]), sum);
        }
        simd.store(sum, &mut body[register]);
    }
    if !tail.is_empty() {
        let mut lanes = <S::Lanes as bytemuck::Zeroable>::zeroed();
        lanes.as_mut()[..tail.len()].copy_from_slice(tail);
        let mut sum = simd.load(&lanes);
        for j in 0..M {
            let Some(bytes) = &rows[j].tail else { continue };
            sum = simd.multiply_add(factors[j], W::load(simd, bytes), sum);
        }
        simd.store(sum, &mut lanes);
        tail.copy_from_slice(&lanes.as_ref()[..tail.len()]);
    }
}

/// Adds `factors[i] * matrix[indices[i]]` to `out`, which is [`BLOCK`] registers of columns from `first`, in the order of `i`.
#[inline(always)]
fn add_block<S: Simd, W: Stored>(
    simd: S,
    matrix: Weights<'_>,
    indices: &[u32],
    factors: &[f32],
    first: usize,
    out: &mut [f32],
) {
    let out: &mut [S::Lanes] = bytemuck::cast_slice_mut(out);
    let bytes = first * W::DTYPE.size();
    let mut sums: [S::Register; BLOCK] = std::array::from_fn(|register| simd.load(&out[register]));
    for (&index, &factor) in indices.iter().zip(factors) {
        let row = &matrix.row(index as usize)[bytes..][..BLOCK * size_of::<W::Bytes<S>>()];
        let row: &[W::Bytes<S>] = bytemuck::cast_slice(row);
        let factor = simd.splat(factor);
        for register in 0..BLOCK {
            sums[register] = simd.multiply_add(factor, W::load(simd, &row[register]), sums[register]);
        }
    }
    for register in 0..BLOCK {
        simd.store(sums[register], &mut out[register]);
    }
}

/// A sum of rows of a matrix: `out = start + Σ factors[i] * matrix[indices[i]]`, of the columns that start at `first`, in
/// the order of `i`.
#[derive(Debug)]
pub(super) struct Sum<'a> {
    pub(super) matrix: Weights<'a>,
    pub(super) indices: &'a [u32],
    pub(super) factors: &'a [f32],
    pub(super) first: usize,
    pub(super) out: &'a mut [f32],
}

impl Sum<'_> {
    /// Adds to what is in `out`.
    pub(super) fn add<S: Simd>(self, simd: S) {
        match self.matrix.dtype() {
            WeightDtype::F32 => simd.run(StoredSum::<F32>(self, std::marker::PhantomData)),
            WeightDtype::F16 => simd.run(StoredSum::<F16>(self, std::marker::PhantomData)),
            WeightDtype::Bf16 => simd.run(StoredSum::<Bf16>(self, std::marker::PhantomData)),
        }
    }
}

struct StoredSum<'a, W>(Sum<'a>, std::marker::PhantomData<W>);

impl<S: Simd, W: Stored> Work<S> for StoredSum<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Sum { matrix, indices, factors, first, out } = self.0;
        let (first, out) = if out.len() <= 2 * BLOCK * S::LANES {
            let whole = out.len() - out.len() % (BLOCK * S::LANES);
            let (blocks, rest) = out.split_at_mut(whole);
            for (block, out) in blocks.chunks_mut(BLOCK * S::LANES).enumerate() {
                add_block::<S, W>(simd, matrix, indices, factors, first + block * BLOCK * S::LANES, out);
            }
            (first + whole, rest)
        } else {
            (first, out)
        };
        if out.is_empty() {
            return;
        }
        let (size, len) = (W::DTYPE.size(), out.len());
        let row = |index: u32| &matrix.row(index as usize)[first * size..][..len * size];
        let (groups, rest) = indices.as_chunks::<STREAMS>();
        let (group_factors, rest_factors) = factors.as_chunks::<STREAMS>();
        for (group, (indices, factors)) in groups.iter().zip(group_factors).enumerate() {
            let next = groups.get(group + 1).unwrap_or(indices).map(|index| row(index).as_ptr());
            add_rows::<S, W, STREAMS>(simd, indices.map(row), *factors, next, out);
        }
        for (&index, &factor) in rest.iter().zip(rest_factors) {
            add_rows::<S, W, 1>(simd, [row(index)], [factor], [row(index).as_ptr()], out);
        }
    }
}

/// Dot products of one vector with rows of a matrix: `out[i] = x · matrix[indices[i]]`.
#[derive(Debug)]
pub(super) struct RowDots<'a> {
    pub(super) matrix: Weights<'a>,
    pub(super) x: &'a [f32],
    pub(super) indices: &'a [u32],
    pub(super) out: &'a mut [f32],
}

impl RowDots<'_> {
    pub(super) fn run<S: Simd>(self, simd: S) {
        match self.matrix.dtype() {
            WeightDtype::F32 => simd.run(StoredDots::<F32>(self, std::marker::PhantomData)),
            WeightDtype::F16 => simd.run(StoredDots::<F16>(self, std::marker::PhantomData)),
            WeightDtype::Bf16 => simd.run(StoredDots::<Bf16>(self, std::marker::PhantomData)),
        }
    }
}

struct StoredDots<'a, W>(RowDots<'a>, std::marker::PhantomData<W>);

impl<S: Simd, W: Stored> Work<S> for StoredDots<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let RowDots { matrix, x, indices, out } = self.0;
        let x = [SplitLanes::<S>::new(x)];
        let row = |index: u32| matrix.row(index as usize);
        let (groups, rest) = indices.as_chunks::<STREAMS>();
        let (group_out, rest_out) = out.as_chunks_mut::<STREAMS>();
        for (group, (indices, out)) in groups.iter().zip(group_out).enumerate() {
            let next = groups.get(group + 1).unwrap_or(indices).map(|index| row(index).as_ptr());
            *out = dots::<S, W, 1, STREAMS>(simd, &x, indices.map(row), next).map(|[dot]| dot);
        }
        for (&index, out) in rest.iter().zip(rest_out) {
            let [[dot]] = dots::<S, W, 1, 1>(simd, &x, [row(index)], [row(index).as_ptr()]);
            *out = dot;
        }
    }
}
