//! Pictures lit where a feature is on and dimmed elsewhere: what an explainer is shown.

use image::{GrayImage, Luma, Rgb, RgbImage};
use lmm_prep::Filter;

use crate::{Cut, HeatMap};

/// How a heat map becomes light and shade. The default is msae's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masking {
    /// Which patches are on.
    pub cut: Cut,
    /// How the border between patches that are on and off looks.
    pub edges: Edges,
    /// The light left where the feature is off, from 0 (black) to 255 (as bright as where it is on).
    pub dim: u8,
}

/// How patches are stretched over the pixels of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edges {
    /// Bilinear, as PIL resizes: light fades over the width of a patch.
    #[default]
    Bilinear,
    /// Each pixel as its patch.
    Nearest,
}

impl Default for Masking {
    fn default() -> Self {
        Self { cut: Cut::Positive, edges: Edges::Bilinear, dim: 31 }
    }
}

impl Masking {
    /// How much a picture of `width` x `height` pixels is darkened: 0 where the feature is on, `255 - dim` where it is off.
    /// The map is stretched over the whole picture, as the base tile shows it.
    pub fn shade(&self, heat: &HeatMap, width: u32, height: u32) -> GrayImage {
        let shades = self.shades(heat, width, height);
        GrayImage::from_fn(width, height, |x, y| Luma([shades.get_pixel(x, y).0[0]]))
    }

    /// The shade of each pixel, three times over: once per channel of the picture.
    fn shades(self, heat: &HeatMap, width: u32, height: u32) -> RgbImage {
        let (rows, cols) = heat.shape();
        let on = heat.on(self.cut);
        let dark = 255 - self.dim;
        if rows == 0 || cols == 0 {
            return RgbImage::from_pixel(width, height, Rgb([dark; 3]));
        }
        let patches = RgbImage::from_fn(cols as u32, rows as u32, |x, y| {
            Rgb([if on[y as usize * cols + x as usize] { 0 } else { dark }; 3])
        });
        let filter = match self.edges {
            Edges::Bilinear => Filter::Bilinear,
            Edges::Nearest => Filter::Nearest,
        };
        lmm_prep::resize(&patches, height, width, filter)
    }

    /// The picture as the feature sees it: `pixel * (255 - shade) / 255`, rounded as PIL's `Image.composite` over black does.
    pub fn apply(&self, picture: &RgbImage, heat: &HeatMap) -> RgbImage {
        let (width, height) = picture.dimensions();
        let mut lit = self.shades(heat, width, height);
        // Byte by byte in 16 bits, which hold every product: the compiler makes vectors of it.
        for (lit, &channel) in lit.iter_mut().zip(picture.as_raw()) {
            let product = u16::from(channel) * u16::from(255 - *lit) + 128;
            *lit = ((product + (product >> 8)) >> 8) as u8;
        }
        lit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_patch() -> HeatMap {
        HeatMap::new(2, 2, vec![0.0, 0.0, 0.1, 1.0]).unwrap()
    }

    #[test]
    fn nearest_lights_whole_patches_and_dims_the_rest() {
        let masking = Masking { cut: Cut::HalfMaximum, edges: Edges::Nearest, dim: 31 };
        let lit = masking.apply(&RgbImage::from_pixel(6, 4, Rgb([200, 100, 255])), &one_patch());
        for (x, y, pixel) in lit.enumerate_pixels() {
            // 31 / 255 of 200, 100 and 255.
            let want = if x >= 3 && y >= 2 { [200, 100, 255] } else { [24, 12, 31] };
            assert_eq!(pixel.0, want, "({x}, {y})");
        }
        let black = Masking { dim: 0, ..masking };
        assert_eq!(black.apply(&lit, &one_patch()).get_pixel(0, 0).0, [0, 0, 0]);
    }

    #[test]
    fn bilinear_is_pils_resize_of_the_binary_map() {
        // Image.fromarray(uint8 [[224, 224], [0, 0]]).resize((2, 8), BILINEAR), by hand: centres of the source lie at
        // 0.5 and 1.5 of 2, so the four middle rows run from 7/8 to 1/8.
        let shade = Masking::default().shade(&one_patch(), 2, 8);
        let column: Vec<u8> = (0..8).map(|y| shade.get_pixel(0, y).0[0]).collect();
        assert_eq!(column, [224, 224, 196, 140, 84, 28, 0, 0]);
    }

    #[test]
    fn a_feature_that_is_off_leaves_the_picture_dim() {
        let off = HeatMap::new(1, 1, vec![0.0]).unwrap();
        let shade = Masking::default().shade(&off, 3, 3);
        assert!(shade.as_raw().iter().all(|&value| value == 224));
    }
}
