//! [`Texts`]: what a stage asks about where that is a text, so that answers about what was said before do not count.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use explain::FeatureKey;
use sae_types::{FeatureId, HookPoint};

use crate::ledgers::Entry;
use crate::{ExplainKitError, short_hash};

/// Texts by feature; none where the questions are about the cache. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Texts(Arc<BTreeMap<FeatureKey, String>>);

impl Texts {
    /// Takes the texts.
    pub fn new(texts: BTreeMap<FeatureKey, String>) -> Self {
        Self(Arc::new(texts))
    }

    /// The text of a feature.
    pub fn get(&self, key: &FeatureKey) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether a feature has a text.
    pub fn contains(&self, key: &FeatureKey) -> bool {
        self.0.contains_key(key)
    }

    /// Of the features there are, hook point by hook point, those with a text.
    ///
    /// # Errors
    /// When there is none; `source` is where the texts come from.
    pub fn among(
        &self,
        mut there: Vec<(&'static HookPoint, Vec<FeatureId>)>,
        source: &Path,
    ) -> Result<Vec<(&'static HookPoint, Vec<FeatureId>)>, ExplainKitError> {
        for (hook, features) in &mut there {
            features.retain(|&feature| self.contains(&FeatureKey { hook: hook.clone(), feature }));
        }
        if there.iter().all(|(_, features)| features.is_empty()) {
            let problem = format!("none of the features in {} is in the cache", source.display());
            return Err(ExplainKitError::usage(problem));
        }
        Ok(there)
    }

    /// What a record says it is about: the start of the text's hash.
    pub(crate) fn about(&self, key: &FeatureKey) -> Option<String> {
        self.get(key).map(short_hash)
    }

    /// Whether a record is about what is asked now.
    pub fn counts(&self, record: &impl Entry) -> bool {
        record.about() == self.about(&record.key()).as_deref()
    }
}
