//! The mean of scores, with its confidence interval.

use serde::{Deserialize, Serialize};

use crate::Confidence;

/// Count, mean and 99 % confidence interval of a set of scores.
///
/// The interval is Student's: the mean ± `t(n-1) · s / √n`, with `s` the sample's standard deviation (`n - 1` in the
/// denominator). Of normal scores it holds the true mean in exactly that share of repetitions, from two scores on; where they are
/// far from normal and few, it is an approximation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many scores.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// The sample's standard deviation; `None` for a single score.
    pub standard_deviation: Option<f64>,
    /// Half the width of the 99 % interval of the mean; `None` for a single score.
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
        (n > 0).then(|| Self::from_moments(n, mean, squares))
    }

    /// From the mean and the sum of squared deviations from it.
    pub(crate) fn from_moments(n: usize, mean: f64, squares: f64) -> Self {
        let standard_deviation = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        let mut summary = Self { n, mean, standard_deviation, half_width_99: None };
        summary.half_width_99 = summary.half_width(Confidence::P99);
        summary
    }

    /// Half the width of the interval of the mean; `None` for a single score.
    pub fn half_width(&self, confidence: Confidence) -> Option<f64> {
        let error = self.standard_error()?;
        Some(confidence.student_quantile(self.n - 1) * error)
    }

    /// The interval of the mean, `[low, high]`; `None` for a single score.
    pub fn interval(&self, confidence: Confidence) -> Option<[f64; 2]> {
        let half = self.half_width(confidence)?;
        Some([self.mean - half, self.mean + half])
    }

    /// The standard error of the mean, `s / √n`; `None` for a single score.
    pub fn standard_error(&self) -> Option<f64> {
        Some(self.standard_deviation? / (self.n as f64).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_of_known_scores() {
        let summary = Summary::of([1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((summary.n, summary.mean), (4, 2.5));
        // Standard deviation √(5/3), standard error half of it; t of 3 degrees at 99 % is 5.84091.
        let expected = 5.840_909_31 * (5.0f64 / 3.0).sqrt() / 2.0;
        assert!((summary.half_width_99.unwrap() - expected).abs() < 1e-7);
        // At 95 % it is 3.18245.
        let [low, high] = summary.interval(Confidence::P95).unwrap();
        let half = 3.182_446_3 * (5.0f64 / 3.0).sqrt() / 2.0;
        assert!((low - (2.5 - half)).abs() < 1e-6 && (high - (2.5 + half)).abs() < 1e-6);
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn two_scores_have_a_wide_interval_and_one_has_none() {
        // s = √2/2, standard error 1/2, t of 1 degree is tan(0.99 π/2).
        let summary = Summary::of([0.0, 1.0]).unwrap();
        let expected = 0.5 * (0.99 * std::f64::consts::FRAC_PI_2).tan();
        assert!((summary.half_width_99.unwrap() - expected).abs() < 1e-10);
        let one = Summary::of([0.5]).unwrap();
        assert_eq!((one.mean, one.standard_deviation, one.half_width_99), (0.5, None, None));
    }

    #[test]
    fn large_offsets_lose_nothing() {
        let summary = Summary::of([1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0]).unwrap();
        assert!((summary.standard_deviation.unwrap() - 1.0).abs() < 1e-6);
    }
}
