//! [`ScoreTable`]: a score of many features beside its baselines, per kind of concept and in total.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Paired, Summary};

/// What a feature adds to a table.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureEntry {
    /// The kind of concept its explanation was labelled as.
    pub concept: Option<String>,
    /// Its score.
    pub outcome: FeatureOutcome,
    /// Its score under each baseline, in the order of the table's; `None` where that is undefined.
    pub baselines: Vec<Option<f64>>,
}

/// What became of scoring one feature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureOutcome {
    /// A score.
    Scored(f64),
    /// The score is not defined: there was nothing to go by.
    Undefined,
    /// The explainer had nothing to say, so that there is nothing to score.
    Unable,
    /// The feature could not be scored.
    Failed,
}

impl From<Option<f64>> for FeatureOutcome {
    fn from(score: Option<f64>) -> Self {
        score.map_or(Self::Undefined, Self::Scored)
    }
}

/// Scores per kind of concept and in total, each the mean over features with its interval. A total is the mean over all features,
/// not over kinds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreTable {
    /// The names of the baselines.
    pub baselines: Vec<String>,
    /// One row per kind, in the order of their names, features without one last; none where no feature has one.
    pub concepts: Vec<ScoreRow>,
    /// All features.
    pub total: ScoreRow,
}

/// The scores of a set of features.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreRow {
    /// The kind of concept; `None` of all features, and of those without one.
    pub concept: Option<String>,
    /// How many features.
    pub features: usize,
    /// Of those, how many the explainer had nothing to say about.
    pub unable: usize,
    /// How many have no defined score.
    pub undefined: usize,
    /// How many could not be scored.
    pub failed: usize,
    /// The scores of the rest; `None` if there is no rest.
    pub score: Option<Summary>,
    /// Each baseline, in the order of the table's.
    pub baselines: Vec<BaselineScore>,
}

/// A baseline over a set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BaselineScore {
    /// Over the features for which it is defined.
    pub score: Option<Summary>,
    /// The features' own score beside it, over those for which both are defined.
    pub paired: Option<Paired>,
}

impl ScoreRow {
    /// The share of features the explainer had nothing to say about, 0 to 1; `None` without features.
    pub fn unable_share(&self) -> Option<f64> {
        (self.features > 0).then(|| self.unable as f64 / self.features as f64)
    }

    fn of(concept: Option<&str>, entries: &[&FeatureEntry], n_baselines: usize) -> Self {
        let mut row =
            Self { concept: concept.map(str::to_owned), features: entries.len(), ..Self::default() };
        let mut scores = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.outcome {
                FeatureOutcome::Scored(score) => scores.push(score),
                FeatureOutcome::Undefined => row.undefined += 1,
                FeatureOutcome::Unable => row.unable += 1,
                FeatureOutcome::Failed => row.failed += 1,
            }
        }
        row.score = Summary::of(scores);
        row.baselines = (0..n_baselines)
            .map(|at| BaselineScore {
                score: Summary::of(entries.iter().filter_map(|entry| entry.baselines[at])),
                paired: Paired::of(entries.iter().filter_map(|entry| match entry.outcome {
                    FeatureOutcome::Scored(score) => Some((score, entry.baselines[at]?)),
                    _ => None,
                })),
            })
            .collect();
        row
    }
}

impl ScoreTable {
    /// From every feature's entry.
    ///
    /// # Panics
    /// When an entry has not as many baselines as there are names.
    #[track_caller]
    pub fn of(baselines: Vec<String>, entries: &[FeatureEntry]) -> Self {
        let n = baselines.len();
        let mut kinds: BTreeMap<&str, Vec<&FeatureEntry>> = BTreeMap::new();
        let mut without = Vec::new();
        for entry in entries {
            assert_eq!(entry.baselines.len(), n, "baselines of a feature against those of the table");
            match &entry.concept {
                Some(concept) => kinds.entry(concept).or_default().push(entry),
                None => without.push(entry),
            }
        }
        let mut concepts: Vec<ScoreRow> =
            kinds.iter().map(|(concept, entries)| ScoreRow::of(Some(concept), entries, n)).collect();
        if !concepts.is_empty() && !without.is_empty() {
            concepts.push(ScoreRow::of(None, &without, n));
        }
        let all: Vec<&FeatureEntry> = entries.iter().collect();
        Self { total: ScoreRow::of(None, &all, n), baselines, concepts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(concept: Option<&str>, outcome: FeatureOutcome, permuted: Option<f64>) -> FeatureEntry {
        FeatureEntry { concept: concept.map(str::to_owned), outcome, baselines: vec![permuted] }
    }

    fn table() -> ScoreTable {
        let entries = [
            entry(Some("part"), FeatureOutcome::Scored(0.25), Some(0.125)),
            entry(Some("object"), FeatureOutcome::Scored(0.5), Some(0.0)),
            entry(Some("object"), FeatureOutcome::Scored(1.0), Some(0.25)),
            entry(Some("object"), FeatureOutcome::Undefined, Some(0.5)),
            entry(None, FeatureOutcome::Unable, None),
            entry(None, FeatureOutcome::Failed, None),
        ];
        ScoreTable::of(vec!["permuted".to_owned()], &entries)
    }

    #[test]
    fn the_total_is_a_mean_over_features() {
        let table = table();
        let row = &table.total;
        assert_eq!((row.features, row.unable, row.undefined, row.failed), (6, 1, 1, 1));
        assert_eq!(row.unable_share(), Some(1.0 / 6.0));
        assert!((row.score.unwrap().mean - 1.75 / 3.0).abs() < 1e-15);
        let baseline = row.baselines[0];
        // Alone over four features; beside the score over the three that have both.
        assert_eq!((baseline.score.unwrap().n, baseline.score.unwrap().mean), (4, 0.218_75));
        let paired = baseline.paired.unwrap();
        assert!((paired.difference.mean - (1.75 - 0.375) / 3.0).abs() < 1e-15 && paired.difference.n == 3);
        assert!((paired.ratio.unwrap() - 1.75 / 0.375).abs() < 1e-12);
    }

    #[test]
    fn kinds_stand_in_order_and_features_without_one_last() {
        let table = table();
        let rows: Vec<_> = table
            .concepts
            .iter()
            .map(|row| (row.concept.as_deref(), row.features, row.score.map(|score| score.mean)))
            .collect();
        assert_eq!(rows, [(Some("object"), 3, Some(0.75)), (Some("part"), 1, Some(0.25)), (None, 2, None)]);
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<ScoreTable>(&text).unwrap(), table);
    }

    #[test]
    fn without_features_there_is_nothing_to_say() {
        let table = ScoreTable::of(Vec::new(), &[]);
        assert!(table.concepts.is_empty() && table.total.score.is_none());
        assert_eq!(table.total.unable_share(), None);
    }

    #[test]
    #[should_panic(expected = "baselines of a feature")]
    fn baselines_must_be_named() {
        ScoreTable::of(Vec::new(), &[entry(None, FeatureOutcome::Unable, None)]);
    }
}
