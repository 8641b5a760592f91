//! [`Record`]: what became of asking about one feature, a line of a ledger.

use std::str::FromStr;

use sae_types::{FeatureId, HookPoint, SampleId};
use serde::{Deserialize, Serialize};

/// A feature of a hook point. As text it is what published explanation files name it: `model.layers.24_feature12`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeatureKey {
    /// The hook point.
    pub hook: HookPoint,
    /// The feature.
    pub feature: FeatureId,
}

/// What became of asking about one feature. As JSON it is one line of a ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The hook point.
    pub hook: HookPoint,
    /// The feature.
    pub feature: FeatureId,
    /// What came of it.
    pub outcome: Outcome,
    /// The samples that were shown, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shown: Vec<Shown>,
    /// The start of the SHA-256 of the text that was asked about; absent where the question was about the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// What was asked and answered; absent where nothing was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// An answer: an explanation, an entity, a label or a verdict.
    Answered(String),
    /// The model said that there is nothing to say.
    Unable,
    /// The model answered, however often it was asked, nothing that could be read.
    Unparsed,
    /// Nothing was asked, for this reason.
    Skipped(String),
    /// Something went wrong: this.
    Failed(String),
}

/// A sample that was shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// The sample.
    pub sample: SampleId,
    /// What it was picked by; 0 for a counterexample.
    pub score: f64,
    /// Whether it is a counterexample, in which the feature is off, or of which another part was lit than where it is on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not: bool,
    /// Whether a counterexample was looked for among samples in which what often comes with the feature is on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hard: bool,
    /// Whether a judge said that the explanation fits; absent where it was not asked, or no answer of it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<bool>,
    /// The probability that it gave to that, 0 to 1; absent where the server gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
}

/// What was asked and answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The last answer, as it came; empty if there was none.
    pub answer: String,
    /// The model that answered, as the server calls it.
    pub model: String,
    /// The start of the SHA-256 of the instructions.
    pub prompt: String,
    /// How often an answer was asked for; more than once where the first could not be read.
    pub asks: u32,
    /// How many requests that took, those included that the server refused or did not answer.
    pub attempts: u32,
    /// Tokens of all prompts, pictures included, as the server counts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
}

impl Shown {
    /// A sample in which the feature is on, picked by `score`.
    pub fn example(sample: SampleId, score: f64) -> Self {
        Self { sample, score, not: false, hard: false, verdict: None, probability: None }
    }

    /// A sample that is shown as one that does not fit.
    pub fn counterexample(sample: SampleId) -> Self {
        Self { not: true, ..Self::example(sample, 0.0) }
    }
}

impl Asked {
    /// Adds what another question about the same feature took; answers stand below each other. Times overlap: the longer one counts.
    pub fn add(&mut self, other: Self) {
        let Self { answer, model, prompt, asks, attempts, prompt_tokens, completion_tokens, seconds } = other;
        if !self.answer.is_empty() && !answer.is_empty() {
            self.answer.push('\n');
        }
        self.answer += answer.trim();
        if !model.is_empty() {
            self.model = model;
        }
        self.prompt = prompt;
        self.asks += asks;
        self.attempts += attempts;
        self.prompt_tokens += prompt_tokens;
        self.completion_tokens += completion_tokens;
        self.seconds = self.seconds.max(seconds);
    }
}

impl Record {
    /// A record of a feature that nothing was asked about.
    pub fn of(key: &FeatureKey, outcome: Outcome) -> Self {
        let (hook, feature) = (key.hook.clone(), key.feature);
        Self { hook, feature, outcome, shown: Vec::new(), about: None, asked: None }
    }

    /// Whose record it is.
    pub fn key(&self) -> FeatureKey {
        FeatureKey { hook: self.hook.clone(), feature: self.feature }
    }
}

/// A text that names no feature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no feature: expected a name such as model.layers.24_feature12")]
pub struct FeatureKeyError {
    /// What was given.
    pub text: String,
}

impl std::fmt::Display for FeatureKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_feature{}", self.hook, self.feature)
    }
}

impl FromStr for FeatureKey {
    type Err = FeatureKeyError;

    fn from_str(text: &str) -> Result<Self, FeatureKeyError> {
        let parts = text.rsplit_once("_feature");
        let parsed = parts.and_then(|(hook, feature)| {
            Some(Self { hook: HookPoint::new(hook).ok()?, feature: FeatureId(feature.parse().ok()?) })
        });
        parsed.ok_or_else(|| FeatureKeyError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_sorted_by_number() {
        let key: FeatureKey = "model.layers.24_feature12".parse().unwrap();
        assert_eq!(key, FeatureKey { hook: HookPoint::layer(24), feature: FeatureId(12) });
        assert_eq!(key.to_string(), "model.layers.24_feature12");
        assert!("model.layers.24_feature9".parse::<FeatureKey>().unwrap() < key);
        for bad in ["model.layers.24", "model.layers.24_feature", "_feature1", "../x_feature1", "a_feature-1"]
        {
            assert!(bad.parse::<FeatureKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_says_no_more_than_there_is() {
        let key: FeatureKey = "model.layers.3_feature7".parse().unwrap();
        let record = Record::of(&key, Outcome::Skipped("too rare".to_owned()));
        let line = r#"{"hook":"model.layers.3","feature":7,"outcome":{"skipped":"too rare"}}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), line);
        assert_eq!(serde_json::from_str::<Record>(line).unwrap(), record);
        assert!(serde_json::from_str::<Record>(&line.replace("feature", "features")).is_err());
        let shown = r#"{"sample":3,"score":0.5}"#;
        assert_eq!(serde_json::from_str::<Shown>(shown).unwrap(), Shown::example(SampleId(3), 0.5));
        assert_eq!(serde_json::to_string(&Shown::example(SampleId(3), 0.5)).unwrap(), shown);
        let judged = Shown { verdict: Some(false), ..Shown::counterexample(SampleId(4)) };
        let line = r#"{"sample":4,"score":0.0,"not":true,"verdict":false}"#;
        assert_eq!(serde_json::to_string(&judged).unwrap(), line);
    }

    #[test]
    fn what_several_questions_took_is_summed() {
        let one = |answer: &str, seconds: f64| Asked {
            answer: answer.to_owned(),
            model: "m".to_owned(),
            prompt: "p".to_owned(),
            asks: 1,
            attempts: 2,
            prompt_tokens: 30,
            completion_tokens: 4,
            seconds,
        };
        let mut all = Asked::default();
        for asked in [one("[ANSWER]: 1\n", 0.5), Asked::default(), one("0", 0.25)] {
            all.add(Asked { prompt: "p".to_owned(), ..asked });
        }
        let twice = Asked {
            asks: 2,
            attempts: 4,
            prompt_tokens: 60,
            completion_tokens: 8,
            ..one("[ANSWER]: 1\n0", 0.5)
        };
        assert_eq!(all, twice);
    }
}
