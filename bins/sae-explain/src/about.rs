//! [`Texts`]: what a stage asks about where that is a text, so that answers about what was said before do not count.

use std::collections::BTreeMap;
use std::sync::Arc;

use explain::{FeatureKey, Record};

use explain_kit::short_hash;

/// Texts by feature; none where the questions are about the cache. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts(Arc<BTreeMap<FeatureKey, String>>);

impl Texts {
    pub(crate) fn new(texts: BTreeMap<FeatureKey, String>) -> Self {
        Self(Arc::new(texts))
    }

    pub(crate) fn get(&self, key: &FeatureKey) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(crate) fn contains(&self, key: &FeatureKey) -> bool {
        self.0.contains_key(key)
    }

    /// What a record says it is about.
    pub(crate) fn about(&self, key: &FeatureKey) -> Option<String> {
        self.get(key).map(short_hash)
    }

    /// Whether a record is about what is asked now.
    pub(crate) fn counts(&self, record: &Record) -> bool {
        record.about == self.about(&record.key())
    }
}
