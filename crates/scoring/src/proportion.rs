//! A share of yes and no verdicts, with its confidence interval.

use serde::{Deserialize, Serialize};

use crate::Confidence;

/// How many of `n` verdicts were yes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proportion {
    /// Verdicts that were yes.
    pub yes: u64,
    /// All verdicts.
    pub n: u64,
}

impl Proportion {
    /// Counts one more verdict.
    pub fn add(&mut self, yes: bool) {
        self.yes += u64::from(yes);
        self.n += 1;
    }

    /// The share of yes, 0 to 1; `None` without verdicts.
    pub fn share(self) -> Option<f64> {
        (self.n > 0).then(|| self.yes as f64 / self.n as f64)
    }

    /// Wilson's score interval of the true share, `[low, high]` within 0 to 1; `None` without verdicts. With
    /// `p` the share and `z` the quantile its centre is `(p + z²/2n) / (1 + z²/n)`, its half width
    /// `z/(1 + z²/n) · √(p(1-p)/n + z²/4n²)`. Unlike the normal interval it is sound for few verdicts and shares near 0 and 1.
    pub fn wilson(self, confidence: Confidence) -> Option<[f64; 2]> {
        let p = self.share()?;
        let (z, n) = (confidence.normal_quantile(), self.n as f64);
        let scale = 1.0 + z * z / n;
        let centre = (p + z * z / (2.0 * n)) / scale;
        let half = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        Some([(centre - half).max(0.0), (centre + half).min(1.0)])
    }
}

impl FromIterator<bool> for Proportion {
    fn from_iter<I: IntoIterator<Item = bool>>(verdicts: I) -> Self {
        let mut counted = Self::default();
        verdicts.into_iter().for_each(|yes| counted.add(yes));
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_interval(yes: u64, n: u64, confidence: Confidence, want: [f64; 2]) {
        let got = Proportion { yes, n }.wilson(confidence).unwrap();
        for (got, want) in got.into_iter().zip(want) {
            assert!((got - want).abs() < 5e-5, "{yes} of {n}: {got}, expected {want}");
        }
    }

    #[test]
    fn intervals_worked_by_hand() {
        // z² = 3.84146: centre (0.6 + 0.0960365) / 1.192073 = 0.583888, half 1.644164 · √(0.012 + 0.00240091) = 0.197306.
        assert_interval(12, 20, Confidence::P95, [0.386_58, 0.781_19]);
        // p = 0: from 0 to z² / (n + z²).
        assert_interval(0, 10, Confidence::P95, [0.0, 0.277_53]);
        assert_interval(10, 10, Confidence::P95, [0.722_47, 1.0]);
        // z² = 6.63490: from 0 to 6.63490 / 106.63490.
        assert_interval(0, 100, Confidence::P99, [0.0, 0.062_22]);
        // p = 1/2: centre 1/2, half z / (2 √(n + z²)) = 2.575829 / (2 · √22.63490).
        assert_interval(8, 16, Confidence::P99, [0.229_29, 0.770_71]);
    }

    #[test]
    fn verdicts_are_counted_and_nothing_is_said_of_none() {
        let counted: Proportion = [true, false, true, true].into_iter().collect();
        assert_eq!((counted, counted.share()), (Proportion { yes: 3, n: 4 }, Some(0.75)));
        let none = Proportion::default();
        assert_eq!((none.share(), none.wilson(Confidence::P99)), (None, None));
    }
}
