//! [`Segmenter`]: which pixels of a picture show what a text names; [`Annotated`]: by a data set's own annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use image::{GrayImage, RgbImage};
use mm_data::Dataset;
use sae_types::SampleId;

/// What is looked for where nothing is annotated.
const BACKGROUND: &str = "background";

/// Finds what texts name in pictures.
pub(crate) trait Segmenter {
    /// The pixels `[height * width]` of `picture`, the first image of `sample` in the size it is scored in, that show what
    /// `text` names; all false where it is not there.
    ///
    /// # Errors
    /// When the image cannot be looked at. That it shows nothing of the kind is no error.
    fn find(&mut self, sample: SampleId, picture: &Arc<RgbImage>, text: &str) -> Result<Vec<bool>>;
}

/// What a data set says of its own images, in its column `masks`: for each region its pixels, and all that it may be called.
/// A text names a region if it is one of its labels, whatever the case; `background`, unless some region is called so, is what lies in none.
pub(crate) struct Annotated {
    dataset: Arc<Dataset>,
    /// Of the samples used last, since features share them.
    kept: BTreeMap<SampleId, Arc<Vec<Region>>>,
}

struct Region {
    labels: Vec<String>,
    mask: GrayImage,
}

/// Pixels of the decoded regions that are kept, a byte each: those of 100 COCO images or more.
const KEPT: usize = 256 << 20;

impl Annotated {
    /// Of a data set that was opened with its masks.
    pub(crate) fn new(dataset: Arc<Dataset>) -> Self {
        Self { dataset, kept: BTreeMap::new() }
    }

    fn regions(&mut self, sample: SampleId) -> Result<Arc<Vec<Region>>> {
        if let Some(regions) = self.kept.get(&sample) {
            return Ok(Arc::clone(regions));
        }
        let record = self.dataset.get(sample.index())?;
        ensure!(!record.masks.is_empty(), "the data set annotates no region of sample {sample}");
        let image = record.images.first().context("the record has no image")?;
        let size = lmm_prep::decode_image_upright(&image.bytes)?.dimensions();
        let region = |annotation: &mm_data::MaskAnnotation| {
            let mask = image::load_from_memory(&annotation.png).context("decoding a mask")?.into_luma8();
            check_shape(sample, mask.dimensions(), size)?;
            let labels = annotation.labels.iter().map(|label| named(label)).collect();
            Ok(Region { labels, mask })
        };
        let regions = Arc::new(record.masks.iter().map(region).collect::<Result<Vec<_>>>()?);
        while self.kept.values().map(|kept| pixels(kept)).sum::<usize>() + pixels(&regions) > KEPT {
            if self.kept.pop_first().is_none() {
                break;
            }
        }
        self.kept.insert(sample, Arc::clone(&regions));
        Ok(regions)
    }
}

impl Segmenter for Annotated {
    fn find(&mut self, sample: SampleId, picture: &Arc<RgbImage>, text: &str) -> Result<Vec<bool>> {
        let regions = self.regions(sample)?;
        let text = named(text);
        let (width, height) = picture.dimensions();
        let covered = |wanted: &dyn Fn(&Region) -> bool| {
            let mut pixels = vec![false; (width * height) as usize];
            for region in regions.iter().filter(|region| wanted(region)) {
                add(&region.mask, width, height, &mut pixels);
            }
            pixels
        };
        let is_called = |region: &Region| region.labels.contains(&text);
        if text == BACKGROUND && !regions.iter().any(is_called) {
            return Ok(covered(&|_| true).into_iter().map(|covered| !covered).collect());
        }
        Ok(covered(&is_called))
    }
}

fn pixels(regions: &[Region]) -> usize {
    regions.iter().map(|region| region.mask.len()).sum()
}

/// Refuses a mask that is of another shape than its upright picture, whose pixels it cannot tell. It may be larger or smaller, each side
/// rounded.
fn check_shape(sample: SampleId, mask: (u32, u32), picture: (u32, u32)) -> Result<()> {
    let [mask_width, mask_height, width, height] = [mask.0, mask.1, picture.0, picture.1].map(i64::from);
    let off = (mask_width * height - mask_height * width).abs();
    ensure!(
        off <= width.max(height),
        "a mask of sample {sample} has {mask_width} x {mask_height} pixels, its picture, upright, {width} x {height}"
    );
    Ok(())
}

/// Adds a mask, stretched to `width` x `height` pixels (nearest), to those that are on.
fn add(mask: &GrayImage, width: u32, height: u32, pixels: &mut [bool]) {
    let (mask_width, mask_height) = mask.dimensions();
    for (y, row) in (0u32..).zip(pixels.chunks_exact_mut(width as usize)) {
        let from_y = (u64::from(y) * u64::from(mask_height) / u64::from(height)) as u32;
        for (x, pixel) in (0u32..).zip(row) {
            let from_x = (u64::from(x) * u64::from(mask_width) / u64::from(width)) as u32;
            *pixel |= mask.get_pixel(from_x, from_y).0[0] >= 128;
        }
    }
}

/// A label or text as it is compared: lower case, single spaces, no article before it and no full stop behind it.
fn named(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut words: Vec<&str> = lower.trim().trim_end_matches('.').split_whitespace().collect();
    if words.len() > 1 && matches!(words[0], "a" | "an" | "the") {
        words.remove(0);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_what_does_not_matter() {
        for text in ["Red  Circle", "a red circle", "the red circle.", " red circle "] {
            assert_eq!(named(text), "red circle", "{text}");
        }
        assert_eq!(named("a"), "a");
    }

    #[test]
    fn masks_have_the_shape_of_their_picture() {
        for (mask, picture) in [
            ((640, 480), (640, 480)),
            ((320, 240), (640, 480)),
            ((214, 160), (640, 480)),
            ((9, 9), (336, 336)),
        ] {
            assert!(check_shape(SampleId(3), mask, picture).is_ok(), "{mask:?} {picture:?}");
        }
        for (mask, picture) in [((640, 480), (480, 640)), ((336, 336), (640, 480)), ((640, 470), (640, 480))]
        {
            let error = check_shape(SampleId(3), mask, picture).unwrap_err().to_string();
            assert!(
                error.contains("sample 3") && error.contains(&format!("{} x {}", picture.0, picture.1)),
                "{error}"
            );
        }
    }

    #[test]
    fn masks_are_stretched_to_the_picture() {
        let mask = GrayImage::from_raw(2, 1, vec![0, 255]).unwrap();
        let mut pixels = vec![false; 8];
        add(&mask, 4, 2, &mut pixels);
        assert_eq!(pixels, [false, false, true, true].repeat(2));
    }
}
