//! [`Table`]: what moved, per feature and strength.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use explain::FeatureKey;
use sae_types::{FeatureId, HookPoint};
use scoring::{Confidence, Proportion};
use serde::Serialize;
use stage_kit::write_whole;

use crate::answering::print;
use crate::record::{Key, Record};
use crate::store::{Merged, SWEEP, any};

/// Rows of the printed table.
const SHOWN: usize = 20;

/// `effects.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    /// Of all features at a strength.
    strengths: Vec<Row>,
    /// Of each.
    features: Vec<Row>,
}

/// What a feature at a strength, or a strength of any feature, did to `n` answers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<HookPoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature: Option<FeatureId>,
    strength: f32,
    n: u64,
    /// Of how many features and prompts, where it is of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompts: Option<usize>,
    /// The share of answers that differ from the original, of a feature with Wilson's interval: its answers are to different prompts.
    /// Those of all features are several to a prompt and several of a feature, no independent draws, and have none.
    changed: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_interval_95: Option<[f64; 2]>,
    /// Answers of which a measure is no finite number, as of a model driven beyond what its numbers can hold. They are left out of the
    /// means of that measure.
    not_finite: u64,
    /// Means over the answers for which there is a number.
    kl_first: Option<f64>,
    kl_mean: Option<f64>,
    repetition: Option<f64>,
    original_repetition: Option<f64>,
    /// Geometric means.
    perplexity: Option<f64>,
    original_perplexity: Option<f64>,
    /// Shares of answers that are the expected one, of those for which one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_expected: Option<f64>,
}

#[derive(Clone, Debug, Default)]
struct Mean {
    sum: f64,
    n: u64,
}

impl Mean {
    fn add(&mut self, number: Option<f64>) {
        if let Some(number) = number {
            self.sum += number;
            self.n += 1;
        }
    }

    fn get(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }
}

#[derive(Clone, Debug, Default)]
struct Tally {
    features: BTreeSet<FeatureKey>,
    prompts: BTreeSet<u32>,
    changed: Proportion,
    not_finite: u64,
    kl_first: Mean,
    kl_mean: Mean,
    repetition: Mean,
    original_repetition: Mean,
    /// Of logarithms.
    perplexity: Mean,
    original_perplexity: Mean,
    expected: Proportion,
    original_expected: Proportion,
}

impl Tally {
    fn add(&mut self, record: &Record) {
        self.features.insert(record.feature());
        self.prompts.insert(record.sample);
        self.changed.add(record.changed);
        if let Some(effect) = &record.effect {
            let has_all = effect.kl_first.is_some() && effect.kl_mean.is_some();
            let has_perplexity = effect.perplexity.is_some() || record.steered_tokens == 0;
            self.not_finite += u64::from(!(has_all && has_perplexity));
            self.kl_first.add(effect.kl_first);
            self.kl_mean.add(effect.kl_mean);
            self.repetition.add(effect.repetition);
            self.perplexity.add(effect.perplexity.map(f64::ln));
        }
        self.original_repetition.add(record.original_repetition);
        self.original_perplexity.add(record.original_perplexity.map(f64::ln));
        if let Some(expected) = &record.expected {
            self.expected.add(record.steered.trim() == expected.trim());
            self.original_expected.add(record.original.trim() == expected.trim());
        }
    }

    fn row(&self, feature: Option<&FeatureKey>, strength: u32) -> Row {
        // Of a feature, or of all.
        let all = feature.is_none();
        let interval = || self.changed.wilson(Confidence::P95).unwrap_or([0.0, 1.0]);
        Row {
            hook: feature.map(|key| key.hook.clone()),
            feature: feature.map(|key| key.feature),
            strength: f32::from_bits(strength),
            n: self.changed.n,
            features: all.then_some(self.features.len()),
            prompts: all.then_some(self.prompts.len()),
            changed: self.changed.share().unwrap_or_default(),
            changed_interval_95: (!all).then(interval),
            not_finite: self.not_finite,
            kl_first: self.kl_first.get(),
            kl_mean: self.kl_mean.get(),
            repetition: self.repetition.get(),
            original_repetition: self.original_repetition.get(),
            perplexity: self.perplexity.get().map(f64::exp),
            original_perplexity: self.original_perplexity.get().map(f64::exp),
            expected: self.expected.share(),
            original_expected: self.original_expected.share(),
        }
    }
}

impl Table {
    pub(crate) fn of(records: &Merged<Key, Record>) -> Result<Self> {
        let mut of_feature: BTreeMap<(FeatureKey, u32), Tally> = BTreeMap::new();
        let mut of_strength: BTreeMap<u32, Tally> = BTreeMap::new();
        for record in records.records(&any) {
            let record = record?;
            let strength = record.strength.to_bits();
            of_feature.entry((record.feature(), strength)).or_default().add(&record);
            of_strength.entry(strength).or_default().add(&record);
        }
        let strengths = of_strength.iter().map(|(&strength, tally)| tally.row(None, strength));
        let features = of_feature.iter().map(|((key, strength), tally)| tally.row(Some(key), *strength));
        Ok(Self { strengths: strengths.collect(), features: features.collect() })
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(write_whole(&folder.join(SWEEP.summary), text.as_bytes())?)
    }

    /// Prints all as JSON, or the strengths and the features that change most as a table.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            return print(&(serde_json::to_string(self)? + "\n"));
        }
        print(&self.text())
    }

    fn text(&self) -> String {
        let mut most: Vec<&Row> = self.features.iter().collect();
        most.sort_by(|one, other| {
            other
                .changed
                .total_cmp(&one.changed)
                .then(other.kl_first.unwrap_or(0.0).total_cmp(&one.kl_first.unwrap_or(0.0)))
        });
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:<28} {:>8} {:>5} {:>8} {:>15} {:>9} {:>8} {:>10} {:>10}",
            "feature", "strength", "n", "changed", "95 %", "KL first", "KL mean", "repetition", "perplexity"
        );
        for row in self.strengths.iter().chain(most.iter().take(SHOWN).copied()) {
            let name = match (&row.hook, row.feature, row.features, row.prompts) {
                (Some(hook), Some(feature), ..) => format!("{hook}:{feature}"),
                (.., Some(features), Some(prompts)) => format!("all features ({features} x {prompts})"),
                _ => "all features".to_owned(),
            };
            let number = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.3}"));
            let interval = row.changed_interval_95;
            let interval = interval.map_or("-".to_owned(), |[low, high]| format!("{low:.3} to {high:.3}"));
            let not_finite = match row.not_finite {
                0 => String::new(),
                n => format!("  {n} not finite"),
            };
            let _ = writeln!(
                text,
                "{name:<28} {:>8} {:>5} {:>8.3} {:>15} {:>9} {:>8} {:>10} {:>10}{not_finite}",
                row.strength,
                row.n,
                row.changed,
                interval,
                number(row.kl_first),
                number(row.kl_mean),
                number(row.repetition),
                number(row.perplexity)
            );
        }
        if most.len() > SHOWN {
            let _ = writeln!(text, "{} more rows are in {}", most.len() - SHOWN, SWEEP.summary);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use steering::Effect;

    use super::*;

    fn record(sample: u32, feature: u32, kl: Option<f64>, perplexity: Option<f64>) -> Record {
        Record {
            sample,
            id: None,
            hook: HookPoint::layer(2),
            feature: FeatureId(feature),
            strength: 5.0,
            prompt: "p".to_owned(),
            original: "a".to_owned(),
            steered: "b".to_owned(),
            changed: true,
            expected: None,
            original_tokens: 1,
            steered_tokens: 2,
            original_repetition: None,
            original_perplexity: Some(1.0),
            effect: Some(Effect { kl_first: kl, kl_mean: kl, repetition: None, perplexity }),
        }
    }

    #[test]
    fn what_is_not_finite_is_counted_and_shown() {
        let folder = tempfile::tempdir().unwrap();
        let records = [
            record(0, 1, Some(1.0), Some(2.0)),
            record(1, 1, None, None),
            record(0, 2, Some(3.0), None),
            record(1, 2, Some(5.0), Some(8.0)),
            record(2, 2, Some(7.0), Some(8.0)),
        ];
        let lines: String =
            records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
        std::fs::write(folder.path().join("sweep.jsonl"), lines).unwrap();
        let table = Table::of(&Merged::read(folder.path(), &SWEEP, Record::key).unwrap()).unwrap();
        let [all] = &table.strengths[..] else { panic!("{table:?}") };
        assert_eq!((all.n, all.features, all.prompts, all.not_finite), (5, Some(2), Some(3), 2));
        assert_eq!((all.changed_interval_95, all.kl_mean), (None, Some(4.0)));
        let [first, second] = &table.features[..] else { panic!("{table:?}") };
        assert_eq!((first.not_finite, second.not_finite, first.kl_mean), (1, 1, Some(1.0)));
        assert!((second.perplexity.unwrap() - 8.0).abs() < 1e-9);
        assert!(first.changed_interval_95.is_some() && first.features.is_none());
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("all features (2 x 3) ") && lines[1].ends_with("  2 not finite"),
            "{text}"
        );
        assert!(lines[2].ends_with("  1 not finite"), "{text}");
    }
}
