//! [`Scores`]: what the verdicts of all workers so far come to, feature by feature and in total.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use explain::{FeatureKey, Outcome, Record};
use explain_kit::{Explanations, Ledgers, Texts, files};
use scoring::{
    Confidence, Confusion, FeatureEntry, FeatureOutcome, JudgeScore, Judged, Proportion, ScoreTable,
};
use serde::Serialize;
use stage_kit::write_whole;

use crate::judge::exam::Score;
use crate::judge::page;
use crate::judge::verdicts::judged;
use crate::other_texts::OtherTexts;

/// The baseline's name in tables.
const PERMUTED: &str = "permuted";

/// What is summed up.
pub(crate) struct Sums<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) score: Score,
    /// `images` or `text`.
    pub(crate) side: &'static str,
    pub(crate) texts: &'a Texts,
    pub(crate) permuted: Option<&'a OtherTexts>,
    pub(crate) labels: Option<&'a Explanations>,
}

/// `detection.json`, `fuzz.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Scores {
    pub(super) score: &'static str,
    pub(super) shown: &'static str,
    #[serde(flatten)]
    pub(crate) totals: Totals,
    pub(super) features: Vec<FeatureScore>,
}

/// What standard output is told as well.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Totals {
    /// Features that were passed over, with too few samples that the explainer had not seen.
    pub(super) features_skipped: usize,
    /// Features of which no answer could be read.
    features_unparsed: usize,
    /// Means over features with their 99 % intervals, per label and in total, beside the same with other features' explanations.
    pub(crate) balanced_accuracy: ScoreTable,
    pub(super) f1: ScoreTable,
    pub(super) auc: ScoreTable,
    /// All verdicts counted as one feature's, without intervals: those of one feature depend on each other.
    pub(super) all: Measures,
    #[serde(skip_serializing_if = "Option::is_none")]
    permuted: Option<Measures>,
    /// Of all explained features, chosen or not, those that are held against no other explanation, since all others say the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    without_other_text: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct FeatureScore {
    pub(super) feature: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    pub(super) explanation: String,
    #[serde(flatten)]
    pub(super) own: Measures,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) permuted: Option<Measures>,
}

/// Figures of a set of verdicts; `null` where one is not defined.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Measures {
    /// Samples that were asked about.
    pub(super) n: u64,
    /// Samples without a verdict, which count nowhere.
    pub(super) unparsed: u64,
    #[serde(flatten)]
    counts: Confusion,
    pub(super) balanced_accuracy: Option<f64>,
    balanced_accuracy_interval_99: Option<[f64; 2]>,
    pub(super) f1: Option<f64>,
    pub(super) recall: Option<f64>,
    pub(super) specificity: Option<f64>,
    /// Of the negatives with what often comes with the feature.
    pub(super) specificity_hard: Option<f64>,
    /// Of log-probabilities; `null` where the server gave none.
    pub(super) auc: Option<f64>,
    auc_interval_99: Option<[f64; 2]>,
}

/// The verdicts of one feature.
struct Line {
    key: FeatureKey,
    is_failed: bool,
    measures: Measures,
}

/// The verdicts of one ledger.
#[derive(Default)]
struct Read {
    lines: Vec<Line>,
    /// Of which the explainer had nothing to say.
    unable: Vec<FeatureKey>,
    skipped: usize,
    unparsed: usize,
    all: Measures,
}

impl Sums<'_> {
    /// Reads what every worker has so far, and writes it.
    pub(crate) fn write(&self) -> Result<Scores> {
        let name = self.score.stage().name;
        let own = Read::of(self.folder, name, self.texts)?;
        let permuted_name = self.score.permuted_stage().name;
        let permuted = self.permuted.map(|permuted| Read::of(self.folder, permuted_name, &permuted.texts));
        let permuted = permuted.transpose()?;
        let whole = permuted.iter().flat_map(|read| &read.lines).filter(|line| !line.is_failed);
        let baseline: BTreeMap<&FeatureKey, Measures> =
            whole.map(|line| (&line.key, line.measures)).collect();
        let label = |key: &FeatureKey| self.labels.and_then(|labels| labels.texts.get(key)).cloned();
        let table = |figure: fn(&Measures) -> Option<f64>| {
            let entry = |line: &Line| FeatureEntry {
                concept: label(&line.key),
                outcome: if line.is_failed {
                    FeatureOutcome::Failed
                } else {
                    FeatureOutcome::from(figure(&line.measures))
                },
                baselines: match &permuted {
                    Some(_) => vec![baseline.get(&line.key).and_then(figure)],
                    None => Vec::new(),
                },
            };
            let names: Vec<String> = permuted.iter().map(|_| PERMUTED.to_owned()).collect();
            let unable = own.unable.iter().map(|key| FeatureEntry {
                concept: label(key),
                outcome: FeatureOutcome::Unable,
                baselines: vec![None; names.len()],
            });
            let entries: Vec<FeatureEntry> = own.lines.iter().map(entry).chain(unable).collect();
            ScoreTable::of(names, &entries)
        };
        let totals = Totals {
            features_skipped: own.skipped,
            features_unparsed: own.unparsed,
            balanced_accuracy: table(|measures| measures.balanced_accuracy),
            f1: table(|measures| measures.f1),
            auc: table(|measures| measures.auc),
            all: own.all,
            permuted: permuted.as_ref().map(|read| read.all),
            without_other_text: self.permuted.map(|permuted| permuted.without),
        };
        let features = own.lines.iter().map(|line| FeatureScore {
            feature: line.key.to_string(),
            label: label(&line.key),
            explanation: self.texts.get(&line.key).unwrap_or_default().to_owned(),
            own: line.measures,
            permuted: baseline.get(&line.key).copied(),
        });
        let scores = Scores { score: name, shown: self.side, features: features.collect(), totals };
        let text = serde_json::to_string_pretty(&scores)? + "\n";
        write_whole(&self.folder.join(format!("{name}.json")), text.as_bytes())?;
        let page = self.folder.join(format!("{name}.html"));
        write_whole(&page, page::html(&scores).as_bytes())?;
        Ok(scores)
    }
}

impl Read {
    fn of(folder: &Path, ledger: &str, texts: &Texts) -> Result<Self> {
        let mut read = Self::default();
        let (mut all, mut hard): (Vec<Judged>, _) = (Vec::new(), Proportion::default());
        for record in
            Ledgers::<Record>::read(&files(folder, ledger)?)?.records(&|record| texts.counts(record))
        {
            let record = record?;
            let is_failed = match &record.outcome {
                Outcome::Skipped(_) => {
                    read.skipped += 1;
                    continue;
                }
                Outcome::Failed(_) => true,
                Outcome::Unable => {
                    read.unable.push(record.key());
                    continue;
                }
                Outcome::Unparsed => {
                    read.unparsed += 1;
                    false
                }
                Outcome::Answered(_) => false,
            };
            let of_hard = rejected_hard(&record);
            let verdicts: Vec<Judged> = record.shown.iter().map(judged).collect();
            let measures = Measures::of(&verdicts, of_hard);
            // Of a feature that failed there is a part of the verdicts only.
            if !is_failed {
                all.extend(verdicts);
                hard.yes += of_hard.yes;
                hard.n += of_hard.n;
            }
            read.lines.push(Line { key: record.key(), is_failed, measures });
        }
        read.all = Measures::pooled(&all, hard);
        Ok(read)
    }
}

/// How many of the hard negatives with a verdict were rejected.
fn rejected_hard(record: &Record) -> Proportion {
    record.shown.iter().filter(|shown| shown.hard).filter_map(|shown| Some(!shown.verdict?)).collect()
}

impl Measures {
    /// Of verdicts of many features. Their intervals would take every verdict for another feature's.
    fn pooled(verdicts: &[Judged], hard: Proportion) -> Self {
        let (balanced_accuracy_interval_99, auc_interval_99) = (None, None);
        Self { balanced_accuracy_interval_99, auc_interval_99, ..Self::of(verdicts, hard) }
    }

    fn of(verdicts: &[Judged], hard: Proportion) -> Self {
        let JudgeScore { confusion: counts, auc, unread } = JudgeScore::of(verdicts.iter().copied());
        Self {
            n: verdicts.len() as u64,
            unparsed: unread,
            counts,
            balanced_accuracy: counts.balanced_accuracy(),
            balanced_accuracy_interval_99: counts.balanced_accuracy_interval(Confidence::P99),
            f1: counts.f1(),
            recall: counts.recall(),
            specificity: counts.specificity(),
            specificity_hard: hard.share(),
            auc: auc.map(|auc| auc.area),
            auc_interval_99: auc.map(|auc| auc.interval(Confidence::P99)),
        }
    }
}

#[cfg(test)]
mod tests {
    use explain::Shown;
    use sae_types::SampleId;

    use super::*;

    #[test]
    fn figures_of_a_feature_worked_by_hand() {
        let shown = |not: bool, hard: bool, verdict: Option<bool>, probability: Option<f64>| Shown {
            not,
            hard,
            verdict,
            probability,
            ..Shown::example(SampleId(0), 1.0)
        };
        let key: FeatureKey = "model.layers.1_feature2".parse().unwrap();
        let mut record = Record::of(&key, Outcome::Answered(String::new()));
        record.shown = vec![
            shown(false, false, Some(true), Some(0.9)),
            shown(false, false, Some(false), Some(0.2)),
            shown(true, true, Some(true), Some(0.6)),
            shown(true, true, Some(false), Some(0.1)),
            shown(true, false, Some(false), None),
            shown(true, false, None, None),
        ];
        let verdicts: Vec<Judged> = record.shown.iter().map(judged).collect();
        let measures = Measures::of(&verdicts, rejected_hard(&record));
        assert_eq!((measures.n, measures.unparsed), (6, 1));
        // Recall 1/2, specificity 2/3; 2 TP of 2 TP + FP + FN; three of four pairs in order.
        assert!((measures.balanced_accuracy.unwrap() - 7.0 / 12.0).abs() < 1e-12);
        assert_eq!((measures.f1, measures.auc), (Some(0.5), Some(0.75)));
        assert_eq!((measures.specificity_hard, measures.recall), (Some(0.5), Some(0.5)));
        let pooled = Measures::pooled(&verdicts, rejected_hard(&record));
        assert!(measures.balanced_accuracy_interval_99.is_some() && measures.auc_interval_99.is_some());
        assert_eq!((pooled.balanced_accuracy_interval_99, pooled.auc_interval_99), (None, None));
        assert_eq!((pooled.balanced_accuracy, pooled.auc), (measures.balanced_accuracy, measures.auc));
        let none = Measures::of(&[], Proportion::default());
        assert_eq!((none.balanced_accuracy, none.f1, none.auc), (None, None, None));
    }
}
