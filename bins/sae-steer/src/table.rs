//! [`Table`]: what moved, per feature and strength.

use std::collections::BTreeMap;
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
use crate::store::Merged;

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
    /// The share of answers that differ from the original, with Wilson's interval.
    changed: f64,
    changed_interval_95: [f64; 2],
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
    changed: Proportion,
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
        self.changed.add(record.changed);
        if let Some(effect) = &record.effect {
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
        Row {
            hook: feature.map(|key| key.hook.clone()),
            feature: feature.map(|key| key.feature),
            strength: f32::from_bits(strength),
            n: self.changed.n,
            changed: self.changed.share().unwrap_or_default(),
            changed_interval_95: self.changed.wilson(Confidence::P95).unwrap_or([0.0, 1.0]),
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
        for record in records.records() {
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
        Ok(write_whole(&folder.join("effects.json"), text.as_bytes())?)
    }

    /// Prints all as JSON, or the strengths and the features that change most as a table.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            return print(&(serde_json::to_string(self)? + "\n"));
        }
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
            let name = match (&row.hook, row.feature) {
                (Some(hook), Some(feature)) => format!("{hook}:{feature}"),
                _ => "all features".to_owned(),
            };
            let number = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.3}"));
            let [low, high] = row.changed_interval_95;
            let _ = writeln!(
                text,
                "{name:<28} {:>8} {:>5} {:>8.3} {:>15} {:>9} {:>8} {:>10} {:>10}",
                row.strength,
                row.n,
                row.changed,
                format!("{low:.3} to {high:.3}"),
                number(row.kl_first),
                number(row.kl_mean),
                number(row.repetition),
                number(row.perplexity)
            );
        }
        if most.len() > SHOWN {
            let _ = writeln!(text, "{} more rows are in effects.json", most.len() - SHOWN);
        }
        print(&text)
    }
}
