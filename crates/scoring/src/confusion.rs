//! [`Confusion`]: yes and no verdicts against the truth.

use serde::{Deserialize, Serialize};

use crate::{Confidence, Proportion};

/// Verdicts counted by whether they are right. Every figure is `None` where it would divide by 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Yes where it is so.
    pub true_positive: u64,
    /// Yes where it is not so.
    pub false_positive: u64,
    /// No where it is not so.
    pub true_negative: u64,
    /// No where it is so.
    pub false_negative: u64,
}

impl Confusion {
    /// Counts one more verdict: what is so, and what was said.
    pub fn add(&mut self, truth: bool, verdict: bool) {
        let counter = match (truth, verdict) {
            (true, true) => &mut self.true_positive,
            (false, true) => &mut self.false_positive,
            (false, false) => &mut self.true_negative,
            (true, false) => &mut self.false_negative,
        };
        *counter += 1;
    }

    /// All verdicts.
    pub fn n(self) -> u64 {
        self.true_positive + self.false_positive + self.true_negative + self.false_negative
    }

    /// Of what is so, the share that was seen: recall, the true positive rate.
    pub fn recall(self) -> Option<f64> {
        self.positives().share()
    }

    /// Of what is not so, the share that was rejected: the true negative rate.
    pub fn specificity(self) -> Option<f64> {
        self.negatives().share()
    }

    /// Of the yes verdicts, the share that is right; `None` where yes was never said.
    pub fn precision(self) -> Option<f64> {
        Proportion { yes: self.true_positive, n: self.true_positive + self.false_positive }.share()
    }

    /// The share of verdicts that are right.
    pub fn accuracy(self) -> Option<f64> {
        Proportion { yes: self.true_positive + self.true_negative, n: self.n() }.share()
    }

    /// The mean of recall and specificity, 1/2 for guessing and for always saying the same; `None` unless there was both
    /// something to see and something to reject.
    pub fn balanced_accuracy(self) -> Option<f64> {
        Some(f64::midpoint(self.recall()?, self.specificity()?))
    }

    /// The interval of the balanced accuracy, `[low, high]` within 0 to 1, made of Wilson's intervals of its two halves: its
    /// distance to either side is half the root of the summed squares of theirs (the method of variance estimates recovery, Zou
    /// and Donner 2008).
    pub fn balanced_accuracy_interval(self, confidence: Confidence) -> Option<[f64; 2]> {
        let centre = self.balanced_accuracy()?;
        let (mut below, mut above) = (0.0f64, 0.0f64);
        for half in [self.positives(), self.negatives()] {
            let (share, [low, high]) = (half.share()?, half.wilson(confidence)?);
            below += (share - low).powi(2);
            above += (high - share).powi(2);
        }
        Some([centre - below.sqrt() / 2.0, centre + above.sqrt() / 2.0])
    }

    /// F1, the harmonic mean of precision and recall: `2 TP / (2 TP + FP + FN)`. `None` where nothing is so and yes was never said.
    pub fn f1(self) -> Option<f64> {
        let twice = 2 * self.true_positive;
        Proportion { yes: twice, n: twice + self.false_positive + self.false_negative }.share()
    }

    /// Matthews' correlation of truth and verdict, -1 to 1; `None` where either is always the same.
    pub fn matthews(self) -> Option<f64> {
        let [tp, fp, tn, fn_] =
            [self.true_positive, self.false_positive, self.true_negative, self.false_negative]
                .map(|count| count as f64);
        let margins = (tp + fp) * (tp + fn_) * (tn + fp) * (tn + fn_);
        (margins > 0.0).then(|| (tp * tn - fp * fn_) / margins.sqrt())
    }

    fn positives(self) -> Proportion {
        Proportion { yes: self.true_positive, n: self.true_positive + self.false_negative }
    }

    fn negatives(self) -> Proportion {
        Proportion { yes: self.true_negative, n: self.true_negative + self.false_positive }
    }
}

impl FromIterator<(bool, bool)> for Confusion {
    fn from_iter<I: IntoIterator<Item = (bool, bool)>>(verdicts: I) -> Self {
        let mut counted = Self::default();
        verdicts.into_iter().for_each(|(truth, verdict)| counted.add(truth, verdict));
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(true_positive: u64, false_positive: u64, true_negative: u64, false_negative: u64) -> Confusion {
        Confusion { true_positive, false_positive, true_negative, false_negative }
    }

    fn assert_near(got: Option<f64>, want: f64) {
        let got = got.unwrap();
        assert!((got - want).abs() < 1e-12, "{got}, expected {want}");
    }

    #[test]
    fn figures_worked_by_hand() {
        let counts = of(6, 2, 8, 4);
        assert_near(counts.recall(), 0.6);
        assert_near(counts.specificity(), 0.8);
        assert_near(counts.precision(), 0.75);
        assert_near(counts.accuracy(), 0.7);
        assert_near(counts.balanced_accuracy(), 0.7);
        assert_near(counts.f1(), 12.0 / 18.0);
        // (48 - 8) / √(8 · 10 · 10 · 12).
        assert_near(counts.matthews(), 40.0 / 9600.0f64.sqrt());
    }

    #[test]
    fn unequal_classes_weigh_the_same() {
        // Always yes: right in 90 of 100, and worth no more than a guess.
        let always = of(90, 10, 0, 0);
        assert_eq!((always.accuracy(), always.balanced_accuracy()), (Some(0.9), Some(0.5)));
        assert_eq!(always.matthews(), None);
    }

    #[test]
    fn the_interval_is_made_of_wilsons() {
        // 8 of 16 on both sides: each half reaches 0.27071 to either side at 99 % (z² = 6.63490), so the mean 0.27071 / √2.
        let [low, high] = of(8, 8, 8, 8).balanced_accuracy_interval(Confidence::P99).unwrap();
        let half = 0.270_71 / 2.0f64.sqrt();
        assert!((low - (0.5 - half)).abs() < 1e-5 && (high - (0.5 + half)).abs() < 1e-5, "{low} {high}");
        // All right, ten each: Wilson's lower bound is 10 / (10 + z²).
        let [low, high] = of(10, 0, 10, 0).balanced_accuracy_interval(Confidence::P95).unwrap();
        let below = 1.0 - 10.0 / 13.841_458_8;
        assert!((low - (1.0 - below / 2.0f64.sqrt())).abs() < 1e-8 && high == 1.0, "{low} {high}");
    }

    #[test]
    fn verdicts_are_counted() {
        let counted: Confusion =
            [(true, true), (true, false), (false, true), (false, false), (true, true)].into_iter().collect();
        assert_eq!(counted, of(2, 1, 1, 1));
    }

    #[test]
    fn what_divides_by_0_is_not_given() {
        let none = Confusion::default();
        assert_eq!((none.accuracy(), none.f1(), none.balanced_accuracy()), (None, None, None));
        let only_no = of(0, 0, 5, 0);
        assert_eq!((only_no.precision(), only_no.f1(), only_no.recall()), (None, None, None));
        assert_eq!(only_no.balanced_accuracy_interval(Confidence::P99), None);
        assert_eq!(of(0, 0, 5, 1).f1(), Some(0.0));
    }
}
