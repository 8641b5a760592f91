//! The geometric median, by Weiszfeld's iteration.

use tch::{Kind, Tensor, no_grad};

/// Stop when an iteration moves the estimate by less than this share of the points' mean distance from it.
const TOLERANCE: f64 = 1e-6;
const MAX_ITERATIONS: usize = 200;
/// Distances below this share of the mean distance count as this much, so that an estimate on a point is not a division by 0.
const NEAREST: f64 = 1e-9;

/// The point `[d]` with the smallest sum of distances to the rows of `points` `[n, d]`, as f64.
///
/// Weiszfeld's iteration from the mean, in f64, until it moves by less than 1e-6 of the points' mean distance, 200 times at
/// most. Where the median is itself one of the points convergence is slow, and the result may be off by more than that.
///
/// # Panics
/// When there is no point.
#[track_caller]
pub fn geometric_median(points: &Tensor) -> Tensor {
    assert!(points.dim() == 2 && points.size()[0] > 0, "points are {:?}, expected [n, d]", points.size());
    no_grad(|| {
        let points = points.detach().to_kind(Kind::Double);
        let mut median = points.mean_dim([0_i64].as_slice(), false, Kind::Double);
        for iteration in 0..MAX_ITERATIONS {
            let distances = (&points - &median).norm_scalaropt_dim(2, [1_i64].as_slice(), false);
            let scale = distances.mean(Kind::Double).double_value(&[]);
            if scale == 0.0 {
                break;
            }
            let weights = distances.clamp_min(NEAREST * scale).reciprocal();
            let next = points.tr().mv(&weights) / weights.sum(Kind::Double);
            let moved = (&next - &median).norm().double_value(&[]);
            median = next;
            if moved <= TOLERANCE * scale {
                tracing::debug!(iteration, "geometric median converged");
                break;
            }
        }
        median
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(points: &[f32], d: i64) -> Vec<f64> {
        Vec::try_from(geometric_median(&Tensor::from_slice(points).reshape([-1, d]))).unwrap()
    }

    #[test]
    fn known_answers() {
        // The middle one of three collinear points, which the mean (3, 3) is far from.
        let got = median(&[0.0, 0.0, 1.0, 1.0, 8.0, 8.0], 2);
        assert!(got.iter().all(|x| (x - 1.0).abs() < 1e-3), "{got:?}");
        // A right triangle's Fermat point, where the angles are 120 degrees: (3 - sqrt 3) / 6 on the diagonal.
        let got = median(&[0.0, 0.0, 1.0, 0.0, 0.0, 1.0], 2);
        let expected = (3.0 - 3.0_f64.sqrt()) / 6.0;
        assert!(got.iter().all(|x| (x - expected).abs() < 1e-5), "{got:?}, expected {expected}");
        // The crossing of a quadrilateral's diagonals, one corner far out.
        let got = median(&[1.0, 0.0, -1.0, 0.0, 0.0, -1.0, 0.0, 100.0], 2);
        assert!(got.iter().all(|x| x.abs() < 1e-3), "{got:?}");
        assert_eq!(median(&[2.0, 3.0, 2.0, 3.0], 2), [2.0, 3.0]);
        assert_eq!(median(&[5.0, -1.0], 2), [5.0, -1.0]);
    }
}
