//! [`JudgeScore`]: a feature's detection or fuzzing score, from what a judge said of its samples.

use serde::{Deserialize, Serialize};

use crate::{Auc, Confusion};

/// What a judge said of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// What is so: the feature is on in the sample, or where the marks are.
    pub truth: bool,
    /// What the judge said; `None` where its answer could not be read, or there was none.
    pub verdict: Option<bool>,
    /// How likely it was to say yes, where the server gave that.
    pub probability: Option<f64>,
}

/// Verdicts of one feature, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JudgeScore {
    /// The verdicts that could be read.
    pub confusion: Confusion,
    /// Of the probabilities, over the samples that have one; `None` unless there are positives and negatives among them.
    pub auc: Option<Auc>,
    /// Samples without a verdict. They are in neither of the above: a judge that answers nothing has no accuracy.
    pub unread: u64,
}

impl JudgeScore {
    /// Counts verdicts and ranks probabilities.
    pub fn of(samples: impl IntoIterator<Item = Judged>) -> Self {
        let mut score = Self::default();
        let mut probabilities = Vec::new();
        for Judged { truth, verdict, probability } in samples {
            match verdict {
                Some(verdict) => score.confusion.add(truth, verdict),
                None => score.unread += 1,
            }
            probabilities.extend(probability.filter(|value| !value.is_nan()).map(|value| (truth, value)));
        }
        score.auc = Auc::of(probabilities);
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_and_probabilities_are_counted_apart() {
        let judged = |truth, verdict, probability| Judged { truth, verdict, probability };
        let score = JudgeScore::of([
            judged(true, Some(true), Some(0.9)),
            judged(true, Some(false), Some(0.4)),
            judged(true, Some(true), None),
            judged(false, Some(false), Some(0.3)),
            judged(false, Some(false), Some(0.5)),
            judged(false, None, None),
        ]);
        assert_eq!((score.confusion.n(), score.unread), (5, 1));
        assert_eq!(score.confusion.balanced_accuracy(), Some(f64::midpoint(2.0 / 3.0, 1.0)));
        // Of four pairs 0.4 loses against 0.5.
        assert_eq!(score.auc.unwrap().area, 0.75);
        let without = JudgeScore::of([judged(true, Some(true), None), judged(false, Some(true), None)]);
        assert_eq!((without.auc, without.confusion.balanced_accuracy()), (None, Some(0.5)));
    }
}
