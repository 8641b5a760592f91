//! Whether explanations name the concepts that features stand for, beside what needs no explainer to get right.

use std::collections::{BTreeMap, BTreeSet};

use explain::parse::{Answer, published};
use scoring::{Confidence, Proportion, Summary};
use serde_json::{Value, json};

/// How explanations of specific features compare with the annotated concepts.
#[derive(Debug)]
pub(crate) struct Naming {
    /// Explanations that say exactly the concept's words.
    pub(crate) exact: Proportion,
    /// Features about which the explainer had nothing to say, or was not asked.
    pub(crate) unsaid: usize,
    /// Mean overlap of words: those in both over those in either.
    pub(crate) words: Option<Summary>,
    /// The constant answer that would be right most often, with how often that is.
    pub(crate) constant: (String, Proportion),
    /// How often the explanation of another feature, drawn at random, is right: the mean over all pairs.
    pub(crate) other: f64,
}

impl Naming {
    /// From each feature's concept with what was said of it.
    pub(crate) fn of<'a>(features: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Self {
        let pairs: Vec<(BTreeSet<String>, BTreeSet<String>)> =
            features.map(|(concept, said)| (words(concept), words(said.unwrap_or_default()))).collect();
        let overlap = |(concept, said): &(BTreeSet<String>, BTreeSet<String>)| {
            concept.intersection(said).count() as f64 / concept.union(said).count() as f64
        };
        let mut concepts: BTreeMap<&BTreeSet<String>, u64> = BTreeMap::new();
        let mut explanations: BTreeMap<&BTreeSet<String>, u64> = BTreeMap::new();
        for (concept, said) in &pairs {
            *concepts.entry(concept).or_default() += 1;
            *explanations.entry(said).or_default() += 1;
        }
        let n = pairs.len() as u64;
        let exact: Proportion = pairs.iter().map(|(concept, said)| concept == said).collect();
        // Of all ordered pairs of features, those in which the second's explanation is the first's concept.
        let matching: u64 = concepts.iter().map(|(words, n)| n * explanations.get(words).unwrap_or(&0)).sum();
        // The first of equals, in the order of the words.
        let constant = concepts.iter().rev().max_by_key(|&(_, n)| n);
        let constant = constant.map_or((String::new(), 0), |(words, &n)| {
            (words.iter().map(String::as_str).collect::<Vec<_>>().join(" "), n)
        });
        Self {
            exact,
            unsaid: pairs.iter().filter(|(_, said)| said.is_empty()).count(),
            words: Summary::of(pairs.iter().map(overlap)),
            constant: (constant.0, Proportion { yes: constant.1, n }),
            other: if n > 1 { (matching - exact.yes) as f64 / (n * (n - 1)) as f64 } else { f64::NAN },
        }
    }

    /// The figures for a program to read.
    pub(crate) fn json(&self) -> Value {
        json!({
            "n": self.exact.n,
            "exact": self.exact.share(),
            "interval_99": self.exact.wilson(Confidence::P99),
            "unsaid": self.unsaid,
            "word_overlap": self.words.map(|summary| summary.mean),
            "constant_answer": self.constant.0,
            "constant_exact": self.constant.1.share(),
            "other_features_explanation_exact": (!self.other.is_nan()).then_some(self.other),
        })
    }
}

/// The words that count, in no order; none where there was nothing to say.
fn words(text: &str) -> BTreeSet<String> {
    const PASSED_OVER: [&str; 4] = ["a", "an", "the", "and"];
    let Answer::Given(text) = published(text) else { return BTreeSet::new() };
    text.split(|c: char| !c.is_alphanumeric())
        .map(str::to_lowercase)
        .filter(|word| !word.is_empty() && !PASSED_OVER.contains(&word.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_baselines_worked_by_hand() {
        let naming = Naming::of(
            [
                ("red", Some("Red.")),
                ("red", Some("a red circle")),
                ("blue square", Some("square blue")),
                ("ring", Some("Unable to produce descriptions")),
                ("ring", None),
            ]
            .into_iter(),
        );
        assert_eq!(naming.exact, Proportion { yes: 2, n: 5 });
        assert_eq!(naming.unsaid, 2);
        // 1, 1/2, 1, 0, 0.
        assert!((naming.words.unwrap().mean - 0.5).abs() < 1e-12);
        assert_eq!(naming.constant, ("red".to_owned(), Proportion { yes: 2, n: 5 }));
        // Of 20 pairs only the second feature's concept with the first's explanation.
        assert!((naming.other - 0.05).abs() < 1e-12);
        assert!(naming.json()["constant_exact"] == 0.4);
    }
}
