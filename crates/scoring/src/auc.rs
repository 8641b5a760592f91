//! [`Auc`]: how well a score tells two classes apart, whatever threshold is chosen.

use serde::{Deserialize, Serialize};

use crate::Confidence;

/// The area under the receiver operating characteristic: how likely a random positive has a higher score than a random negative, ties
/// counted half (Mann and Whitney's U over the number of pairs).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Auc {
    /// The area, 0 to 1; 1/2 for a score that says nothing.
    pub area: f64,
    /// Positives.
    pub positives: u64,
    /// Negatives.
    pub negatives: u64,
}

impl Auc {
    /// From scores, each with whether it is a positive's; `None` unless there are both. Exact up to the last division.
    ///
    /// # Panics
    /// When a score is no number.
    #[track_caller]
    pub fn of(scores: impl IntoIterator<Item = (bool, f64)>) -> Option<Self> {
        let mut scores: Vec<(bool, f64)> = scores.into_iter().collect();
        assert!(scores.iter().all(|(_, score)| !score.is_nan()), "a score that is no number has no rank");
        scores.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        let (mut positives, mut negatives) = (0u64, 0u64);
        // Twice the pairs in which the positive is above, ties once.
        let mut twice = 0u128;
        // By value and not by bits: -0 and 0 are a tie.
        for tied in scores.chunk_by(|(_, a), (_, b)| a == b) {
            let positive = tied.iter().filter(|(positive, _)| *positive).count() as u64;
            let negative = tied.len() as u64 - positive;
            twice += u128::from(positive) * u128::from(2 * negatives + negative);
            positives += positive;
            negatives += negative;
        }
        let pairs = u128::from(positives) * u128::from(negatives);
        (pairs > 0).then(|| Self { area: twice as f64 / (2 * pairs) as f64, positives, negatives })
    }

    /// The variance that Hanley and McNeil (1982) give the area of so many positives and negatives if the true one is `area`:
    /// `(A (1 - A) + (m - 1)(A / (2 - A) - A²) + (n - 1)(2A² / (1 + A) - A²)) / (m n)`.
    fn variance(self, area: f64) -> f64 {
        let (m, n) = (self.positives as f64, self.negatives as f64);
        let squared = area * area;
        let of_positives = (m - 1.0) * (area / (2.0 - area) - squared);
        let of_negatives = (n - 1.0) * (2.0 * squared / (1.0 + area) - squared);
        (area * (1.0 - area) + of_positives + of_negatives) / (m * n)
    }

    /// The interval of the true area, `[low, high]` within 0 to 1: all areas from which the measured one is at most `z` standard
    /// errors away, with Hanley and McNeil's variance *at those areas* (the score form that Newcombe, 2006, recommends). As
    /// Wilson's interval it is sound for few scores and for an area of 1, where the variance at the measured area would be 0.
    pub fn interval(self, confidence: Confidence) -> [f64; 2] {
        let z = confidence.normal_quantile();
        let reaches = |area: f64| (self.area - area).powi(2) <= z * z * self.variance(area).max(0.0);
        let edge = |outside: f64| {
            if reaches(outside) {
                return outside;
            }
            let (mut outside, mut inside) = (outside, self.area);
            for _ in 0..60 {
                let middle = f64::midpoint(outside, inside);
                *(if reaches(middle) { &mut inside } else { &mut outside }) = middle;
            }
            inside
        };
        [edge(0.0), edge(1.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(positives: &[f64], negatives: &[f64]) -> Auc {
        let positives = positives.iter().map(|&score| (true, score));
        Auc::of(positives.chain(negatives.iter().map(|&score| (false, score)))).unwrap()
    }

    #[test]
    fn pairs_counted_by_hand() {
        // 0.9 is above 3 and 0.5 above 2, with one tie: 5.5 of 6 pairs.
        let auc = of(&[0.9, 0.5], &[0.1, 0.2, 0.5]);
        assert_eq!((auc.area, auc.positives, auc.negatives), (5.5 / 6.0, 2, 3));
        assert_eq!(of(&[1.0], &[0.0]).area, 1.0);
        assert_eq!(of(&[0.0], &[1.0]).area, 0.0);
        assert_eq!(of(&[0.3, 0.3], &[0.3, 0.3, 0.3]).area, 0.5);
        assert_eq!(of(&[0.0], &[-0.0]).area, 0.5);
        assert_eq!(of(&[f64::INFINITY], &[f64::INFINITY]).area, 0.5);
    }

    #[test]
    fn verdicts_have_their_balanced_accuracy() {
        // Recall 3/4, specificity 1/2.
        let auc = of(&[1.0, 1.0, 1.0, 0.0], &[1.0, 0.0]);
        assert_eq!(auc.area, 0.625);
    }

    #[test]
    fn the_sum_equals_the_loop_over_pairs() {
        let score = |at: u64, prime: u64| (at * prime % 23) as f64 / 7.0;
        let positives: Vec<f64> = (0..40).map(|at| score(at, 17) + 0.4).collect();
        let negatives: Vec<f64> = (0..31).map(|at| score(at, 11)).collect();
        let mut sum = 0.0;
        for positive in &positives {
            for negative in &negatives {
                sum += f64::from(u8::from(positive > negative))
                    + f64::from(u8::from(positive == negative)) / 2.0;
            }
        }
        let area = of(&positives, &negatives).area;
        assert!((area - sum / 1240.0).abs() < 1e-15);
    }

    #[test]
    fn intervals_are_where_the_measured_area_is_z_errors_away() {
        for (area, positives, negatives) in
            [(0.8, 50, 50), (0.5, 5, 9), (0.97, 10, 10), (1.0, 10, 10), (0.0, 4, 2)]
        {
            let auc = Auc { area, positives, negatives };
            let [low, high] = auc.interval(Confidence::P95);
            assert!(low <= area && area <= high && (0.0..=1.0).contains(&low) && high <= 1.0);
            for edge in [low, high].into_iter().filter(|&edge| edge > 0.0 && edge < 1.0) {
                let errors = (area - edge).abs() / auc.variance(edge).sqrt();
                assert!((errors - 1.959_964).abs() < 1e-5, "{area}: {edge} is {errors} errors away");
            }
        }
        // Of 10 and 10, all in order, the true area may well be below 0.9, but not below 0.7.
        let [low, high] = of(&[1.0; 10], &[0.0; 10]).interval(Confidence::P95);
        assert!((0.7..0.9).contains(&low) && high == 1.0, "{low}");
    }

    #[test]
    fn hanley_and_mcneils_example() {
        // Of 51 abnormal and 58 normal images, area 0.893: Q1 = 0.80668, Q2 = 0.84252, standard error 0.0325.
        let auc = Auc { area: 0.893, positives: 51, negatives: 58 };
        assert!((auc.variance(0.893).sqrt() - 0.032_511_58).abs() < 1e-7);
    }

    #[test]
    fn one_class_has_no_area() {
        assert_eq!(Auc::of([(true, 0.5)]), None);
        assert_eq!(Auc::of([]), None);
    }

    #[test]
    #[should_panic(expected = "no rank")]
    fn scores_are_numbers() {
        Auc::of([(true, f64::NAN)]);
    }
}
