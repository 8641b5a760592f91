//! [`PixelScale`]: bytes to normalised numbers, and [`PixelConfig`], which says how.

use image::RgbImage;

use crate::error::PrepError;
use crate::json::Fields;

/// What is done to the values of pixels, as every image processor's `preprocessor_config.json` says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelConfig {
    /// Multiply by `rescale_factor`, usually 1/255; `None` where `do_rescale` is off.
    pub rescale_factor: Option<f64>,
    /// Subtract `image_mean`, then divide by `image_std`; `None` where `do_normalize` is off.
    pub statistics: Option<PixelStatistics>,
}

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

impl PixelStatistics {
    /// `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD`.
    pub const CLIP: Self = Self {
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
    };
    /// `IMAGENET_DEFAULT_MEAN` and `IMAGENET_DEFAULT_STD`.
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
}

impl PixelConfig {
    /// The defaults of a class with these statistics.
    pub const fn new(statistics: PixelStatistics) -> Self {
        Self { rescale_factor: Some(1.0 / 255.0), statistics: Some(statistics) }
    }

    /// Takes the fields of a class with these statistics out of a file.
    ///
    /// # Errors
    /// [`PrepError::Field`] naming the field at fault.
    pub fn take(fields: &mut Fields, default: PixelStatistics) -> Result<Self, PrepError> {
        let rescales = fields.or("do_rescale", true)?;
        let factor = fields.or("rescale_factor", 1.0 / 255.0)?;
        let normalizes = fields.or("do_normalize", true)?;
        let mean = fields.nullable("image_mean", None)?.unwrap_or(default.mean);
        let std: [f64; 3] = fields.nullable("image_std", None)?.unwrap_or(default.std);
        if normalizes && std.contains(&0.0) {
            return Err(fields.error("image_std", "numbers other than 0", format!("{std:?}")));
        }
        Ok(Self {
            rescale_factor: rescales.then_some(factor),
            statistics: normalizes.then_some(PixelStatistics { mean, std }),
        })
    }
}

impl PixelScale {
    /// The tables of these settings.
    pub fn new(config: PixelConfig) -> Self {
        let tables = std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                let scaled =
                    config.rescale_factor.map_or(value as f64, |factor| value as f64 * factor) as f32;
                config.statistics.map_or(scaled, |PixelStatistics { mean, std }| {
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
        PixelScale::new(PixelConfig::new(statistics)).write(&image, &mut planes, (2, 3));
        let wanted =
            [0.0, 0.4, 9.0, 9.0, 9.0, 9.0, 0.0, 1.2, 9.0, 9.0, 9.0, 9.0, 2.0, 0.4, 9.0, 9.0, 9.0, 9.0];
        for (got, wanted) in planes.iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-6, "{planes:?}");
        }
        let nothing = PixelConfig { rescale_factor: None, statistics: None };
        assert_eq!(PixelScale::new(nothing).table(2)[7], 7.0);
    }
}
