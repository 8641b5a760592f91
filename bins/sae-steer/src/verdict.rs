//! [`Matter`]: what a pair of answers is judged by, and [`Verdict`], what came of it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use explain::parse::SteeringEffect;
use explain::{Asked, FeatureKey, Outcome};
use explain_kit::{Explanations, short_hash};
use sae_types::{FeatureId, HookPoint};
use serde::{Deserialize, Serialize};
use stage_kit::World;
use steering::Mode;

use crate::published::Judged;
use crate::record::{Key, Record};
use crate::store::{Merged, SWEEP, Store, any};

/// A line of `judge.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdict {
    sample: u32,
    hook: HookPoint,
    feature: FeatureId,
    strength: f32,
    /// One of the four words, or why there is none.
    pub(crate) outcome: Outcome,
    /// The start of the SHA-256 of the explanation, what was done to the feature, and both answers.
    about: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<Asked>,
}

impl Verdict {
    pub(crate) fn key(&self) -> Key {
        let feature = FeatureKey { hook: self.hook.clone(), feature: self.feature };
        (self.sample, feature, self.strength.to_bits())
    }

    pub(crate) fn of(record: &Record, about: String, outcome: Outcome, asked: Option<Asked>) -> Self {
        let (hook, feature) = (record.hook.clone(), record.feature);
        let (sample, strength) = (record.sample, record.strength);
        Self { sample, hook, feature, strength, outcome, about, asked }
    }

    fn effect(&self) -> Option<SteeringEffect> {
        let Outcome::Answered(word) = &self.outcome else { return None };
        SteeringEffect::ALL.into_iter().find(|effect| effect.name() == word)
    }

    /// What it counts beside others of the same key, where `about` is what is asked about now.
    fn worth(&self, about: &str) -> u8 {
        let outcome = match self.outcome {
            Outcome::Answered(_) | Outcome::Unable => 3,
            Outcome::Unparsed => 2,
            Outcome::Failed(_) => 1,
            Outcome::Skipped(_) => 0,
        };
        outcome + if self.about == about { 4 } else { 0 }
    }
}

/// What a pair of answers is judged by.
pub(crate) struct Matter {
    explanations: Explanations,
    mode: Mode,
}

/// A question: a pair of answers with what was done, and what it is told by.
pub(crate) struct Asking {
    pub(crate) record: Record,
    pub(crate) explanation: String,
    pub(crate) change: String,
    pub(crate) about: String,
}

/// What came of a record.
pub(crate) struct Found<'m> {
    explanation: &'m str,
    pub(crate) verdict: Option<Verdict>,
    /// What the change did: nothing, where the answer did not change.
    pub(crate) effect: Option<SteeringEffect>,
}

impl Matter {
    /// What the sweep in a folder did to features, and what these are about.
    pub(crate) fn new(sweep: &Path, explanations: Explanations) -> Result<Self> {
        let settings = SWEEP.settings(sweep)?;
        let named = settings.get("--mode").with_context(|| {
            format!("run.json in {} does not say how features were changed (--mode)", sweep.display())
        })?;
        Ok(Self { explanations, mode: named.parse()? })
    }

    /// The explanation of a record's feature, what was done to it, and the hash of what is asked about.
    fn of<'m>(&'m self, record: &Record) -> Option<(&'m String, String, String)> {
        let explanation = self.explanations.texts.get(&record.feature())?;
        let change = change(self.mode, record.strength);
        let about =
            short_hash(&[explanation.as_str(), &change, &record.original, &record.steered].join("\0"));
        Some((explanation, change, about))
    }

    /// The keys of changed answers that need asking, of a worker's share; and how many features have no explanation.
    pub(crate) fn open<'s>(
        &self,
        retry_failed: bool,
        swept: &'s Merged<Key, Record>,
        store: &Store<Key, Verdict>,
        world: World,
    ) -> Result<(Vec<&'s Key>, u64)> {
        let (mut open, mut without) = (Vec::new(), BTreeSet::new());
        let mut at = 0;
        for key in swept.keys() {
            let Some(record) = swept.get(key, &any)? else { continue };
            let Some((_, _, about)) = self.of(&record) else {
                without.insert(&key.1);
                continue;
            };
            if !record.changed {
                continue;
            }
            at += 1;
            let before = store.get(key, &|verdict| verdict.worth(&about))?;
            let before = before.filter(|before| before.about == about);
            let failed =
                |verdict: &Verdict| matches!(verdict.outcome, Outcome::Failed(_) | Outcome::Unparsed);
            let done = before.is_some_and(|before| !(retry_failed && failed(&before)));
            if (at - 1) % world.size == world.rank && !done {
                open.push(key);
            }
        }
        if !without.is_empty() {
            tracing::warn!("{} features of the sweep have no explanation and are passed over", without.len());
        }
        Ok((open, without.len() as u64))
    }

    /// What is asked of an answer, read when its turn comes.
    pub(crate) fn asking(&self, swept: &Merged<Key, Record>, key: &Key) -> Result<Asking> {
        let record = swept.get(key, &any)?.context("a record of the sweep is gone")?;
        let (explanation, change, about) = self.of(&record).context("an explanation is gone")?;
        Ok(Asking { explanation: explanation.clone(), change, about, record })
    }

    /// What came of a record; `None` where its feature has no explanation.
    pub(crate) fn found(
        &self,
        record: &Record,
        verdicts: &Merged<Key, Verdict>,
    ) -> Result<Option<Found<'_>>> {
        let Some((explanation, _, about)) = self.of(record) else { return Ok(None) };
        let verdict = verdicts.get(&record.key(), &|verdict| verdict.worth(&about))?;
        let verdict = verdict.filter(|verdict| verdict.about == about);
        let effect = if record.changed {
            verdict.as_ref().and_then(Verdict::effect)
        } else {
            Some(SteeringEffect::None)
        };
        Ok(Some(Found { explanation, verdict, effect }))
    }

    /// What multimodal-sae's file says of it.
    pub(crate) fn judged(&self, record: &Record, verdicts: &Merged<Key, Verdict>) -> Result<Option<Judged>> {
        let Some(Found { explanation, effect: Some(effect), .. }) = self.found(record, verdicts)? else {
            return Ok(None);
        };
        Ok(Some(Judged { explanation: explanation.to_owned(), category: (effect as u8 + 1).to_string() }))
    }
}

/// What was done to a feature, as the rest of "it was changed: ..".
fn change(mode: Mode, strength: f32) -> String {
    match mode {
        Mode::Ablate => "switched off".to_owned(),
        Mode::Clamp if strength == 0.0 => "held at 0, that is, switched off".to_owned(),
        Mode::Clamp => format!("held at {strength}"),
        Mode::Add if strength < 0.0 => format!("turned down by {}", -strength),
        Mode::Add => format!("turned up by {strength}"),
        Mode::Scale => format!("multiplied by {strength}"),
        Mode::Orthogonal => format!("its direction in the model's state was set to {strength}"),
        Mode::Cap => format!("kept from being above {strength}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_worded_by_mode_and_strength() {
        for (mode, strength, words) in [
            (Mode::Clamp, 20.0, "held at 20"),
            (Mode::Clamp, 0.0, "held at 0, that is, switched off"),
            (Mode::Add, -5.5, "turned down by 5.5"),
            (Mode::Add, 5.5, "turned up by 5.5"),
            (Mode::Scale, 0.5, "multiplied by 0.5"),
            (Mode::Ablate, 50.0, "switched off"),
            (Mode::Orthogonal, 3.0, "its direction in the model's state was set to 3"),
            (Mode::Cap, 1.0, "kept from being above 1"),
        ] {
            assert_eq!(change(mode, strength), words);
        }
    }

    #[test]
    fn a_verdict_on_what_is_asked_now_counts_before_any_other() {
        let verdict = |about: &str, outcome| Verdict {
            sample: 0,
            hook: HookPoint::layer(1),
            feature: FeatureId(2),
            strength: 3.0,
            outcome,
            about: about.to_owned(),
            asked: None,
        };
        let answered = || Outcome::Answered("mention".to_owned());
        let order = [
            verdict("old", Outcome::Failed(String::new())),
            verdict("old", Outcome::Unparsed),
            verdict("old", answered()),
            verdict("now", Outcome::Failed(String::new())),
            verdict("now", Outcome::Unparsed),
            verdict("now", answered()),
        ];
        assert!(order.windows(2).all(|two| two[0].worth("now") < two[1].worth("now")));
    }
}
