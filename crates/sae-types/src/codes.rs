//! [`SparseCodes`]: rows of (latent, activation) pairs.

use std::ops::Range;

use crate::FeatureId;

/// The codes of a batch of vectors: for each row the latents that are on, ascending, and their activations.
///
/// Compressed rows: row `i` is `latents[offsets[i]..offsets[i + 1]]`. Rows may differ in length (ReLU
/// before TopK can leave fewer than k; BatchTopK has no fixed k), and zeros are never stored.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseCodes {
    num_latents: usize,
    offsets: Vec<usize>,
    latents: Vec<u32>,
    values: Vec<f32>,
}

/// One row of [`SparseCodes`]: `latents[j]` has activation `values[j]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeRow<'a> {
    /// Latent indices, strictly ascending.
    pub latents: &'a [u32],
    /// Activations, each finite and not zero, as long as `latents`.
    pub values: &'a [f32],
}

/// A row that breaks the invariants of [`SparseCodes`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CodesError {
    /// A latent beyond the width, repeated, or out of order.
    #[error("row {row}: latent {latent} must be below {num_latents} and above the one before it")]
    Latent {
        /// The row it stands in.
        row: usize,
        /// The latent.
        latent: u32,
        /// The width.
        num_latents: usize,
    },
    /// An activation that is zero, infinite or not a number.
    #[error("row {row}: latent {latent} has activation {value}, expected a finite number other than zero")]
    Value {
        /// The row it stands in.
        row: usize,
        /// The latent.
        latent: u32,
        /// The activation.
        value: f32,
    },
}

impl SparseCodes {
    /// No rows yet, of a dictionary of `num_latents` latents.
    pub fn new(num_latents: usize) -> Self {
        Self { num_latents, offsets: vec![0], latents: Vec::new(), values: Vec::new() }
    }

    /// As [`SparseCodes::new`], with room for `rows` rows of `codes` codes in all.
    pub fn with_capacity(num_latents: usize, rows: usize, codes: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { num_latents, offsets, latents: Vec::with_capacity(codes), values: Vec::with_capacity(codes) }
    }

    /// Becomes what [`SparseCodes::new`] makes, but keeps its memory.
    pub fn reset(&mut self, num_latents: usize) {
        self.num_latents = num_latents;
        self.offsets.truncate(1);
        self.latents.clear();
        self.values.clear();
    }

    /// Appends a row.
    ///
    /// # Errors
    /// When latents are not strictly ascending below the width, or an activation is zero or not finite;
    /// the codes are then as before the call.
    pub fn push_row(&mut self, row: impl IntoIterator<Item = (FeatureId, f32)>) -> Result<(), CodesError> {
        let start = self.latents.len();
        let checked = self.extend_checked(start, row);
        if checked.is_ok() {
            self.offsets.push(self.latents.len());
        } else {
            self.latents.truncate(start);
            self.values.truncate(start);
        }
        checked
    }

    fn extend_checked(
        &mut self,
        start: usize,
        row: impl IntoIterator<Item = (FeatureId, f32)>,
    ) -> Result<(), CodesError> {
        let row_number = self.n_rows();
        for (feature, value) in row {
            let latent = feature.0;
            let rising = self.latents[start..].last().is_none_or(|&before| before < latent);
            if !rising || feature.index() >= self.num_latents {
                return Err(CodesError::Latent { row: row_number, latent, num_latents: self.num_latents });
            }
            if value == 0.0 || !value.is_finite() {
                return Err(CodesError::Value { row: row_number, latent, value });
            }
            self.latents.push(latent);
            self.values.push(value);
        }
        Ok(())
    }

    /// Appends the rows of `other`.
    ///
    /// # Panics
    /// When the widths differ.
    #[track_caller]
    pub fn append(&mut self, other: &Self) {
        assert_eq!(self.num_latents, other.num_latents, "codes of different widths");
        let base = self.latents.len();
        self.offsets.extend(other.offsets[1..].iter().map(|offset| base + offset));
        self.latents.extend_from_slice(&other.latents);
        self.values.extend_from_slice(&other.values);
    }

    /// A copy of some rows.
    ///
    /// # Panics
    /// When a row of `range` is not there.
    #[track_caller]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let offsets = &self.offsets[range.start..=range.end];
        let codes = offsets[0]..offsets[range.len()];
        Self {
            num_latents: self.num_latents,
            offsets: offsets.iter().map(|offset| offset - codes.start).collect(),
            latents: self.latents[codes.clone()].to_vec(),
            values: self.values[codes].to_vec(),
        }
    }

    /// The `k` largest activations of each row, ties to the lower latent, and the others; both have as many rows as `self`.
    ///
    /// So codes of the widest selection that a loss looks at (Multi-TopK's `4k`) give the narrower ones.
    pub fn largest_per_row(&self, k: usize) -> (Self, Self) {
        let mut scratch = Vec::new();
        let mut parts = Parts::new(self, k.saturating_mul(self.n_rows()));
        for row in self.rows() {
            parts.push(row, &mut Cut::new(row.values, k, &mut scratch));
        }
        (parts.kept, parts.rest)
    }

    /// The `n` largest activations of all rows together, ties to the lower row, then to the lower latent, and the others;
    /// both have as many rows as `self`.
    pub fn largest_in_all(&self, n: usize) -> (Self, Self) {
        let mut cut = Cut::new(&self.values, n, &mut Vec::new());
        let mut parts = Parts::new(self, n);
        for row in self.rows() {
            parts.push(row, &mut cut);
        }
        (parts.kept, parts.rest)
    }

    /// The codes by range of latents: element `i` has those of `prefixes[i - 1]..prefixes[i]` (from 0 where `i` is 0), as
    /// many rows as `self`, and its width. Together they are `self`.
    ///
    /// # Panics
    /// When `prefixes` does not rise strictly from above 0 to [`SparseCodes::num_latents`].
    #[track_caller]
    pub fn split_at(&self, prefixes: &[usize]) -> Vec<Self> {
        let rising = prefixes.first().is_some_and(|&first| first > 0) && prefixes.is_sorted_by(|a, b| a < b);
        assert!(
            rising && prefixes.last() == Some(&self.num_latents),
            "prefixes {prefixes:?}, expected to rise strictly to {} latents",
            self.num_latents
        );
        let mut parts: Vec<_> =
            prefixes.iter().map(|_| Self::with_capacity(self.num_latents, self.n_rows(), 0)).collect();
        for row in self.rows() {
            let mut start = 0;
            for (part, &prefix) in parts.iter_mut().zip(prefixes) {
                let end = row.latents.partition_point(|&latent| (latent as usize) < prefix);
                part.latents.extend_from_slice(&row.latents[start..end]);
                part.values.extend_from_slice(&row.values[start..end]);
                part.offsets.push(part.latents.len());
                start = end;
            }
        }
        parts
    }

    /// The width of the dictionary.
    pub fn num_latents(&self) -> usize {
        self.num_latents
    }

    /// How many rows there are.
    pub fn n_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// How many codes there are in all rows together.
    pub fn n_codes(&self) -> usize {
        self.latents.len()
    }

    /// Row `row`.
    ///
    /// # Panics
    /// When there is no such row.
    #[track_caller]
    pub fn row(&self, row: usize) -> CodeRow<'_> {
        let range = self.offsets[row]..self.offsets[row + 1];
        CodeRow { latents: &self.latents[range.clone()], values: &self.values[range] }
    }

    /// All rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = CodeRow<'_>> {
        (0..self.n_rows()).map(|row| self.row(row))
    }

    /// `[n_rows + 1]` ends of the rows within [`SparseCodes::latents`].
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Latents of all rows, one row after the other.
    pub fn latents(&self) -> &[u32] {
        &self.latents
    }

    /// Activations of all rows, one row after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

impl<'a> CodeRow<'a> {
    /// How many latents are on.
    pub fn len(&self) -> usize {
        self.latents.len()
    }

    /// Whether none is on.
    pub fn is_empty(&self) -> bool {
        self.latents.is_empty()
    }

    /// The activation of `feature`, 0 where it is off.
    pub fn value(&self, feature: FeatureId) -> f32 {
        self.latents.binary_search(&feature.0).map_or(0.0, |at| self.values[at])
    }

    /// Pairs of latent and activation, ascending by latent.
    pub fn iter(self) -> impl Iterator<Item = (FeatureId, f32)> + use<'a> {
        self.latents.iter().zip(self.values).map(|(&latent, &value)| (FeatureId(latent), value))
    }
}

/// Which of a sequence of activations are among the largest, earlier ones first where they are equal.
struct Cut {
    /// All above it are kept.
    smallest: f32,
    /// How many of those that equal it are still to be kept.
    ties: usize,
}

impl Cut {
    /// Keeps `count` of `values`, which stay as they are; `scratch` takes a copy.
    fn new(values: &[f32], count: usize, scratch: &mut Vec<f32>) -> Self {
        if count == 0 {
            return Self { smallest: f32::INFINITY, ties: 0 };
        }
        if count >= values.len() {
            return Self { smallest: f32::NEG_INFINITY, ties: 0 };
        }
        scratch.clear();
        scratch.extend_from_slice(values);
        // Neither zero nor NaN is among them, so that the total order is that of the numbers.
        let (larger, &mut smallest, _) = scratch.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        let above = larger.iter().filter(|&&value| value > smallest).count();
        Self { smallest, ties: count - above }
    }

    /// Whether the next activation in order is kept.
    fn keeps(&mut self, value: f32) -> bool {
        if value == self.smallest && self.ties > 0 {
            self.ties -= 1;
            return true;
        }
        value > self.smallest
    }
}

/// Codes on their way into two.
struct Parts {
    kept: SparseCodes,
    rest: SparseCodes,
}

impl Parts {
    fn new(codes: &SparseCodes, kept: usize) -> Self {
        let (width, rows, kept) = (codes.num_latents, codes.n_rows(), kept.min(codes.n_codes()));
        let rest = codes.n_codes() - kept;
        Self {
            kept: SparseCodes::with_capacity(width, rows, kept),
            rest: SparseCodes::with_capacity(width, rows, rest),
        }
    }

    fn push(&mut self, row: CodeRow<'_>, cut: &mut Cut) {
        for (&latent, &value) in row.latents.iter().zip(row.values) {
            let part = if cut.keeps(value) { &mut self.kept } else { &mut self.rest };
            part.latents.push(latent);
            part.values.push(value);
        }
        for part in [&mut self.kept, &mut self.rest] {
            part.offsets.push(part.latents.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(num_latents: usize, rows: &[&[(u32, f32)]]) -> SparseCodes {
        let mut codes = SparseCodes::new(num_latents);
        for row in rows {
            codes.push_row(row.iter().map(|&(latent, value)| (FeatureId(latent), value))).unwrap();
        }
        codes
    }

    #[test]
    fn a_slice_is_the_rows_it_names() {
        let rows: [&[(u32, f32)]; 4] = [&[(0, 1.0), (2, 3.0)], &[], &[(8, -2.0)], &[(1, 2.0), (3, 5.0)]];
        let all = codes(9, &rows);
        for start in 0..=4 {
            for end in start..=4 {
                assert_eq!(all.slice(start..end), codes(9, &rows[start..end]), "{start}..{end}");
            }
        }
    }

    #[test]
    fn the_largest_of_each_row_go_to_the_lower_latent_in_ties() {
        let all =
            codes(9, &[&[(0, 1.0), (2, 3.0), (4, 1.0), (6, 1.0)], &[], &[(8, -2.0)], &[(1, 2.0), (3, 5.0)]]);
        let (kept, rest) = all.largest_per_row(2);
        assert_eq!(kept, codes(9, &[&[(0, 1.0), (2, 3.0)], &[], &[(8, -2.0)], &[(1, 2.0), (3, 5.0)]]));
        assert_eq!(rest, codes(9, &[&[(4, 1.0), (6, 1.0)], &[], &[], &[]]));
        let (kept, rest) = all.largest_per_row(0);
        assert_eq!((kept.n_codes(), &rest), (0, &all));
        assert_eq!(all.largest_per_row(usize::MAX), (all.clone(), codes(9, &[&[], &[], &[], &[]])));
    }

    #[test]
    fn the_largest_of_all_go_to_the_lower_row_in_ties() {
        let all = codes(5, &[&[(3, 1.0)], &[(0, 1.0), (1, 4.0), (2, 1.0)], &[], &[(0, 1.0), (4, 2.0)]]);
        let (kept, rest) = all.largest_in_all(4);
        assert_eq!(kept, codes(5, &[&[(3, 1.0)], &[(0, 1.0), (1, 4.0)], &[], &[(4, 2.0)]]));
        assert_eq!(rest, codes(5, &[&[], &[(2, 1.0)], &[], &[(0, 1.0)]]));
        for n in 0..8 {
            let (kept, rest) = all.largest_in_all(n);
            assert_eq!((kept.n_codes(), kept.n_rows(), rest.n_rows()), (n.min(6), 4, 4));
            assert_eq!(kept.n_codes() + rest.n_codes(), 6);
        }
    }

    #[test]
    fn ranges_of_latents_are_all_of_them() {
        let all = codes(6, &[&[(0, 1.0), (2, 2.0), (5, 3.0)], &[], &[(3, 4.0)]]);
        let parts = all.split_at(&[1, 3, 6]);
        assert_eq!(parts[0], codes(6, &[&[(0, 1.0)], &[], &[]]));
        assert_eq!(parts[1], codes(6, &[&[(2, 2.0)], &[], &[]]));
        assert_eq!(parts[2], codes(6, &[&[(5, 3.0)], &[], &[(3, 4.0)]]));
        assert_eq!(all.split_at(&[6]), [all]);
    }

    #[test]
    #[should_panic(expected = "prefixes [2, 4], expected to rise strictly to 6 latents")]
    fn ranges_must_reach_the_width() {
        codes(6, &[]).split_at(&[2, 4]);
    }

    #[test]
    fn refuses_bad_rows_and_stays_as_it_was() {
        let mut codes = SparseCodes::new(4);
        codes.push_row([(FeatureId(1), 2.0)]).unwrap();
        let before = codes.clone();
        for bad in [
            vec![(0, 1.0), (0, 1.0)],
            vec![(2, 1.0), (1, 1.0)],
            vec![(4, 1.0)],
            vec![(0, 0.0)],
            vec![(0, f32::NAN)],
        ] {
            assert!(codes.push_row(bad.iter().map(|&(l, v)| (FeatureId(l), v))).is_err(), "{bad:?} passed");
            assert_eq!(codes, before);
        }
    }

    #[test]
    fn append_joins_rows() {
        let mut a = SparseCodes::new(4);
        a.push_row([(FeatureId(1), 2.0)]).unwrap();
        let mut b = SparseCodes::new(4);
        b.push_row([]).unwrap();
        b.push_row([(FeatureId(0), 1.0), (FeatureId(3), 3.0)]).unwrap();
        a.append(&b);
        assert_eq!((a.n_rows(), a.n_codes()), (3, 3));
        assert_eq!(a.row(2).value(FeatureId(3)), 3.0);
        assert_eq!(a.row(2).value(FeatureId(2)), 0.0);
        assert!(a.row(1).is_empty());
    }
}
