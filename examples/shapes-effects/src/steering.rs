//! How often clamping a feature turns an answer into its concept.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sae_types::FeatureId;
use scoring::{Confidence, Proportion};
use serde::{Deserialize, Serialize};

use crate::ask::Features;

/// What is read of a line of `sweep.jsonl`.
#[derive(Deserialize)]
struct Line {
    /// The question's number in the file.
    sample: u32,
    feature: FeatureId,
    original: String,
    steered: String,
}

/// A share with its interval.
#[derive(Debug, Serialize)]
pub(crate) struct Share {
    pub(crate) n: u64,
    pub(crate) share: Option<f64>,
    pub(crate) interval_99: Option<[f64; 2]>,
}

/// What became of the answers.
#[derive(Debug, Serialize)]
pub(crate) struct Steering {
    pub(crate) scenes: usize,
    /// Answers that were the concept before anything was clamped.
    pub(crate) before: Share,
    /// With the feature that is explained as the concept clamped.
    pub(crate) named: Share,
    /// With a random feature clamped to the same value.
    pub(crate) random: Share,
    /// What was answered to each question, by its number, as the model is and with the named feature clamped.
    #[serde(skip)]
    pub(crate) answers: BTreeMap<u32, (String, String)>,
}

impl From<Proportion> for Share {
    fn from(proportion: Proportion) -> Self {
        let (n, share) = (proportion.n, proportion.share());
        Self { n, share, interval_99: proportion.wilson(Confidence::P99) }
    }
}

/// Reads the ledger of `sae-steer sweep`.
pub(crate) fn judge(sweep: &Path, features: &Features, concept: &str) -> Result<Steering> {
    let path = sweep.join("sweep.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_concept = |answer: &str| answer.trim() == concept;
    let mut answers = BTreeMap::new();
    let [mut before, mut named, mut random] = [Proportion::default(); 3];
    for (number, line) in text.lines().enumerate() {
        let line: Line = serde_json::from_str(line)
            .with_context(|| format!("line {} of {}", number + 1, path.display()))?;
        if line.feature == features.named {
            before.add(is_concept(&line.original));
            named.add(is_concept(&line.steered));
            answers.insert(line.sample, (line.original, line.steered));
        } else {
            ensure!(features.random.contains(&line.feature), "feature {} was not asked for", line.feature);
            random.add(is_concept(&line.steered));
        }
    }
    ensure!(named.n > 0 && random.n > 0, "{} lacks the feature or all others", path.display());
    let [before, named, random] = [before, named, random].map(Share::from);
    Ok(Steering { scenes: answers.len(), before, named, random, answers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_apart() {
        let folder = tempfile::tempdir().unwrap();
        let line = |sample: u32, feature: u32, steered: &str| {
            format!(
                r#"{{"sample":{sample},"feature":{feature},"original":"blue","steered":"{steered}","x":1}}"#
            )
        };
        let lines = [
            line(0, 3, "red"),
            line(1, 3, " red "),
            line(0, 5, "red"),
            line(1, 5, "blue"),
            line(1, 6, "reds"),
        ];
        fs::write(folder.path().join("sweep.jsonl"), lines.join("\n")).unwrap();
        let hook = "model.layers.2".parse().unwrap();
        let features = Features { hook, named: FeatureId(3), random: vec![FeatureId(5), FeatureId(6)] };
        let steering = judge(folder.path(), &features, "red").unwrap();
        assert_eq!((steering.scenes, steering.before.share), (2, Some(0.0)));
        assert_eq!(steering.answers[&1], ("blue".to_owned(), " red ".to_owned()));
        assert_eq!((steering.named.n, steering.named.share), (2, Some(1.0)));
        assert_eq!((steering.random.n, steering.random.share), (3, Some(1.0 / 3.0)));
        let other = Features { random: vec![FeatureId(5)], ..features };
        assert!(judge(folder.path(), &other, "red").is_err());
    }
}
