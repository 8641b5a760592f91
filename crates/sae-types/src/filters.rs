//! [`Filters`]: the features a run is about, per hook point.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{FeatureId, HookPoint};

/// Which features of which hook points a run is about. As JSON, msae's filters file:
/// `{"model.layers.24": [0, 1, 2]}`. Features are kept ascending and without repetition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<HookPoint, Vec<FeatureId>>", into = "BTreeMap<HookPoint, Vec<FeatureId>>")]
pub struct Filters(BTreeMap<HookPoint, Vec<FeatureId>>);

/// Filters that do not fit the sparse autoencoder they are meant for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
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
}
