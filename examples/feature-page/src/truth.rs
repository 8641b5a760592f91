//! Where each concept of the data set's annotations really is.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use image::RgbImage;
use mm_data::Sample;

/// An image with the pixels of every concept annotated in it.
pub(crate) struct Annotated {
    pub(crate) image: RgbImage,
    /// Concept to pixels `[height * width]`, row by row.
    pub(crate) concepts: BTreeMap<String, Vec<bool>>,
}

impl Annotated {
    /// Decodes a sample's first image and joins its masks by label.
    pub(crate) fn of(sample: &Sample) -> Result<Self> {
        let encoded = sample.images.first().context("the sample has no image")?;
        let image = lmm_prep::decode_image(&encoded.bytes).context("decoding the image")?;
        let mut concepts: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for annotation in &sample.masks {
            let mask = image::load_from_memory(&annotation.png).context("decoding a mask")?.into_luma8();
            anyhow::ensure!(
                mask.dimensions() == image.dimensions(),
                "a mask of {:?} pixels for an image of {:?}",
                mask.dimensions(),
                image.dimensions()
            );
            for label in &annotation.labels {
                let pixels =
                    concepts.entry(label.clone()).or_insert_with(|| vec![false; mask.as_raw().len()]);
                for (pixel, &value) in pixels.iter_mut().zip(mask.as_raw()) {
                    *pixel |= value >= 128;
                }
            }
        }
        Ok(Self { image, concepts })
    }
}
