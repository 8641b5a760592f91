//! Image files to 8-bit RGB, as PIL's `Image.open(file).convert("RGB")` gives them.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use crate::error::PrepError;

/// PIL's `2 * Image.MAX_IMAGE_PIXELS`, beyond which it raises `DecompressionBombError`.
pub(crate) const MAX_PIXELS: u64 = 2 * 89_478_485;

/// Decodes an image file's bytes (PNG, JPEG, GIF, BMP, TIFF, WebP, PNM) as PIL 13's
/// `Image.open(file).convert("RGB")` does. EXIF orientation is *not* applied, except to TIFF, where PIL itself does.
///
/// What PIL does that one might not expect, all reproduced:
/// * alpha is dropped, not blended: a transparent pixel keeps the colour stored under it; so with `tRNS`;
/// * 16-bit grey is *clipped* to 0..=255, not scaled: most of such an image turns white. Every other 16-bit layout is
///   scaled by taking the high byte;
/// * an animated file gives its first frame.
///
/// Bit-exact for the lossless formats and for lossy WebP as far as tried. Where it is not PIL:
/// * JPEG comes from another decoder than PIL's libjpeg-turbo, with another inverse cosine transform and chroma
///   upsampling. Measured on the fixtures: with full-size chroma (4:4:4) and grey 2 % of the values differ, by at most 2 of
///   255; with halved chroma (4:2:0) 28 % differ, 0.4 on average, at most 4;
/// * a GIF whose first frame leaves part of the screen uncovered is black there, not of the palette's first colour;
/// * TIFF with a palette is not read.
///
/// # Errors
/// [`PrepError::Decode`] for bytes that are no image of these formats, and [`PrepError::UnsupportedImage`] for
/// floating-point pixels and for more pixels than PIL opens (178,956,970).
pub fn decode_image(bytes: &[u8]) -> Result<RgbImage, PrepError> {
    let decoded = Decoded::new(bytes)?;
    let own = if decoded.format == Some(ImageFormat::Tiff) {
        decoded.orientation
    } else {
        Orientation::NoTransforms
    };
    decoded.rgb(own)
}

/// [`decode_image`], turned upright by its EXIF orientation: PIL's `ImageOps.exif_transpose`, which transformers'
/// `load_image` applies to the images it opens itself. An orientation given in XMP alone is not seen.
///
/// # Errors
/// As [`decode_image`].
pub fn decode_image_upright(bytes: &[u8]) -> Result<RgbImage, PrepError> {
    let decoded = Decoded::new(bytes)?;
    let orientation = decoded.orientation;
    decoded.rgb(orientation)
}

/// Reads an image file, upright as [`decode_image_upright`] turns it.
///
/// # Errors
/// [`PrepError::Read`] where the file cannot be had, [`PrepError::ImageFile`] where it is no image.
pub fn read_image_upright(path: &Path) -> Result<RgbImage, PrepError> {
    let bytes = std::fs::read(path).map_err(|source| PrepError::Read { path: path.to_owned(), source })?;
    decode_image_upright(&bytes)
        .map_err(|source| PrepError::ImageFile { path: path.to_owned(), source: Box::new(source) })
}

struct Decoded {
    format: Option<ImageFormat>,
    orientation: Orientation,
    /// 16-bit grey without an alpha channel of its own.
    clips: bool,
    image: DynamicImage,
}

impl Decoded {
    fn new(bytes: &[u8]) -> Result<Self, PrepError> {
        let failed = |source| PrepError::Decode { source };
        let reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|source| failed(image::ImageError::IoError(source)))?;
        let format = reader.format();
        let mut decoder = reader.into_decoder().map_err(failed)?;
        // A broken EXIF block does not make the pixels unreadable, for PIL neither.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            let what = format!("{width} x {height} pixels are more than the {MAX_PIXELS} PIL opens");
            return Err(PrepError::UnsupportedImage { what });
        }
        let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
        // Byte 25 of a PNG is its colour type: a grey image whose `tRNS` became an alpha channel is grey still.
        let grey_png = format == Some(ImageFormat::Png) && bytes.get(25) == Some(&0);
        let clips = matches!(image, DynamicImage::ImageLuma16(_)) || grey_png;
        Ok(Self { format, orientation, clips, image })
    }

    fn rgb(self, orientation: Orientation) -> Result<RgbImage, PrepError> {
        let (width, height) = (self.image.width(), self.image.height());
        if width == 0 || height == 0 {
            return Err(PrepError::EmptyImage { height, width });
        }
        let narrow = |value: u16| if self.clips { value.min(255) as u8 } else { (value >> 8) as u8 };
        let bytes: Vec<u8> = match self.image {
            DynamicImage::ImageRgb8(image) => image.into_raw(),
            DynamicImage::ImageLuma8(image) => image.iter().flat_map(|&grey| [grey; 3]).collect(),
            DynamicImage::ImageLumaA8(image) => image.pixels().flat_map(|pixel| [pixel[0]; 3]).collect(),
            DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
            DynamicImage::ImageLuma16(image) => image.iter().flat_map(|&grey| [narrow(grey); 3]).collect(),
            DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|p| [narrow(p[0]); 3]).collect(),
            DynamicImage::ImageRgb16(image) => image.iter().map(|&value| narrow(value)).collect(),
            DynamicImage::ImageRgba16(image) => {
                image.pixels().flat_map(|p| [narrow(p[0]), narrow(p[1]), narrow(p[2])]).collect()
            }
            other => {
                let what = format!("it has {:?} pixels; convert them to 8-bit RGB first", other.color());
                return Err(PrepError::UnsupportedImage { what });
            }
        };
        let image = RgbImage::from_raw(width, height, bytes).expect("three bytes for each pixel");
        if orientation == Orientation::NoTransforms {
            return Ok(image);
        }
        let mut image = DynamicImage::ImageRgb8(image);
        image.apply_orientation(orientation);
        Ok(image.into_rgb8())
    }
}
