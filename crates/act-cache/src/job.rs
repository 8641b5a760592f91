//! [`CacheJob`]: what all parts of one cache agree on.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::{write_durably, write_if_absent};
use crate::{ActivationDtype, CacheDescription, CacheError, hash};

pub(crate) const JOB_FILE: &str = "job.json";

/// What all parts of one cache agree on, and a part that is resumed with itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheJob {
    /// What the cache is about.
    pub description: CacheDescription,
    /// Into how many files each hook point's latents are split.
    pub n_splits: usize,
    /// How activations are stored. Those that round to zero in 16 bits are left out.
    pub dtype: ActivationDtype,
    /// Whether the token ids of every sample are kept.
    pub keep_tokens: bool,
    /// Whatever else decides what the activations are, by name: the model's hash, samples per batch, the program's version.
    pub conditions: BTreeMap<String, String>,
}

impl CacheJob {
    /// A job of the description's samples: 5 splits, f32, no token ids, no further conditions.
    pub fn new(description: CacheDescription) -> Self {
        let conditions = BTreeMap::new();
        Self { description, n_splits: 5, dtype: ActivationDtype::F32, keep_tokens: false, conditions }
    }

    /// The job of the parts in `parts`.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn read(parts: &Path) -> Result<Self, CacheError> {
        let path = parts.join(JOB_FILE);
        let text = std::fs::read(&path).map_err(CacheError::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| CacheError::Json { path, line: None, source })
    }

    /// Writes the job to `parts`, or compares it with the one that is there.
    pub(crate) fn agree(&self, parts: &Path) -> Result<(), CacheError> {
        // Another worker may be faster; what is there first counts.
        write_if_absent(&parts.join(JOB_FILE), &self.to_json())?;
        self.compare(parts)
    }

    /// Compares the job with the one in `folder`: of parts, or of a cache that was merged with a copy of its job beside it.
    ///
    /// # Errors
    /// [`CacheError::OtherJob`] with the first member that differs; when there is no job, or it cannot be read.
    pub fn compare(&self, folder: &Path) -> Result<(), CacheError> {
        let path = folder.join(JOB_FILE);
        let there = serde_json::to_value(Self::read(folder)?).unwrap_or_default();
        let own = serde_json::to_value(self).unwrap_or_default();
        match first_difference(&there, &own, String::new()) {
            None => Ok(()),
            Some((member, begun, got)) => Err(CacheError::OtherJob { path, member, begun, got }),
        }
    }

    /// Writes the job to `folder`, as [`CacheJob::read`] finds it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), CacheError> {
        write_durably(&folder.join(JOB_FILE), &self.to_json())
    }

    /// A hash of everything in it.
    pub(crate) fn sha256(&self) -> String {
        hash::sha256(&self.to_json())
    }

    fn to_json(&self) -> Vec<u8> {
        // Maps with string keys, numbers and strings: this cannot fail.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }
}

/// Path and both values of the first member in which two JSON values differ.
fn first_difference(a: &Value, b: &Value, path: String) -> Option<(String, String, String)> {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let absent = Value::Null;
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            names.into_iter().find_map(|name| {
                let (a, b) = (a.get(name).unwrap_or(&absent), b.get(name).unwrap_or(&absent));
                first_difference(a, b, below(name))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(i, (a, b))| first_difference(a, b, below(&i.to_string())))
        }
        _ if a == b => None,
        (Value::Array(_), _) | (_, Value::Array(_)) => Some((path, shortened(a), shortened(b))),
        _ => Some((path, a.to_string(), b.to_string())),
    }
}

/// Of a long list its beginning.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_member_that_differs_is_named() {
        let mut one = CacheJob::new(CacheDescription::default());
        one.conditions.insert("batch size".to_owned(), "8".to_owned());
        let folder = tempfile::tempdir().unwrap();
        one.agree(folder.path()).unwrap();
        one.agree(folder.path()).unwrap();
        let mut other = one.clone();
        other.conditions.insert("batch size".to_owned(), "4".to_owned());
        let error = other.agree(folder.path()).unwrap_err().to_string();
        assert!(error.contains(r#"conditions.batch size "8""#) && error.contains(r#""4""#), "{error}");
        let mut other = one.clone();
        other.description.dataset.fingerprint = "f".to_owned();
        let error = other.agree(folder.path()).unwrap_err().to_string();
        assert!(error.contains("description.dataset.fingerprint"), "{error}");
    }
}
