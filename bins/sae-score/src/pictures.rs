//! Pictures of features for the reports.

use activation_view::{data_url, shrunk};
use explain::FeatureKey;
use image::ImageFormat;
use scoring::report::Picture;

use crate::images::{Finder, Seen};

/// The longest side of a picture in a page.
const SIDE: u32 = 176;

/// The images in which a feature is strongest, lit where it is on; fewer where one cannot be read any more.
pub(crate) fn of(finder: &Finder, key: &FeatureKey) -> Vec<Picture> {
    let picture = |Seen { example, picture }: Seen| {
        let lit = example.heat.overlay(&*picture.ok()?);
        let url = data_url(&shrunk(&lit, SIDE), ImageFormat::Png).ok()?;
        Some(Picture { url, description: format!("sample {}, lit where the feature is on", example.sample) })
    };
    finder.strongest(key).unwrap_or_default().into_iter().filter_map(picture).collect()
}
