//! [`Filters`]: the features a run is about, per hook point.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{FeatureId, HookPoint};

/// Which features of which hook points a run is about. As JSON, msae's filters file:
/// `{"model.layers.24": [0, 1, 2]}`. Features are kept ascending and without repetition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<HookPoint, Vec<FeatureId>>", into = "BTreeMap<HookPoint, Vec<FeatureId>>")]
pub struct Filters(BTreeMap<HookPoint, Vec<FeatureId>>);

/// Filters that cannot be read, or do not fit the sparse autoencoder they are meant for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A file that cannot be had.
    #[error("cannot read filters {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that holds something else.
    #[error("{} is no filters file", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why it is none.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Filters of nothing.
    #[error("{} names no hook point", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A feature the autoencoder does not have.
    #[error("filters ask for feature {feature} of {hook}, which has latents 0 to {last}", last = width.saturating_sub(1))]
    BeyondWidth {
        /// The hook point whose list holds it.
        hook: HookPoint,
        /// The feature asked for.
        feature: FeatureId,
        /// The number of latents there are.
        width: usize,
    },
}

impl Filters {
    /// Reads a filters file, which has to name a hook point. `parse` is the caller's `serde_json::from_slice`: this crate depends on
    /// no format.
    ///
    /// # Errors
    /// When the file cannot be read, is no such JSON, or names nothing.
    pub fn read<E: Into<Box<dyn Error + Send + Sync>>>(
        path: &Path,
        parse: impl FnOnce(&[u8]) -> Result<Self, E>,
    ) -> Result<Self, FilterError> {
        let path = path.to_owned();
        match std::fs::read(&path) {
            Err(source) => Err(FilterError::Io { path, source }),
            Ok(bytes) => match parse(&bytes) {
                Err(source) => Err(FilterError::Json { path, source: source.into() }),
                Ok(filters) if filters.is_empty() => Err(FilterError::Empty { path }),
                Ok(filters) => Ok(filters),
            },
        }
    }

    /// The features wanted of `hook`, ascending; `None` where the filters do not name the hook point.
    pub fn features(&self, hook: &HookPoint) -> Option<&[FeatureId]> {
        self.0.get(hook).map(Vec::as_slice)
    }

    /// The hook points named, in order.
    pub fn hooks(&self) -> impl Iterator<Item = &HookPoint> {
        self.0.keys()
    }

    /// Whether no hook point is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that every feature asked of `hook` is below `width`.
    ///
    /// # Errors
    /// Names the first feature beyond.
    pub fn check_width(&self, hook: &HookPoint, width: usize) -> Result<(), FilterError> {
        match self.features(hook).and_then(<[_]>::last) {
            Some(&feature) if feature.index() >= width => {
                let first = self.0[hook].iter().copied().find(|f| f.index() >= width).unwrap_or(feature);
                Err(FilterError::BeyondWidth { hook: hook.clone(), feature: first, width })
            }
            _ => Ok(()),
        }
    }
}

impl From<BTreeMap<HookPoint, Vec<FeatureId>>> for Filters {
    fn from(mut lists: BTreeMap<HookPoint, Vec<FeatureId>>) -> Self {
        for features in lists.values_mut() {
            features.sort_unstable();
            features.dedup();
        }
        Self(lists)
    }
}

impl From<Filters> for BTreeMap<HookPoint, Vec<FeatureId>> {
    fn from(filters: Filters) -> Self {
        filters.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_msae_json_sorted_and_checks_the_width() {
        let filters: Filters = serde_json::from_str(r#"{"model.layers.24": [7, 2, 2, 9]}"#).unwrap();
        let hook = HookPoint::layer(24);
        assert_eq!(filters.features(&hook).unwrap(), [FeatureId(2), FeatureId(7), FeatureId(9)]);
        assert_eq!(filters.features(&HookPoint::layer(3)), None);
        assert!(filters.check_width(&hook, 10).is_ok());
        let error = filters.check_width(&hook, 7).unwrap_err();
        assert_eq!(
            error.to_string(),
            "filters ask for feature 7 of model.layers.24, which has latents 0 to 6"
        );
        assert_eq!(serde_json::to_string(&filters).unwrap(), r#"{"model.layers.24":[2,7,9]}"#);
    }

    #[test]
    fn files_without_filters_are_named() {
        let folder = std::env::temp_dir().join(format!("filters-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("few.json");
        let read = || Filters::read(&path, |bytes| serde_json::from_slice(bytes));
        assert!(read().unwrap_err().to_string().starts_with("cannot read filters "));
        for (text, says) in [
            ("{}", "few.json names no hook point"),
            (r#"{"model.layers.1": 3}"#, "few.json is no filters file"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read().unwrap_err().to_string();
            assert!(error.ends_with(says), "{error}");
        }
        std::fs::write(&path, r#"{"model.layers.1": [3]}"#).unwrap();
        assert_eq!(read().unwrap().features(&HookPoint::layer(1)), Some(&[FeatureId(3)][..]));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
