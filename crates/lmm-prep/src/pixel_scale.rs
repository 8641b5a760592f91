//! [`PixelScale`]: bytes to normalised numbers.

use image::RgbImage;

/// What each of a channel's 256 values becomes: rescaled in double and rounded to single, then normalised in single, as
/// transformers' `rescale` and `normalize` do.
#[derive(Clone, Debug)]
pub struct PixelScale {
    tables: [[f32; 256]; 3],
}

/// Mean and standard deviation of red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelStatistics {
    /// What is subtracted.
    pub mean: [f64; 3],
    /// What is divided by then.
    pub std: [f64; 3],
}

impl PixelScale {
    /// Multiplies by `factor`, then normalises; `None` leaves a step out.
    pub fn new(factor: Option<f64>, statistics: Option<PixelStatistics>) -> Self {
        let tables = std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                let scaled = factor.map_or(value as f64, |factor| value as f64 * factor) as f32;
                statistics.map_or(scaled, |PixelStatistics { mean, std }| {
                    (scaled - mean[channel] as f32) / std[channel] as f32
                })
            })
        });
        Self { tables }
    }

    /// What the values 0 to 255 of `channel` become.
    ///
    /// # Panics
    /// When there is no such channel of red, green, blue.
    #[track_caller]
    pub fn table(&self, channel: usize) -> &[f32; 256] {
        &self.tables[channel]
    }

    /// Writes `image` to the upper left corner of `planes`, `[3, height, width]`. The rest stays as it is.
    ///
    /// # Panics
    /// When the planes are smaller than the image, or not of this size.
    #[track_caller]
    pub fn write(&self, image: &RgbImage, planes: &mut [f32], (height, width): (usize, usize)) {
        let (rows, columns) = (image.height() as usize, image.width() as usize);
        assert!(
            planes.len() == 3 * height * width && rows <= height && columns <= width,
            "an image of {rows}x{columns} pixels written to {} numbers as 3x{height}x{width}",
            planes.len()
        );
        if rows * columns == 0 {
            return;
        }
        for (plane, (channel, table)) in
            planes.chunks_exact_mut(height * width).zip(self.tables.iter().enumerate())
        {
            for (line, pixels) in plane.chunks_exact_mut(width).zip(image.as_raw().chunks_exact(3 * columns))
            {
                for (number, pixel) in line.iter_mut().zip(pixels.chunks_exact(3)) {
                    *number = table[usize::from(pixel[channel])];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_lands_in_the_corner() {
        let image = RgbImage::from_raw(2, 1, vec![0, 51, 255, 102, 204, 153]).unwrap();
        let statistics = PixelStatistics { mean: [0.0, 0.2, 0.5], std: [1.0, 0.5, 0.25] };
        let mut planes = vec![9.0; 3 * 2 * 3];
        PixelScale::new(Some(1.0 / 255.0), Some(statistics)).write(&image, &mut planes, (2, 3));
        let wanted =
            [0.0, 0.4, 9.0, 9.0, 9.0, 9.0, 0.0, 1.2, 9.0, 9.0, 9.0, 9.0, 2.0, 0.4, 9.0, 9.0, 9.0, 9.0];
        for (got, wanted) in planes.iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-6, "{planes:?}");
        }
        assert_eq!(PixelScale::new(None, None).table(2)[7], 7.0);
    }
}
