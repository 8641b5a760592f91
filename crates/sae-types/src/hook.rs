//! [`HookPoint`]: a module named by its dotted path.

use serde::{Deserialize, Serialize};

/// The dotted path of a module whose output is read or replaced, relative to the language model as
/// msae has it: `model.layers.24`, `model.layers.24.mlp`, `model.layers.24.self_attn`; the vision tower
/// (`vision_tower.vision_model.encoder.layers.3`) and the projector (`multi_modal_projector`) by their own names.
///
/// Segments are ASCII letters, digits and underscores, so a hook point is also a safe folder name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HookPoint(String);

/// Why a string is not a [`HookPoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no hook point: expected a dotted module path such as model.layers.24")]
pub struct HookPointError {
    /// What was given.
    pub text: String,
}

impl HookPoint {
    /// Checks and takes a module path.
    ///
    /// # Errors
    /// When a segment is empty or holds anything but ASCII letters, digits and underscores.
    pub fn new(path: impl Into<String>) -> Result<Self, HookPointError> {
        let path = path.into();
        let sound = |segment: &str| {
            !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if path.split('.').all(sound) { Ok(Self(path)) } else { Err(HookPointError { text: path }) }
    }

    /// The output of decoder layer `layer`, `model.layers.{layer}`.
    pub fn layer(layer: usize) -> Self {
        Self(format!("model.layers.{layer}"))
    }

    /// The dotted path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path with dots as underscores, the way msae names its explanation files: `model_layers_24`.
    pub fn file_stem(&self) -> String {
        self.0.replace('.', "_")
    }
}

impl std::fmt::Display for HookPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for HookPoint {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HookPoint {
    type Err = HookPointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for HookPoint {
    type Error = HookPointError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<HookPoint> for String {
    fn from(hook: HookPoint) -> Self {
        hook.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_module_paths_and_refuses_what_could_leave_a_folder() {
        for good in ["model.layers.24", "multi_modal_projector", "model.layers.0.self_attn"] {
            assert_eq!(HookPoint::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "model..layers", "model.layers.", "../etc", "a/b", "model layers", "é"] {
            assert!(HookPoint::new(bad).is_err(), "{bad:?} passed");
        }
    }
}
