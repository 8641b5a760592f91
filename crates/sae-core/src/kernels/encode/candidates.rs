//! What may still be selected: per worker while it goes through the latents, then merged.

use rayon::prelude::*;
use sae_types::{FeatureId, SparseCodes};

use crate::kernels::lines::Lines;
use crate::kernels::simd::Simd;
use crate::kernels::{Par, Selection};

/// How many codes are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Limit {
    /// All that are above the threshold.
    #[default]
    None,
    /// So many per row.
    Row(usize),
    /// So many in all rows together.
    Batch(usize),
}

impl Limit {
    pub(super) fn new(selection: Selection<'_>, rows: usize) -> Self {
        match selection {
            Selection::TopK(k) => Self::Row(k),
            Selection::BatchTopK(k) => Self::Batch(rows.saturating_mul(k)),
            Selection::Threshold(_) | Selection::Thresholds(_) => Self::None,
        }
    }
}

/// A code of one row; the larger, the better: by activation (whose bits order as it does, being positive), then by lower
/// latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Code(u64);

impl Code {
    fn new(latent: usize, value: f32) -> Self {
        Self(u64::from(value.to_bits()) << 32 | u64::from(!(latent as u32)))
    }

    fn latent(self) -> u32 {
        !(self.0 as u32)
    }

    fn value(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }
}

/// A code of a batch.
#[derive(Clone, Copy, Debug)]
struct BatchCode {
    value: f32,
    row: u32,
    latent: u32,
}

impl BatchCode {
    /// The larger, the better: by activation, then by lower row, then by lower latent.
    fn rank(self) -> (u32, u32, u32) {
        (self.value.to_bits(), !self.row, !self.latent)
    }
}

/// A pre-activation that is not finite.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bad {
    pub(super) row: usize,
    pub(super) latent: usize,
    pub(super) value: f32,
}

/// What a worker has found so far for the rows of a block.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    limit: Limit,
    rows: usize,
    /// Per row the value that a pre-activation must exceed; of what passed there are at most twice as many as are kept.
    floors: Lines,
    by_row: Vec<Vec<Code>>,
    batch: Vec<BatchCode>,
    bad: Option<Bad>,
}

impl Candidates {
    /// Forgets everything and expects `rows` rows, whose pre-activations must exceed `floor`.
    pub(super) fn start(&mut self, limit: Limit, rows: usize, floor: f32) {
        (self.limit, self.rows, self.bad) = (limit, rows, None);
        self.batch.clear();
        if self.by_row.len() < rows {
            self.by_row.resize_with(rows, Vec::new);
        }
        for codes in &mut self.by_row[..rows] {
            codes.clear();
            if let Limit::Row(k) = limit {
                // What another worker has found comes on top of the best of these.
                codes.reserve(k + capacity(k));
            }
        }
        // Lanes that hold no row never have a candidate, up to the widest panel.
        let floors = self.floors.numbers(rows.next_multiple_of(16));
        floors[..rows].fill(floor);
        floors[rows..].fill(f32::INFINITY);
    }

    pub(super) fn bad(&self) -> Option<Bad> {
        self.bad
    }

    /// The floors of register `register` of rows.
    #[inline(always)]
    pub(super) fn floors<S: Simd>(&self, register: usize) -> &S::Lanes {
        let lanes: &[S::Lanes] = bytemuck::cast_slice(self.floors.all());
        &lanes[register]
    }

    #[inline(always)]
    pub(super) fn floor(&self, row: usize) -> f32 {
        self.floors.all()[row]
    }

    /// Takes a pre-activation that is above the floor of its row, or not a number.
    #[inline(never)]
    pub(super) fn offer(&mut self, row: usize, latent: usize, value: f32) {
        if row >= self.rows {
            // NaN of a lane without a row.
            return;
        }
        if value.is_nan() || value == f32::INFINITY {
            if self.bad.is_none_or(|bad| (row, latent) < (bad.row, bad.latent)) {
                self.bad = Some(Bad { row, latent, value });
            }
            return;
        }
        match self.limit {
            Limit::None => self.by_row[row].push(Code::new(latent, value)),
            Limit::Row(k) => {
                let codes = &mut self.by_row[row];
                codes.push(Code::new(latent, value));
                if codes.len() >= capacity(k) {
                    keep_best(codes, k);
                    // Latents come in ascending order, so one that only equals the k-th value has lost its tie.
                    self.floors.all_mut()[row] = codes[k - 1].value();
                }
            }
            Limit::Batch(limit) => {
                self.batch.push(BatchCode { value, row: row as u32, latent: latent as u32 });
                if self.batch.len() >= capacity(limit) {
                    let floor = keep_best_of_batch(&mut self.batch, limit);
                    self.floors.numbers(self.rows).fill(floor);
                }
            }
        }
    }
}

/// Candidates at which the best `k` are picked out.
fn capacity(k: usize) -> usize {
    k.saturating_add(k.max(48))
}

/// Leaves the `k` best, the worst of them last.
fn keep_best(codes: &mut Vec<Code>, k: usize) {
    if codes.len() > k {
        codes.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        codes.truncate(k);
    }
}

/// Leaves the `limit` best, and says which values need not be looked at any more: those below the worst, because
/// rows come in no order and one that equals it may still win its tie.
fn keep_best_of_batch(codes: &mut Vec<BatchCode>, limit: usize) -> f32 {
    if codes.len() <= limit {
        return 0.0;
    }
    codes.select_nth_unstable_by(limit - 1, |a, b| b.rank().cmp(&a.rank()));
    codes.truncate(limit);
    codes[limit - 1].value.next_down()
}

/// What was selected from the blocks before, where the selection is over the whole batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    codes: Vec<BatchCode>,
    floor: f32,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.codes.clear();
        self.floor = 0.0;
    }

    pub(super) fn floor(&self) -> f32 {
        self.floor
    }

    /// Appends the selected codes of all `rows` rows to `out`.
    pub(super) fn finish(&mut self, limit: Limit, rows: usize, out: &mut SparseCodes) {
        let Limit::Batch(limit) = limit else { return };
        if rows == 0 {
            return;
        }
        keep_best_of_batch(&mut self.codes, limit);
        self.codes.sort_unstable_by_key(|code| (code.row, code.latent));
        let mut codes = &self.codes[..];
        for row in 0..rows as u32 {
            let (these, others) = codes.split_at(codes.partition_point(|code| code.row == row));
            push(out, these.iter().map(|code| (code.latent, code.value)));
            codes = others;
        }
    }
}

/// Merges what the workers found in a block whose first row is `first_row`, into `batch` or, row by row, into `out`.
pub(super) fn merge(
    par: Par,
    limit: Limit,
    workers: &mut [Candidates],
    first_row: usize,
    batch: &mut Batch,
    out: &mut SparseCodes,
) {
    let Some((first, others)) = workers.split_first_mut() else { return };
    if let Limit::Batch(limit) = limit {
        for candidates in std::iter::once(&*first).chain(&*others) {
            let codes = candidates.batch.iter();
            batch.codes.extend(codes.map(|code| BatchCode { row: code.row + first_row as u32, ..*code }));
        }
        if batch.codes.len() >= capacity(limit) {
            batch.floor = keep_best_of_batch(&mut batch.codes, limit);
        }
        return;
    }
    let merge = |(row, codes): (usize, &mut Vec<Code>)| {
        for other in &*others {
            if let Limit::Row(k) = limit {
                keep_best(codes, k);
            }
            codes.extend_from_slice(&other.by_row[row]);
        }
        if let Limit::Row(k) = limit {
            keep_best(codes, k);
        }
        codes.sort_unstable_by_key(|code| code.latent());
    };
    let by_row = &mut first.by_row[..first.rows];
    match par {
        Par::Serial => by_row.iter_mut().enumerate().for_each(merge),
        Par::Rayon => by_row.par_iter_mut().enumerate().with_min_len(8).for_each(merge),
    }
    for codes in by_row {
        push(out, codes.iter().map(|code| (code.latent(), code.value())));
    }
}

fn push(out: &mut SparseCodes, codes: impl Iterator<Item = (u32, f32)>) {
    let pushed = out.push_row(codes.map(|(latent, value)| (FeatureId(latent), value)));
    // Candidates are ascending latents of the autoencoder with finite positive values.
    assert!(pushed.is_ok(), "a candidate that is no code: {pushed:?}");
}
