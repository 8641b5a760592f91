//! Heat maps over the base tile, and the masks cut from them.

use image::{Rgb, RgbImage};

use crate::ExplainError;

/// One feature's activations over the base tile of one image, `[rows, cols]` row by row; 0 where it is off.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

/// From which activation on a patch belongs to the mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Half of the map's largest activation: keeps the extent of a graded blob instead of its faintest fringe.
    #[default]
    HalfMaximum,
    /// Any activation above zero, as msae has it before it blurs the mask.
    Positive,
}

/// Which pixels of an image a feature is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    pixels: Vec<bool>,
}

impl HeatMap {
    /// Takes activations `[rows * cols]`, row by row.
    ///
    /// # Errors
    /// When the values do not fill the grid.
    pub fn new(rows: usize, cols: usize, values: Vec<f32>) -> Result<Self, ExplainError> {
        if values.len() != rows * cols {
            return Err(ExplainError::HeatMapSize { rows, cols, got: values.len() });
        }
        Ok(Self { rows, cols, values })
    }

    /// The map of a region, `[rows * cols]`, row by row: 1 in it and 0 elsewhere, so that every cut gives the region.
    ///
    /// # Errors
    /// When it does not fill the grid.
    pub fn of_region(rows: usize, cols: usize, region: &[bool]) -> Result<Self, ExplainError> {
        Self::new(rows, cols, region.iter().map(|&is_in| f32::from(u8::from(is_in))).collect())
    }

    /// Rows and columns of patches.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Activations `[rows * cols]`, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The largest activation, 0 for a map that is off everywhere.
    pub fn peak(&self) -> f32 {
        self.values.iter().copied().fold(0.0, f32::max)
    }

    /// The patch a pixel of a `width` x `height` image falls into; the base tile shows the whole image,
    /// squashed to a square, so rows and columns stretch apart.
    fn patch(&self, x: u32, y: u32, width: u32, height: u32) -> usize {
        let row = y as usize * self.rows / height as usize;
        let col = x as usize * self.cols / width as usize;
        row * self.cols + col
    }

    /// Which patches belong to the mask, `[rows * cols]`, row by row.
    pub fn on(&self, cut: Cut) -> Vec<bool> {
        let least = match cut {
            Cut::HalfMaximum => self.peak() / 2.0,
            Cut::Positive => 0.0,
        };
        self.values.iter().map(|&value| value > 0.0 && value >= least).collect()
    }

    /// The mask at the size of the image, each pixel as its patch (nearest).
    pub fn mask(&self, width: u32, height: u32, cut: Cut) -> Mask {
        let on = self.on(cut);
        let pixels = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .map(|(x, y)| on[self.patch(x, y, width, height)])
            .collect();
        Mask { width, height, pixels }
    }

    /// The image as the feature sees it: lit from half of the peak on, dimmed in proportion below, with a line around
    /// the half-maximum mask. Colours stay what they are, for they may be what the feature is about.
    pub fn overlay(&self, image: &RgbImage) -> RgbImage {
        const DARKEST: f32 = 0.25;
        const LINE: Rgb<u8> = Rgb([255, 255, 255]);
        let half = (self.peak() / 2.0).max(f32::MIN_POSITIVE);
        let (width, height) = image.dimensions();
        let mask = self.mask(width, height, Cut::HalfMaximum);
        RgbImage::from_fn(width, height, |x, y| {
            let on = mask.at(x, y);
            let edge = on
                && (x == 0
                    || y == 0
                    || !mask.at(x - 1, y)
                    || !mask.at(x, y - 1)
                    || !mask.at(x + 1, y)
                    || !mask.at(x, y + 1));
            if edge {
                return LINE;
            }
            let heat = (self.values[self.patch(x, y, width, height)] / half).clamp(0.0, 1.0);
            let light = DARKEST + (1.0 - DARKEST) * heat;
            Rgb(image.get_pixel(x, y).0.map(|channel| (f32::from(channel) * light).round() as u8))
        })
    }
}

impl Mask {
    /// Width and height in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// `[height * width]`, row by row.
    pub fn pixels(&self) -> &[bool] {
        &self.pixels
    }

    /// Whether a pixel is on; false beyond the right and lower border.
    pub fn at(&self, x: u32, y: u32) -> bool {
        x < self.width && y < self.height && self.pixels[y as usize * self.width as usize + x as usize]
    }

    /// How many pixels are on.
    pub fn area(&self) -> usize {
        self.pixels.iter().filter(|&&on| on).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_stretches_patches_over_the_image() {
        let heat = HeatMap::new(2, 2, vec![0.0, 2.0, 0.0, 0.5]).unwrap();
        let mask = heat.mask(6, 4, Cut::HalfMaximum);
        for y in 0..4 {
            for x in 0..6 {
                assert_eq!(mask.pixels()[y * 6 + x], y < 2 && x >= 3, "({x}, {y})");
            }
        }
        assert_eq!(heat.mask(6, 4, Cut::Positive).area(), 12);
    }

    #[test]
    fn a_map_that_is_off_masks_nothing_and_overlays_without_division_by_zero() {
        let heat = HeatMap::new(1, 1, vec![0.0]).unwrap();
        assert_eq!(heat.mask(3, 3, Cut::HalfMaximum).area(), 0);
        let image = RgbImage::from_pixel(2, 2, Rgb([100, 100, 100]));
        assert_eq!(heat.overlay(&image).get_pixel(0, 0), &Rgb([25, 25, 25]));
    }

    #[test]
    fn overlay_lights_the_mask_and_draws_its_border() {
        let heat = HeatMap::new(2, 2, vec![0.0, 0.0, 0.0, 2.0]).unwrap();
        let lit = heat.overlay(&RgbImage::from_pixel(10, 10, Rgb([100, 80, 60])));
        assert_eq!(lit.get_pixel(7, 7), &Rgb([100, 80, 60]));
        assert_eq!(lit.get_pixel(2, 2), &Rgb([25, 20, 15]));
        for (x, y) in [(5, 5), (9, 7), (7, 9), (5, 9)] {
            assert_eq!(lit.get_pixel(x, y), &Rgb([255, 255, 255]), "({x}, {y})");
        }
    }

    #[test]
    fn odd_sizes_cover_every_pixel() {
        let heat = HeatMap::new(8, 8, (0u8..64).map(f32::from).collect()).unwrap();
        assert_eq!(heat.mask(1, 7, Cut::Positive).pixels().len(), 7);
        assert!(HeatMap::new(2, 2, vec![0.0; 3]).is_err());
    }

    #[test]
    fn a_region_is_what_every_cut_gives() {
        let region = [true, false, false, true];
        let heat = HeatMap::of_region(2, 2, &region).unwrap();
        assert_eq!((heat.on(Cut::HalfMaximum), heat.on(Cut::Positive)), (region.to_vec(), region.to_vec()));
        assert!(HeatMap::of_region(2, 3, &region).is_err());
    }
}
