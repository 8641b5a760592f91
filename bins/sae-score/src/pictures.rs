//! Pictures of features for the reports.

use activation_view::{data_url, shrunk};
use explain::FeatureKey;
use scoring::report::Picture;

use crate::images::Finder;

/// The longest side of a picture in a page.
const SIDE: u32 = 176;

/// The images in which a feature is strongest, lit where it is on; fewer where one cannot be read any more.
pub(crate) fn of(finder: &Finder, key: &FeatureKey) -> Vec<Picture> {
    let seen = finder.find(key).map_or_else(|_| Vec::new(), |images| images.strongest);
    let picture = |(example, picture): crate::images::Seen| {
        let url = data_url(&shrunk(&example.heat.overlay(&picture), SIDE)).ok()?;
        Some(Picture { url, description: format!("sample {}, lit where the feature is on", example.sample) })
    };
    seen.into_iter().filter_map(picture).collect()
}
