//! The mean of scores, with its confidence interval.

use serde::{Deserialize, Serialize};

/// The 99.5 % quantile of the standard normal distribution: a two-sided interval of 99 %.
const Z_99: f64 = 2.575_829_303_548_901;

/// Count, mean and 99 % confidence interval of a set of scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many scores.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Half the width of the normal 99 % interval of the mean, from the sample's standard deviation
    /// (`n - 1` in the denominator); `None` for a single score.
    pub half_width_99: Option<f64>,
}

impl Summary {
    /// Sums scores up; `None` where there are none.
    pub fn of(scores: impl IntoIterator<Item = f64>) -> Option<Self> {
        // Welford's recurrence: one pass, no cancellation.
        let (mut n, mut mean, mut squares) = (0usize, 0.0, 0.0);
        for score in scores {
            n += 1;
            let before = score - mean;
            mean += before / n as f64;
            squares += before * (score - mean);
        }
        let half_width_99 = (n > 1).then(|| Z_99 * (squares / (n - 1) as f64 / n as f64).sqrt());
        (n > 0).then_some(Self { n, mean, half_width_99 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_of_known_scores() {
        let summary = Summary::of([1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((summary.n, summary.mean), (4, 2.5));
        // Standard deviation sqrt(5/3), standard error half of it.
        let expected = Z_99 * (5.0f64 / 3.0).sqrt() / 2.0;
        assert!((summary.half_width_99.unwrap() - expected).abs() < 1e-12);
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([0.5]).unwrap().half_width_99, None);
    }
}
