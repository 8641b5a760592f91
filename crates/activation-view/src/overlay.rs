//! [`Grid`]: a heat map, painted over a picture.

use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};

/// What supports, and what opposes.
const WARM: [f32; 3] = [235.0, 70.0, 30.0];
const COLD: [f32; 3] = [40.0, 100.0, 235.0];

/// How much of a pixel the strongest value covers.
const COVER: f32 = 0.7;

/// Values over rows and columns of patches, row by row. What is not a number counts as 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

/// How patches are stretched over the pixels of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edges {
    /// From the centre of one patch to that of the next.
    #[default]
    Bilinear,
    /// Each pixel as its patch.
    Nearest,
}

/// The colour of a value that is `share` of the strongest, -1 to 1, and how much of what lies below it covers, 0 to 1.
pub fn colour(share: f32) -> ([u8; 3], f32) {
    let share = if share.is_nan() { 0.0 } else { share.clamp(-1.0, 1.0) };
    let colour = if share < 0.0 { COLD } else { WARM };
    (colour.map(|channel| channel as u8), share.abs())
}

/// The picture, shrunk in its own aspect if its longest side is longer than `side`.
pub fn shrunk(picture: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longest = width.max(height);
    if longest <= side {
        return picture.clone();
    }
    let part = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longest)).max(1) as u32;
    resize(picture, part(width), part(height), FilterType::Triangle)
}

impl Grid {
    /// Takes `values` `[rows * cols]`, row by row.
    ///
    /// # Panics
    /// When there are not as many.
    #[track_caller]
    pub fn new(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "values of {rows} x {cols} patches");
        let number = |value: f32| if value.is_finite() { value } else { 0.0 };
        Self { rows, cols, values: values.into_iter().map(number).collect() }
    }

    /// The largest absolute value.
    pub fn peak(&self) -> f32 {
        self.values.iter().fold(0.0, |peak, value| f32::max(peak, value.abs()))
    }

    /// The picture with the map over all of it: warm where values are positive, cold where they are negative, the stronger the denser,
    /// as it is where they are 0. The strongest value is the densest.
    pub fn overlay(&self, picture: &RgbImage, edges: Edges) -> RgbImage {
        let peak = self.peak();
        let (width, height) = picture.dimensions();
        if peak == 0.0 {
            return picture.clone();
        }
        RgbImage::from_fn(width, height, |x, y| {
            let at = |pixel: u32, pixels: u32, patches: usize| {
                (pixel as f32 + 0.5) * patches as f32 / pixels as f32
            };
            let (row, col) = (at(y, height, self.rows), at(x, width, self.cols));
            let value = match edges {
                Edges::Nearest => self.values[row as usize * self.cols + col as usize],
                Edges::Bilinear => self.between(row, col),
            };
            let (colour, strength) = colour(value / peak);
            let cover = COVER * strength;
            let mut pixel = picture.get_pixel(x, y).0;
            for (channel, over) in pixel.iter_mut().zip(colour) {
                let mixed = f32::from(*channel) * (1.0 - cover) + f32::from(over) * cover;
                *channel = mixed.round() as u8;
            }
            Rgb(pixel)
        })
    }

    /// The value between the centres of four patches; those at the border reach to the edge.
    fn between(&self, row: f32, col: f32) -> f32 {
        let split = |place: f32, patches: usize| {
            let place = (place - 0.5).clamp(0.0, (patches - 1) as f32);
            let low = place as usize;
            (low, (low + 1).min(patches - 1), place - low as f32)
        };
        let ((top, bottom, down), (left, right, across)) = (split(row, self.rows), split(col, self.cols));
        let of = |row: usize| {
            self.values[row * self.cols + left] * (1.0 - across)
                + self.values[row * self.cols + right] * across
        };
        of(top) * (1.0 - down) + of(bottom) * down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_have_colours_and_zeros_leave_the_picture() {
        let picture = RgbImage::from_pixel(9, 4, Rgb([100, 100, 100]));
        let painted = Grid::new(1, 3, vec![1.0, 0.0, -2.0]).overlay(&picture, Edges::Nearest);
        let [warm, none, cold] = [1, 4, 7].map(|x| painted.get_pixel(x, 2).0);
        assert_eq!(none, [100, 100, 100]);
        // Half the peak covers 0.35, the peak 0.7.
        assert_eq!(warm, [147, 90, 76]);
        assert_eq!(cold, [58, 100, 195]);
        assert_eq!(Grid::new(2, 2, vec![0.0; 4]).overlay(&picture, Edges::Bilinear), picture);
        assert_eq!(Grid::new(1, 1, vec![f32::NAN]).overlay(&picture, Edges::Bilinear), picture);
    }

    #[test]
    fn only_large_pictures_shrink() {
        let size = |width, height| shrunk(&RgbImage::new(width, height), 100).dimensions();
        assert_eq!([size(100, 40), size(300, 150), size(1, 1000)], [(100, 40), (100, 50), (1, 100)]);
    }

    #[test]
    fn bilinear_meets_the_values_at_the_centres() {
        let grid = Grid::new(2, 2, vec![0.0, 4.0, 8.0, 0.0]);
        for (row, col, want) in
            [(0.5, 0.5, 0.0), (0.5, 1.5, 4.0), (1.5, 0.5, 8.0), (1.0, 1.0, 3.0), (0.0, 2.0, 4.0)]
        {
            assert_eq!(grid.between(row, col), want, "{row} {col}");
        }
    }
}
