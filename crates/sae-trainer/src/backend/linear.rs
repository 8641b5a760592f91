//! Dense arithmetic on `[n, d_in]` rows of f32, in a fixed order whatever the number of threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::wide::{Work, wide};

/// Partial sums kept side by side, so that they fill registers; added up in a fixed order.
const LANES: usize = 16;
/// Rows of the output that one task of a product computes, and columns that one task of a sum of columns does.
const BLOCK: usize = 64;

/// `Σ a[i] b[i]` in f64.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b[..a.len()].as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += f64::from(*a) * f64::from(*b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// [`dot`] of a row with itself, with the widest registers there are.
pub(crate) fn square(row: &[f32]) -> f64 {
    struct Square<'a>(&'a [f32]);
    impl Work for Square<'_> {
        type Output = f64;
        #[inline(always)]
        fn run(self) -> f64 {
            dot(self.0, self.0)
        }
    }
    wide(Square(row))
}

/// `||a||²`, `a · b` and `||b||²`.
pub(crate) fn square_beside(a: &[f32], b: &[f32]) -> (f64, f64, f64) {
    struct Beside<'a>(&'a [f32], &'a [f32]);
    impl Work for Beside<'_> {
        type Output = (f64, f64, f64);
        #[inline(always)]
        fn run(self) -> (f64, f64, f64) {
            let Self(a, b) = self;
            (dot(a, a), dot(a, b), dot(b, b))
        }
    }
    wide(Beside(a, b))
}

/// `Σ w ||row||²`.
pub(crate) fn squares(rows: &[f32], width: usize, weights: Option<&[f32]>) -> f64 {
    let of_rows: Vec<f64> = rows.par_chunks(width).with_min_len(16).map(square).collect();
    sum_weighted(&of_rows, weights)
}

fn sum_weighted(numbers: &[f64], weights: Option<&[f32]>) -> f64 {
    match weights {
        None => numbers.iter().sum(),
        Some(weights) => {
            numbers.iter().zip(weights).map(|(number, weight)| number * f64::from(*weight)).sum()
        }
    }
}

/// `a - b`, and `Σ w ||a - b||²`.
pub(crate) fn difference(a: &[f32], b: &[f32], width: usize, weights: Option<&[f32]>) -> (Vec<f32>, f64) {
    let mut out = vec![0.0; a.len()];
    let rows = out.par_chunks_mut(width).zip(a.par_chunks(width)).zip(b.par_chunks(width));
    let of_rows: Vec<f64> = rows
        .with_min_len(16)
        .map(|((out, a), b)| {
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = a - b;
            }
            square(out)
        })
        .collect();
    (out, sum_weighted(&of_rows, weights))
}

/// `factor · w · row`.
pub(crate) fn scaled(rows: &[f32], width: usize, weights: Option<&[f32]>, factor: f64) -> Vec<f32> {
    let mut out = vec![0.0; rows.len()];
    out.par_chunks_mut(width).zip(rows.par_chunks(width)).enumerate().with_min_len(16).for_each(
        |(row, (out, numbers))| {
            let factor = (factor * weights.map_or(1.0, |weights| f64::from(weights[row]))) as f32;
            for (out, number) in out.iter_mut().zip(numbers) {
                *out = factor * number;
            }
        },
    );
    out
}

/// Adds `rows` to `to`.
pub(crate) fn add(to: &mut [f32], rows: &[f32]) {
    const NUMBERS: usize = 1 << 14;
    to.par_chunks_mut(NUMBERS).zip(rows.par_chunks(NUMBERS)).for_each(|(to, rows)| {
        for (to, number) in to.iter_mut().zip(rows) {
            *to += number;
        }
    });
}

/// `Σ w · number` of every column, in f64 from the first row to the last.
fn columns(rows: &[f32], width: usize, weights: Option<&[f32]>) -> Vec<f64> {
    let mut sums = vec![0.0_f64; width];
    sums.par_chunks_mut(BLOCK).enumerate().for_each(|(block, sums)| {
        let first = block * BLOCK;
        for (row, numbers) in rows.chunks(width).enumerate() {
            let weight = weights.map_or(1.0, |weights| f64::from(weights[row]));
            for (sum, number) in sums.iter_mut().zip(&numbers[first..]) {
                *sum += weight * f64::from(*number);
            }
        }
    });
    sums
}

/// Adds the sum of each column of `rows` to `to`.
pub(crate) fn add_columns(to: &mut [f32], rows: &[f32]) {
    let sums = columns(rows, to.len(), None);
    for (to, sum) in to.iter_mut().zip(sums) {
        *to += sum as f32;
    }
}

/// `Σ w · number` of every column, and `Σ w`.
pub(crate) fn column_sums(y: &[f32], width: usize, weights: Option<&[f32]>) -> (Vec<f64>, f64) {
    let n = y.len() / width;
    let total = weights.map_or(n as f64, |weights| weights.iter().copied().map(f64::from).sum());
    (columns(y, width, weights), total)
}

/// `Σ w ||y - mean||²`.
pub(crate) fn squares_around(y: &[f32], mean: &[f64], weights: Option<&[f32]>) -> f64 {
    let width = mean.len();
    let of_rows: Vec<f64> = y
        .par_chunks(width)
        .with_min_len(16)
        .map(|row| {
            let mut sums = [0.0_f64; LANES];
            for (numbers, means) in row.chunks(LANES).zip(mean.chunks(LANES)) {
                for ((sum, number), mean) in sums.iter_mut().zip(numbers).zip(means) {
                    *sum += (f64::from(*number) - mean).powi(2);
                }
            }
            sums.iter().sum()
        })
        .collect();
    sum_weighted(&of_rows, weights)
}

/// Adds `a · b` to `out`, a fixed number of rows at a time.
pub(crate) fn add_product(a: &ArrayView2<'_, f32>, b: &ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
    let rows: Vec<_> =
        a.axis_chunks_iter(Axis(0), BLOCK).zip(out.axis_chunks_iter_mut(Axis(0), BLOCK)).collect();
    rows.into_par_iter().for_each(|(a, mut out)| general_mat_mul(1.0, &a, b, 1.0, &mut out));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<f32> {
        let mut state = 7_u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| number()).collect()
    }

    #[test]
    fn sums_are_those_of_the_formulas_at_every_width() {
        for (n, width) in [(1, 1), (3, 15), (5, 16), (70, 33), (2, 130)] {
            let y: Vec<f32> = noise(n * width).iter().map(|number| number + 3.0).collect();
            let weights: Vec<f32> = (0..n).map(|row| 1.0 + row as f32).collect();
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            let at = |row: usize, column: usize| f64::from(y[row * width + column]);
            let mut want = 0.0;
            for column in 0..width {
                let mean = (0..n).map(|row| f64::from(weights[row]) * at(row, column)).sum::<f64>() / total;
                let spread = (0..n).map(|row| f64::from(weights[row]) * (at(row, column) - mean).powi(2));
                want += spread.sum::<f64>();
            }
            let (sums, sum) = column_sums(&y, width, Some(&weights));
            assert!((sum - total).abs() < 1e-12 * total);
            let mean: Vec<f64> = sums.into_iter().map(|sum| sum / total).collect();
            let got = squares_around(&y, &mean, Some(&weights));
            assert!((got - want).abs() <= 1e-12 * total, "{n} x {width}: {got} {want}");
            let want: f64 =
                (0..n * width).map(|i| f64::from(y[i]).powi(2) * f64::from(weights[i / width])).sum();
            let got = squares(&y, width, Some(&weights));
            assert!((got / want - 1.0).abs() < 1e-12, "{n} x {width}: {got} {want}");
        }
    }
}
