//! How often clamping a feature turns an answer into its concept.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use chat_client::Ledger;
use sae_types::{FeatureId, HookPoint};
use scoring::{Confidence, Proportion};
use serde::{Deserialize, Serialize};

use crate::ask::Features;

/// What is read of a line of `sweep.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// The question's number in the file.
    sample: u32,
    hook: HookPoint,
    feature: FeatureId,
    strength: f32,
    original: String,
    steered: String,
}

/// A share, with its interval where answers are independent: one to a scene.
#[derive(Debug, Serialize)]
pub(crate) struct Share {
    pub(crate) n: u64,
    pub(crate) share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interval_99: Option<[f64; 2]>,
}

impl Share {
    /// Of answers of which each scene gives one.
    fn of_scenes(proportion: Proportion) -> Self {
        Self { interval_99: proportion.wilson(Confidence::P99), ..Self::pooled(proportion) }
    }

    /// Of several answers, or several features, of each scene: they go together, so that there is no interval.
    pub(crate) fn pooled(proportion: Proportion) -> Self {
        Self { n: proportion.n, share: proportion.share(), interval_99: None }
    }
}

/// What became of the answers.
#[derive(Debug, Serialize)]
pub(crate) struct Steering {
    pub(crate) scenes: usize,
    /// What features were held at.
    pub(crate) strength: f32,
    /// Answers that were the concept before anything was clamped.
    pub(crate) before: Share,
    /// With the feature that is explained as the concept clamped.
    pub(crate) named: Share,
    /// With a random feature clamped to the same value, over all of them and all scenes.
    pub(crate) random: Share,
    /// The share of each random feature.
    pub(crate) random_features: BTreeMap<FeatureId, Share>,
    /// What was answered to each question, by its number, as the model is and with the named feature clamped.
    #[serde(skip)]
    pub(crate) answers: BTreeMap<u32, (String, String)>,
}

/// Reads the ledger of `sae-steer sweep`: one strength of the features at one hook point.
pub(crate) fn judge(sweep: &Path, features: &Features, concept: &str) -> Result<Steering> {
    let path = sweep.join("sweep.jsonl");
    let key = |line: &Line| (line.sample, line.hook.clone(), line.feature, line.strength.to_bits());
    let ledger = Ledger::read(&path, key).with_context(|| format!("cannot read {}", path.display()))?;
    let is_concept = |answer: &str| answer.trim() == concept;
    let (mut answers, mut strength) = (BTreeMap::new(), None);
    let [mut before, mut named, mut random] = [Proportion::default(); 3];
    let mut each: BTreeMap<FeatureId, Proportion> = BTreeMap::new();
    for line in ledger.items() {
        let line: Line = line?;
        ensure!(
            line.hook == features.hook,
            "{} is of {}, not of {}",
            path.display(),
            line.hook,
            features.hook
        );
        let first = *strength.get_or_insert(line.strength);
        ensure!(
            line.strength == first,
            "{} holds answers at {first} and at {}: one strength at a time",
            path.display(),
            line.strength
        );
        if line.feature == features.named {
            before.add(is_concept(&line.original));
            named.add(is_concept(&line.steered));
            answers.insert(line.sample, (line.original, line.steered));
        } else {
            ensure!(features.random.contains(&line.feature), "feature {} was not asked for", line.feature);
            random.add(is_concept(&line.steered));
            each.entry(line.feature).or_default().add(is_concept(&line.steered));
        }
    }
    let Some(strength) = strength.filter(|_| named.n > 0 && random.n > 0) else {
        bail!("{} lacks the feature or all others", path.display());
    };
    let [before, named] = [before, named].map(Share::of_scenes);
    let random_features = each.into_iter().map(|(feature, own)| (feature, Share::of_scenes(own))).collect();
    let random = Share::pooled(random);
    Ok(Steering { scenes: answers.len(), strength, before, named, random, random_features, answers })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn answers_are_counted_apart() {
        let folder = tempfile::tempdir().unwrap();
        let line = |sample: u32, feature: u32, steered: &str| {
            let text = r#"{"sample":S,"hook":"model.layers.2","feature":F,"strength":150.0,"original":"blue","steered":"T","x":1}"#;
            text.replace('S', &sample.to_string()).replace('F', &feature.to_string()).replace('T', steered)
        };
        let lines = [
            line(0, 3, "red"),
            line(1, 3, " red "),
            line(0, 5, "red"),
            line(1, 5, "blue"),
            line(1, 6, "green"),
            // Of several lines about the same the last counts.
            line(1, 6, "reds"),
        ];
        let hook = "model.layers.2".parse().unwrap();
        let features = Features { hook, named: FeatureId(3), random: vec![FeatureId(5), FeatureId(6)] };
        let of = |lines: &[String], features: &Features| {
            let text = lines.join("\n") + "\n";
            fs::write(folder.path().join("sweep.jsonl"), text).unwrap();
            judge(folder.path(), features, "red")
        };
        let steering = of(&lines, &features).unwrap();
        assert_eq!((steering.scenes, steering.strength, steering.before.share), (2, 150.0, Some(0.0)));
        assert_eq!(steering.answers[&1], ("blue".to_owned(), " red ".to_owned()));
        assert_eq!((steering.named.n, steering.named.share), (2, Some(1.0)));
        assert!(steering.named.interval_99.is_some() && steering.random.interval_99.is_none());
        assert_eq!((steering.random.n, steering.random.share), (3, Some(1.0 / 3.0)));
        assert_eq!(steering.random_features[&FeatureId(5)].share, Some(0.5));
        let fails = |lines: &[String], features: &Features, says: &str| {
            let error = of(lines, features).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        let other = Features { random: vec![FeatureId(5)], hook: features.hook.clone(), ..features };
        fails(&lines, &other, "feature 6 was not asked for");
        fails(&lines[..2], &features, "lacks the feature or all others");
        let with = |last: &str, now: &str| [&lines[..5], &[lines[4].replace(last, now)]].concat();
        fails(&with("150.0", "50.0"), &features, "at 150 and at 50");
        fails(
            &with("model.layers.2", "model.layers.1"),
            &features,
            "of model.layers.1, not of model.layers.2",
        );
    }
}
