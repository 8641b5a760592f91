//! [`Paired`]: a score beside a baseline on the same features.

use serde::{Deserialize, Serialize};

use crate::{Confidence, Summary};

/// A score and a baseline of the same features: their means, the mean of the differences and the ratio of the means, each with
/// its interval.
///
/// Features differ more from each other than a score from its baseline, so the difference is taken feature by feature: its
/// interval is Student's over the differences. The interval of the ratio is Fieller's for pairs, all `θ` with
/// `(ā - θ b̄)² <= t² (v_aa - 2θ v_ab + θ² v_bb)`, where `v` are the variances and the covariance of the two means and `t` is
/// Student's quantile of `n - 1` degrees (Fieller, 1954). It does not pretend to be symmetric, and it has no bounds where the baseline's mean may be 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The score.
    pub score: Summary,
    /// The baseline.
    pub baseline: Summary,
    /// Score minus baseline.
    pub difference: Summary,
    /// The sample's covariance of score and baseline; `None` for a single pair.
    pub covariance: Option<f64>,
    /// The score's mean over the baseline's; `None` where that is 0.
    pub ratio: Option<f64>,
    /// Fieller's 99 % interval of the ratio; `None` for a single pair, and where the baseline's mean may be 0.
    pub ratio_interval_99: Option<[f64; 2]>,
}

impl Paired {
    /// From pairs of score and baseline; `None` where there are none.
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        // Welford's recurrence for the score, the baseline, their difference, and the product of the first two.
        let (mut n, mut means, mut squares, mut product) = (0usize, [0.0; 3], [0.0; 3], 0.0);
        for (score, baseline) in pairs {
            n += 1;
            let values = [score, baseline, score - baseline];
            product += (score - means[0]) * (baseline - means[1]) * (n - 1) as f64 / n as f64;
            for ((value, mean), squares) in values.into_iter().zip(&mut means).zip(&mut squares) {
                let before = value - *mean;
                *mean += before / n as f64;
                *squares += before * (value - *mean);
            }
        }
        if n == 0 {
            return None;
        }
        let summary = |side: usize| Summary::from_moments(n, means[side], squares[side]);
        let mut paired = Self {
            score: summary(0),
            baseline: summary(1),
            difference: summary(2),
            covariance: (n > 1).then(|| product / (n - 1) as f64),
            ratio: (means[1] != 0.0).then(|| means[0] / means[1]),
            ratio_interval_99: None,
        };
        paired.ratio_interval_99 = paired.ratio_interval(Confidence::P99);
        Some(paired)
    }

    /// Fieller's interval of the ratio, `[low, high]`; `None` for a single pair, and where the baseline's mean may be 0.
    pub fn ratio_interval(&self, confidence: Confidence) -> Option<[f64; 2]> {
        let n = self.score.n as f64;
        let covariance = self.covariance? / n;
        let [score_variance, baseline_variance] =
            [self.score.standard_error()?.powi(2), self.baseline.standard_error()?.powi(2)];
        let t_squared = confidence.student_quantile(self.score.n - 1).powi(2);
        let (score, baseline) = (self.score.mean, self.baseline.mean);
        let quadratic = baseline * baseline - t_squared * baseline_variance;
        if quadratic <= 0.0 {
            return None;
        }
        let middle = score * baseline - t_squared * covariance;
        let constant = score * score - t_squared * score_variance;
        let root = (middle * middle - quadratic * constant).max(0.0).sqrt();
        Some([(middle - root) / quadratic, (middle + root) / quadratic])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_taken_pair_by_pair() {
        // Scores differ by 1 to 9, each is 1 above its baseline: the difference is sure, the means are not.
        let paired = Paired::of([(1.0, 0.0), (5.0, 4.0), (9.0, 8.0)]).unwrap();
        assert_eq!((paired.score.mean, paired.baseline.mean, paired.difference.mean), (5.0, 4.0, 1.0));
        assert!(paired.difference.half_width_99.unwrap() < 1e-6);
        assert!(paired.score.half_width_99.unwrap() > 20.0);
        assert!((paired.covariance.unwrap() - 16.0).abs() < 1e-12);
        // The baseline's mean 4 with standard error 2.3 may be 0.
        assert_eq!((paired.ratio, paired.ratio_interval_99), (Some(1.25), None));
    }

    #[test]
    fn fiellers_bounds_worked_by_hand() {
        // Means 4 and 2, variances of the means 1/3 · 1 and 1/3 · 1/100, covariance 0 (deviations -1, 0, 1 and 0.1, -0.2, 0.1
        // scaled). At 95 % t² of 2 degrees is 18.51282.
        let scale = 0.1 / 0.03f64.sqrt();
        let pairs = [(3.0, 2.0 + 0.1 * scale), (4.0, 2.0 - 0.2 * scale), (5.0, 2.0 + 0.1 * scale)];
        let paired = Paired::of(pairs).unwrap();
        assert!(paired.covariance.unwrap().abs() < 1e-12);
        // (8 ± √(64 - (4 - t²/300)(16 - t²/3))) / (4 - t²/300).
        let t_squared = 18.512_820_5;
        let quadratic = 4.0 - t_squared / 300.0;
        let root = (64.0f64 - quadratic * (16.0 - t_squared / 3.0)).sqrt();
        let [low, high] = paired.ratio_interval(Confidence::P95).unwrap();
        assert!((low - (8.0 - root) / quadratic).abs() < 1e-6, "{low}");
        assert!((high - (8.0 + root) / quadratic).abs() < 1e-6, "{high}");
        assert!(low < 2.0 && 2.0 < high && high - 2.0 > 2.0 - low);
    }

    #[test]
    fn a_sure_ratio_has_a_narrow_interval() {
        let paired = Paired::of([(2.0, 1.0), (4.0, 2.0), (6.0, 3.0), (2.0, 1.0), (4.0, 2.0)]).unwrap();
        let [low, high] = paired.ratio_interval(Confidence::P95).unwrap();
        assert!((low - 2.0).abs() < 1e-6 && (high - 2.0).abs() < 1e-6, "{low} {high}");
    }

    #[test]
    fn what_is_undefined_is_not_given() {
        assert_eq!(Paired::of([]), None);
        let one = Paired::of([(1.0, 2.0)]).unwrap();
        assert_eq!((one.ratio, one.ratio_interval_99, one.covariance), (Some(0.5), None, None));
        let zero = Paired::of([(1.0, 0.0), (2.0, 0.0)]).unwrap();
        assert_eq!((zero.ratio, zero.ratio_interval_99), (None, None));
    }
}
