//! [`Plan`]: what is done to which features, on which tokens.

use std::collections::BTreeMap;
use std::str::FromStr;

use sae_types::{FeatureId, HookPoint};
use serde::{Deserialize, Serialize};

/// What is done to a feature.
///
/// `z` is the feature's activation on a token, 0 where it is not among those the autoencoder keeps; `d` its row of the decoder;
/// `x` the hidden state; `v` the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `z := v`, so `x + (v - z) d`.
    #[default]
    Clamp,
    /// `z := z + v`, so `x + v d`, whether the feature is on or not.
    Add,
    /// `z := v z`, so `x + (v - 1) z d`.
    Scale,
    /// `z := 0`, so `x - z d`. It has no value.
    Ablate,
    /// With `u = d / |d|`: `x := x + (v - <x, u>) u`. What the hidden state has in the direction of the row is replaced by `v`,
    /// whatever the encoder makes of it. Done after all other changes; of several features in the order of their numbers.
    Orthogonal,
    /// `z := min(z, v)`, so `x + min(0, v - z) d`.
    Cap,
}

/// A name that is none of those it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} is none of {known}")]
pub struct NameError {
    /// What was given.
    pub got: String,
    /// What may be given.
    pub known: String,
}

/// Names of an enum's cases, for flags and files.
macro_rules! names {
    ($name:ident: $($case:ident = $text:literal),+) => {
        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$case),+];

            /// Its name in flags and files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$case => $text),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let found = Self::ALL.iter().find(|case| case.name() == text).copied();
                let known = || Self::ALL.iter().map(|case| case.name()).collect::<Vec<_>>().join(", ");
                found.ok_or_else(|| NameError { got: text.to_owned(), known: known() })
            }
        }
    };
}

names!(Mode: Clamp = "clamp", Add = "add", Scale = "scale", Ablate = "ablate", Orthogonal = "orthogonal", Cap = "cap");

/// On which tokens features are changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Where {
    /// On all of prompt and answer.
    #[default]
    All,
    /// On those that stand for an image, the newlines of its rows included.
    Image,
    /// On those that do not, what is generated included.
    Text,
    /// On the last of the prompt, from which the first new token comes.
    Last,
    /// On those that were generated. The first of them comes of the prompt, so the second is the first to be steered.
    Generated,
}

names!(Where: All = "all", Image = "image", Text = "text", Last = "last", Generated = "generated");

/// In which part of a generation features are changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// While the prompt is read.
    Prefill,
    /// While the answer is written.
    Decoding,
    /// In both.
    #[default]
    Both,
}

names!(When: Prefill = "prefill", Decoding = "decoding", Both = "both");

/// Among which activations features are changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Among those that the autoencoder keeps; the others stay as they are.
    #[default]
    AfterTopK,
    /// Among all activations after ReLU. The autoencoder then keeps the largest of what comes of it: a feature that is raised
    /// drives another out, one that is put out lets another in, and one that is too small for its new place is off.
    BeforeTopK,
}

/// What becomes of the part of the hidden state that the autoencoder does not reconstruct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorTerm {
    /// It stays. A plan that changes nothing leaves the hidden state as it is, bit for bit.
    #[default]
    Keep,
    /// It is lost at the hook points of the plan, on every token of every pass, also where no feature is changed. Other rows of a
    /// batch keep theirs at hook points that their own plans do not name.
    Drop,
}

/// A feature's change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// What is done.
    pub mode: Mode,
    /// `v` of [`Mode`]; of no account to [`Mode::Ablate`].
    pub value: f32,
}

/// What is done to which features, on which tokens. Without a feature, and with the error kept, nothing is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The changes, by hook point and feature.
    pub changes: BTreeMap<HookPoint, BTreeMap<FeatureId, Change>>,
    /// On which tokens.
    pub place: Where,
    /// In which part of a generation.
    pub time: When,
    /// Before or after the autoencoder chooses what it keeps.
    pub stage: Stage,
    /// Whether what is not reconstructed stays.
    pub error: ErrorTerm,
}

impl Plan {
    /// What multimodal-sae does: features are set before TopK on the whole prompt and left alone while the answer is written, and
    /// the reconstruction takes the place of the hidden state on every token of every pass.
    pub fn msae() -> Self {
        Self { time: When::Prefill, stage: Stage::BeforeTopK, error: ErrorTerm::Drop, ..Self::default() }
    }

    /// The same with one more feature; what was planned for that feature is replaced.
    #[must_use]
    pub fn with(mut self, hook: HookPoint, feature: FeatureId, change: Change) -> Self {
        self.insert(hook, feature, change);
        self
    }

    /// Plans a feature's change; gives what was planned for it before.
    pub fn insert(&mut self, hook: HookPoint, feature: FeatureId, change: Change) -> Option<Change> {
        self.changes.entry(hook).or_default().insert(feature, change)
    }

    /// All changes, ascending by hook point and feature.
    pub fn all(&self) -> impl Iterator<Item = (&HookPoint, FeatureId, Change)> {
        self.changes.iter().flat_map(|(hook, changes)| {
            changes.iter().map(move |(&feature, &change)| (hook, feature, change))
        })
    }

    /// Whether no feature is to be changed.
    pub fn is_empty(&self) -> bool {
        self.changes.values().all(BTreeMap::is_empty)
    }

    /// Whether place and time have no token in common.
    pub(crate) fn is_nowhere(&self) -> bool {
        matches!(
            (self.place, self.time),
            (Where::Image | Where::Last, When::Decoding) | (Where::Generated, When::Prefill)
        )
    }
}

/// A feature as flags and requests name it: `[HOOK:]FEATURE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The hook point; `None` where there is only one to steer at.
    pub hook: Option<HookPoint>,
    /// The feature.
    pub feature: FeatureId,
}

/// A text that names no feature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// What stands before the colon.
    #[error(transparent)]
    Hook(#[from] sae_types::HookPointError),
    /// What stands behind it.
    #[error("{text:?} is no number of a feature")]
    Feature {
        /// What was given.
        text: String,
    },
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (hook, feature) = match text.rsplit_once(':') {
            Some((hook, feature)) => (Some(hook), feature),
            None => (None, text),
        };
        let hook = hook.map(str::parse).transpose()?;
        let feature = feature.parse().map_err(|_| TargetError::Feature { text: feature.to_owned() })?;
        Ok(Self { hook, feature: FeatureId(feature) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let parse = |text: &str| text.parse::<Target>();
        let feature = FeatureId(17);
        assert_eq!(parse("17").unwrap(), Target { hook: None, feature });
        let hook = Some(HookPoint::layer(2));
        assert_eq!(parse("model.layers.2:17").unwrap(), Target { hook, feature });
        for wrong in ["", "x", "-1", ":3", "a b:3", "model.layers.2:"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for &mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let error = "later".parse::<When>().unwrap_err();
        assert_eq!(error.to_string(), "\"later\" is none of prefill, decoding, both");
    }
}
