//! From an RGB image to normalised tiles, or to one: the pixel half of a processor.

use std::ops::Range;

use image::RgbImage;
use ndarray::{Array3, Array4};
use rayon::prelude::*;

use crate::anyres::{TileGrid, best_canvas, fitted_size};
use crate::config::{PreprocessorConfig, Size, TargetSize};
use crate::decode::MAX_PIXELS;
use crate::error::PrepError;
use crate::inputs::ImageTiles;
use crate::pixel_scale::PixelScale;
use crate::resample::{resize, resize_window};

/// Equal to transformers 4.57's `LlavaNextImageProcessor` ([`ImageProcessor::tiles`]), `CLIPImageProcessor` and
/// `BitImageProcessor` ([`ImageProcessor::whole`]; the PIL ones), to the bit.
///
/// Two differences, both where Python guesses: images 1 or 3 pixels high are not taken for channels-first arrays, and
/// tiles are never padded to the largest count of a batch. The `Fast` classes resize by torchvision instead of PIL; their
/// pixels differ in the last bits and are not reproduced.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    config: PreprocessorConfig,
    scale: PixelScale,
}

impl ImageProcessor {
    /// A processor with these settings.
    pub fn new(config: PreprocessorConfig) -> Self {
        let scale = PixelScale::new(config.pixels);
        Self { config, scale }
    }

    /// The settings.
    pub fn config(&self) -> &PreprocessorConfig {
        &self.config
    }

    /// The tiles of `image`, for a vision tower with patches of `patch_size` pixels.
    ///
    /// # Errors
    /// [`PrepError::EmptyImage`] for an image without pixels, [`PrepError::Tiling`] where the settings yield tiles that
    /// are not square, not equal, or do not fill the canvas.
    ///
    /// # Panics
    /// If `patch_size` is 0.
    #[track_caller]
    pub fn tiles(&self, image: &RgbImage, patch_size: usize) -> Result<ImageTiles, PrepError> {
        assert!(patch_size > 0, "patches of 0 pixels");
        let original = Size { height: image.height(), width: image.width() };
        if original.height == 0 || original.width == 0 {
            return Err(PrepError::EmptyImage { height: original.height, width: original.width });
        }
        let config = &self.config;
        let base_side = config.base_side();
        let size = best_canvas(original, &config.image_grid_pinpoints);
        let fitted = fitted_size(original, size);
        let (base, canvas) = rayon::join(
            || resize(image, base_side, base_side, config.resample),
            || padded(&resize(image, fitted.height, fitted.width, config.resample), size),
        );
        let crop = config.crop_size.height as usize;
        let mut regions = vec![Region::whole(&base)];
        for top in (0..canvas.height() as usize).step_by(crop) {
            for left in (0..canvas.width() as usize).step_by(crop) {
                regions.push(Region::of(&canvas, top, left, crop));
            }
        }

        let sizes: Vec<Size> = regions.iter().map(|region| self.finished_size(region)).collect();
        let side = sizes[0].height;
        if let Some(odd) = sizes.iter().position(|&tile| tile != Size { height: side, width: side }) {
            let what =
                format!("tile {odd} of a {original} image comes out {}, tile 0 {}", sizes[odd], sizes[0]);
            return Err(PrepError::Tiling { what });
        }
        let side = side as usize;
        if side < patch_size {
            let what = format!("tiles of {side} pixels are smaller than a patch of {patch_size}");
            return Err(PrepError::Tiling { what });
        }
        let grid = TileGrid::new(original, &config.image_grid_pinpoints, side, side / patch_size);
        if grid.n_tiles() != regions.len() {
            let what = format!(
                "a {size} canvas is cut into {} tiles of {crop} pixels, but holds {} of {side}",
                regions.len() - 1,
                grid.n_tiles() - 1
            );
            return Err(PrepError::Tiling { what });
        }

        let mut pixels = Array4::zeros((regions.len(), 3, side, side));
        let flat = pixels.as_slice_mut().expect("a new array is contiguous");
        flat.par_chunks_mut(3 * side * side)
            .zip(&regions)
            .for_each(|(tile, region)| self.finish(region, (side, side), tile));
        Ok(ImageTiles { pixels, original, grid })
    }

    /// The whole `image` as one tile `[3, height, width]`: resized, cropped about its centre and normalised as the settings
    /// say, `image_grid_pinpoints` aside.
    ///
    /// Of the resized image only what the crop shows is made: the shorter edge of a thin image may become 224 pixels and the longer
    /// one millions.
    ///
    /// # Errors
    /// [`PrepError::EmptyImage`] for an image without pixels, [`PrepError::ThinImage`] for one that would come out with more pixels
    /// than an image file may have, or with more in a row or column than there are numbers for.
    pub fn whole(&self, image: &RgbImage) -> Result<Array3<f32>, PrepError> {
        if image.height() == 0 || image.width() == 0 {
            return Err(PrepError::EmptyImage { height: image.height(), width: image.width() });
        }
        let region = Region::whole(image);
        let size = self.finished_size(&region);
        let resized = self.resized_size(&region);
        if resized.height.max(resized.width) == u32::MAX
            || u64::from(size.height) * u64::from(size.width) > MAX_PIXELS
        {
            return Err(PrepError::ThinImage { height: image.height(), width: image.width(), resized });
        }
        let (height, width) = (size.height as usize, size.width as usize);
        let mut pixels = Array3::zeros((3, height, width));
        // A new array is contiguous.
        if let Some(flat) = pixels.as_slice_mut() {
            self.finish(&region, (height, width), flat);
        }
        Ok(pixels)
    }

    /// The size a tile has once it is resized and cropped.
    fn finished_size(&self, region: &Region<'_>) -> Size {
        if self.config.do_center_crop { self.config.crop_size } else { self.resized_size(region) }
    }

    fn resized_size(&self, region: &Region<'_>) -> Size {
        let own = Size { height: region.height as u32, width: region.width as u32 };
        match self.config.size {
            _ if !self.config.do_resize => own,
            TargetSize::Exact(size) => size,
            TargetSize::ShortestEdge(edge) => {
                let (short, long) = (own.height.min(own.width), own.height.max(own.width));
                let stretched = ((u64::from(edge) * u64::from(long)) as f64 / f64::from(short)) as u32;
                if own.width <= own.height {
                    Size { height: stretched, width: edge }
                } else {
                    Size { height: edge, width: stretched }
                }
            }
        }
    }

    /// Resizes, crops and normalises one tile into `tile`, `[3, height, width]`.
    fn finish(&self, region: &Region<'_>, (height, width): (usize, usize), tile: &mut [f32]) {
        let size = self.resized_size(region);
        // A crop larger than the tile shows zeros around it, a smaller one its middle. Python rounds both down.
        let rows = Shown::of(size.height as usize, height);
        let cols = Shown::of(size.width as usize, width);
        let resized;
        let (region, top, left) =
            if (size.height as usize, size.width as usize) == (region.height, region.width) {
                (region, rows.source.start, cols.source.start)
            } else {
                let window = |image: &RgbImage| {
                    let (rows, cols) = (&rows.source, &cols.source);
                    resize_window(image, size.height, size.width, rows, cols, self.config.resample)
                };
                resized = if region.is_whole() { window(region.image) } else { window(&region.copied()) };
                (&Region::whole(&resized), 0, 0)
            };
        let blank: [f32; 3] = std::array::from_fn(|channel| self.scale.table(channel)[0]);
        let (red, rest) = tile.split_at_mut(height * width);
        let (green, blue) = rest.split_at_mut(height * width);
        let (first, last) = (cols.before, cols.before + cols.source.len());
        let planes =
            red.chunks_exact_mut(width).zip(green.chunks_exact_mut(width)).zip(blue.chunks_exact_mut(width));
        let tables: [&[f32; 256]; 3] = std::array::from_fn(|channel| self.scale.table(channel));
        for (y, ((red, green), blue)) in planes.enumerate() {
            if !(rows.before..rows.before + rows.source.len()).contains(&y) {
                red.fill(blank[0]);
                green.fill(blank[1]);
                blue.fill(blank[2]);
                continue;
            }
            for (plane, blank) in [&mut *red, &mut *green, &mut *blue].into_iter().zip(blank) {
                plane[..first].fill(blank);
                plane[last..].fill(blank);
            }
            let pixels = region.row(top + y - rows.before)[left * 3..].chunks_exact(3);
            let planes = red[first..last].iter_mut().zip(&mut green[first..last]).zip(&mut blue[first..last]);
            for (((red, green), blue), pixel) in planes.zip(pixels) {
                *red = tables[0][usize::from(pixel[0])];
                *green = tables[1][usize::from(pixel[1])];
                *blue = tables[2][usize::from(pixel[2])];
            }
        }
    }
}

/// Of one axis, what a crop about the centre shows.
struct Shown {
    /// Zeros before the first pixel.
    before: usize,
    /// The pixels.
    source: Range<usize>,
}

impl Shown {
    /// Of `length` pixels cropped to `crop`.
    fn of(length: usize, crop: usize) -> Self {
        if crop > length {
            Self { before: (crop - length).div_ceil(2), source: 0..length }
        } else {
            let start = (length - crop) / 2;
            Self { before: 0, source: start..start + crop }
        }
    }
}

/// A rectangle of an image.
struct Region<'a> {
    image: &'a RgbImage,
    top: usize,
    left: usize,
    height: usize,
    width: usize,
}

impl<'a> Region<'a> {
    fn whole(image: &'a RgbImage) -> Self {
        Self { image, top: 0, left: 0, height: image.height() as usize, width: image.width() as usize }
    }

    /// The square of `side` pixels from (`top`, `left`), less what reaches beyond the image.
    fn of(image: &'a RgbImage, top: usize, left: usize, side: usize) -> Self {
        let height = side.min(image.height() as usize - top);
        let width = side.min(image.width() as usize - left);
        Self { image, top, left, height, width }
    }

    fn is_whole(&self) -> bool {
        (self.height, self.width) == (self.image.height() as usize, self.image.width() as usize)
    }

    /// Bytes of one row, red green blue.
    fn row(&self, y: usize) -> &[u8] {
        let start = ((self.top + y) * self.image.width() as usize + self.left) * 3;
        &self.image.as_raw()[start..start + self.width * 3]
    }

    fn copied(&self) -> RgbImage {
        let mut bytes = Vec::with_capacity(self.height * self.width * 3);
        for y in 0..self.height {
            bytes.extend_from_slice(self.row(y));
        }
        RgbImage::from_raw(self.width as u32, self.height as u32, bytes).expect("height rows of width pixels")
    }
}

/// `image` in the middle of a black canvas; an odd pixel of padding goes below and to the right.
fn padded(image: &RgbImage, canvas: Size) -> RgbImage {
    let mut whole = RgbImage::new(canvas.width, canvas.height);
    let bytes: &mut [u8] = &mut whole;
    let top = ((canvas.height - image.height()) / 2) as usize;
    let left = ((canvas.width - image.width()) / 2) as usize;
    let (row, canvas_row) = (image.width() as usize * 3, canvas.width as usize * 3);
    for (y, source) in image.as_raw().chunks_exact(row).enumerate() {
        bytes[(top + y) * canvas_row + left * 3..][..row].copy_from_slice(source);
    }
    whole
}
