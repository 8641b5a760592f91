//! Pictures made ready to be sent: fitted and encoded.

use std::io::Cursor;

use image::{ImageFormat, RgbImage};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use lmm_prep::Filter;

use crate::ExplainError;

/// How large a picture is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// In its own aspect, shrunk until neither side is longer than this; never enlarged.
    Within(u32),
    /// Squeezed or stretched to a square of this side, as msae does.
    Square(u32),
    /// As it is.
    Own,
}

/// How a picture is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// With this quality, 1 to 100, and colour at half the resolution, as PIL and most cameras write it.
    Jpeg(u8),
    /// Without loss.
    Png,
}

impl Fit {
    /// The picture in its new size, resized as PIL's bicubic filter does.
    pub fn apply(self, picture: RgbImage) -> RgbImage {
        let (width, height) = picture.dimensions();
        let (new_width, new_height) = self.size(width, height);
        if (new_width, new_height) == (width, height) {
            return picture;
        }
        lmm_prep::resize(&picture, new_height, new_width, Filter::Bicubic)
    }

    /// Width and height of a picture of `width` x `height` pixels.
    fn size(self, width: u32, height: u32) -> (u32, u32) {
        let longer = width.max(height);
        match self {
            Self::Square(side) => (side, side),
            Self::Within(side) if longer > side => {
                // Rounded to the nearest, and no side vanishes.
                let scaled = |length: u32| {
                    let scaled = (2 * u64::from(length) * u64::from(side) + u64::from(longer))
                        / (2 * u64::from(longer));
                    (scaled as u32).max(1)
                };
                (scaled(width), scaled(height))
            }
            Self::Within(_) | Self::Own => (width, height),
        }
    }
}

impl Encoding {
    /// The picture as the bytes of a file.
    ///
    /// # Errors
    /// When it is too large for the format (a JPEG has no more than 65,535 pixels a side), or empty.
    pub fn encode(self, picture: &RgbImage) -> Result<Vec<u8>, ExplainError> {
        let (width, height) = picture.dimensions();
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| ExplainError::Encode { width, height, source };
        // About what a photograph takes.
        let mut bytes = Vec::with_capacity((width * height / 2) as usize);
        match self {
            Self::Jpeg(quality) => {
                let (w, h) = (u16::try_from(width), u16::try_from(height));
                let (w, h) =
                    (w.map_err(|error| failed(error.into()))?, h.map_err(|error| failed(error.into()))?);
                let mut encoder = Encoder::new(&mut bytes, quality.clamp(1, 100));
                encoder.set_sampling_factor(SamplingFactor::F_2_2);
                encoder
                    .encode(picture.as_raw(), w, h, ColorType::Rgb)
                    .map_err(|error| failed(error.into()))?;
            }
            Self::Png => {
                picture
                    .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
                    .map_err(|error| failed(error.into()))?;
            }
        }
        Ok(bytes)
    }

    /// The picture as a message holds it.
    ///
    /// # Errors
    /// As [`Encoding::encode`].
    pub fn image(self, picture: &RgbImage) -> Result<chat_client::Image, ExplainError> {
        let media_type = match self {
            Self::Jpeg(_) => "image/jpeg",
            Self::Png => "image/png",
        };
        Ok(chat_client::Image::new(media_type, self.encode(picture)?))
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn sizes_keep_the_aspect_and_nothing_is_enlarged() {
        for (fit, from, to) in [
            (Fit::Within(336), (672, 448), (336, 224)),
            (Fit::Within(336), (448, 672), (224, 336)),
            (Fit::Within(336), (100, 60), (100, 60)),
            (Fit::Within(336), (336, 336), (336, 336)),
            (Fit::Within(10), (5000, 3), (10, 1)),
            (Fit::Within(2), (3, 2), (2, 1)),
            (Fit::Square(336), (100, 60), (336, 336)),
            (Fit::Own, (5000, 3), (5000, 3)),
        ] {
            assert_eq!(fit.size(from.0, from.1), to, "{fit:?} of {from:?}");
            let applied = fit.apply(RgbImage::new(from.0, from.1));
            assert_eq!(applied.dimensions(), to);
        }
    }

    #[test]
    fn encoded_pictures_are_read_back() {
        let picture = RgbImage::from_fn(40, 24, |x, y| Rgb([(x * 6) as u8, (y * 10) as u8, 128]));
        let png = Encoding::Png.encode(&picture).unwrap();
        assert_eq!(lmm_prep::decode_image(&png).unwrap(), picture);
        for quality in [75, 90] {
            let jpeg = Encoding::Jpeg(quality).encode(&picture).unwrap();
            assert_eq!(&jpeg[..2], [0xff, 0xd8]);
            let read = lmm_prep::decode_image(&jpeg).unwrap();
            let off = read.as_raw().iter().zip(picture.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= 24, "quality {quality}: off by {off}");
        }
        assert!(Encoding::Jpeg(90).encode(&RgbImage::new(70_000, 1)).is_err());
    }
}
