//! Pictures with both masks drawn in.

use std::path::Path;

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};

/// Where the feature is on, and the border of what was found.
const FEATURE: Rgb<u8> = Rgb([255, 60, 30]);
const FOUND: Rgb<u8> = Rgb([40, 220, 90]);

/// Writes `picture` with the feature's mask as a red veil and a green line around what was found, both `[height * width]`.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn save(picture: &RgbImage, feature: &[bool], found: &[bool], path: &Path) -> Result<()> {
    let folder = path.parent().context("a path without a folder")?;
    std::fs::create_dir_all(folder)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(annotated(picture, feature, found).save(path)?))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn annotated(picture: &RgbImage, feature: &[bool], found: &[bool]) -> RgbImage {
    let (width, height) = picture.dimensions();
    let at = |mask: &[bool], x: u32, y: u32| mask[(y * width + x) as usize];
    let inside = |x: u32, y: u32| {
        let (left, up) = (x == 0 || !at(found, x - 1, y), y == 0 || !at(found, x, y - 1));
        !left && !up && x + 1 < width && at(found, x + 1, y) && y + 1 < height && at(found, x, y + 1)
    };
    RgbImage::from_fn(width, height, |x, y| {
        if at(found, x, y) && !inside(x, y) {
            return FOUND;
        }
        let pixel = *picture.get_pixel(x, y);
        if !at(feature, x, y) {
            return pixel;
        }
        let mixed = |channel: usize| u8::midpoint(pixel.0[channel], FEATURE.0[channel]);
        Rgb([0, 1, 2].map(mixed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_outlined_and_the_feature_veiled() {
        let picture = RgbImage::from_pixel(5, 5, Rgb([100, 100, 100]));
        let found: Vec<bool> =
            (0..25).map(|i| (1..4).contains(&(i % 5)) && (1..4).contains(&(i / 5))).collect();
        let feature: Vec<bool> = (0..25).map(|i| i % 5 < 3).collect();
        let drawn = annotated(&picture, &feature, &found);
        assert_eq!(*drawn.get_pixel(1, 2), FOUND);
        assert_eq!(*drawn.get_pixel(2, 2), Rgb([177, 80, 65]));
        assert_eq!(*drawn.get_pixel(0, 0), Rgb([177, 80, 65]));
        assert_eq!(*drawn.get_pixel(4, 4), Rgb([100, 100, 100]));
    }
}
