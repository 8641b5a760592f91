//! LLaVA-NeXT's anyres geometry: which canvas an image is fitted to, how, and which patches remain after unpadding.
//!
//! Ported from `select_best_resolution` and `get_patch_output_size` (`image_processing_utils.py`), `_get_padding_size`
//! (`image_processing_llava_next.py`), `get_anyres_image_grid_shape` and `unpad_image` (`modeling_llava_next.py`) of
//! transformers 4.57. The arithmetic is that of Python: IEEE double, in the same order, truncated where Python truncates.
//! Exact rational arithmetic would pick another canvas for the few sizes where `int(width * scale)` falls one short.

use std::ops::Range;

use crate::config::Size;

/// The canvas an image is fitted to: of those that keep most of its pixels, the one that wastes least; ties go to the
/// first. Kept pixels never exceed the image's own: enlarging gains nothing.
///
/// # Panics
/// If `canvases` is empty or the image or a canvas has no pixels.
#[track_caller]
pub fn best_canvas(image: Size, canvases: &[Size]) -> Size {
    assert!(image.height > 0 && image.width > 0, "an image of {image} pixels");
    let (height, width) = (f64::from(image.height), f64::from(image.width));
    let area = u64::from(image.height) * u64::from(image.width);
    let mut best: Option<(u64, u64, Size)> = None;
    for &canvas in canvases {
        assert!(canvas.height > 0 && canvas.width > 0, "a canvas of {canvas} pixels");
        let scale = (f64::from(canvas.width) / width).min(f64::from(canvas.height) / height);
        let kept = ((width * scale) as u64 * (height * scale) as u64).min(area);
        // Python's difference cannot go below zero either: the scaled image fits the canvas.
        let wasted = (u64::from(canvas.height) * u64::from(canvas.width)).saturating_sub(kept);
        if best.is_none_or(|(most, least, _)| kept > most || (kept == most && wasted < least)) {
            best = Some((kept, wasted, canvas));
        }
    }
    best.expect("image_grid_pinpoints holds at least one canvas").2
}

/// The size an image gets on `canvas`, aspect ratio kept: one side fills the canvas, the other is rounded up.
pub fn fitted_size(image: Size, canvas: Size) -> Size {
    let scale_width = f64::from(canvas.width) / f64::from(image.width);
    let scale_height = f64::from(canvas.height) / f64::from(image.height);
    if scale_width < scale_height {
        let height = (f64::from(image.height) * scale_width).ceil() as u32;
        Size { height: height.min(canvas.height), width: canvas.width }
    } else {
        let width = (f64::from(image.width) * scale_height).ceil() as u32;
        Size { height: canvas.height, width: width.min(canvas.width) }
    }
}

/// How the fitted image lies on its canvas, and what is left of the canvas in patches once the padding is cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileGrid {
    /// Tiles from top to bottom.
    pub rows_of_tiles: usize,
    /// Tiles from left to right.
    pub cols_of_tiles: usize,
    /// Patches along one side of a tile.
    pub patches_per_side: usize,
    /// Rows of patches of the whole canvas that are kept. Empty for a strip thinner than about a patch.
    pub keep_rows: Range<usize>,
    /// Columns of patches of the whole canvas that are kept. Empty for a strip thinner than about a patch.
    pub keep_cols: Range<usize>,
}

impl TileGrid {
    /// The grid of an image of size `original` among `canvases`, for square tiles of `tile_side` pixels.
    ///
    /// # Panics
    /// As [`best_canvas`], and if `tile_side` or `patches_per_side` is 0.
    #[track_caller]
    pub fn new(original: Size, canvases: &[Size], tile_side: usize, patches_per_side: usize) -> Self {
        assert!(
            tile_side > 0 && patches_per_side > 0,
            "tiles of {tile_side} pixels, {patches_per_side} patches"
        );
        let canvas = best_canvas(original, canvases);
        let rows_of_tiles = canvas.height as usize / tile_side;
        let cols_of_tiles = canvas.width as usize / tile_side;
        let rows = rows_of_tiles * patches_per_side;
        let cols = cols_of_tiles * patches_per_side;
        let (height, width) = (f64::from(original.height), f64::from(original.width));
        let (mut keep_rows, mut keep_cols) = (0..rows, 0..cols);
        // The aspect ratio decides which axis was padded: rows for an image wider than its canvas, else columns.
        if width / height > cols as f64 / rows as f64 {
            keep_rows = centred(rows, rounded_then_truncated(height * (cols as f64 / width)));
        } else {
            keep_cols = centred(cols, rounded_then_truncated(width * (rows as f64 / height)));
        }
        Self { rows_of_tiles, cols_of_tiles, patches_per_side, keep_rows, keep_cols }
    }

    /// Tiles in all, the base tile included.
    pub fn n_tiles(&self) -> usize {
        1 + self.rows_of_tiles * self.cols_of_tiles
    }

    /// Rows and columns of patches of the whole canvas, padding included.
    pub fn canvas(&self) -> (usize, usize) {
        (self.rows_of_tiles * self.patches_per_side, self.cols_of_tiles * self.patches_per_side)
    }

    /// Rows and columns of patches of the base tile.
    pub fn base(&self) -> (usize, usize) {
        (self.patches_per_side, self.patches_per_side)
    }

    /// Rows and columns of patches that are kept of the canvas.
    pub fn high(&self) -> (usize, usize) {
        (self.keep_rows.len(), self.keep_cols.len())
    }

    /// How many tokens the image becomes: base patches, kept patches, and one newline for each kept row.
    pub fn n_tokens(&self) -> usize {
        let (rows, cols) = self.high();
        self.patches_per_side * self.patches_per_side + rows * (cols + 1)
    }
}

/// The middle of `0..whole` that is left when `(whole - wanted) / 2`, rounded down, goes from both ends.
fn centred(whole: usize, wanted: usize) -> Range<usize> {
    let padding = whole.saturating_sub(wanted) / 2;
    padding..whole - padding
}

/// Python's `int(round(value, 7))` for `value >= 0`. A tie is impossible: 5e-8 is not a sum of powers of two.
fn rounded_then_truncated(value: f64) -> usize {
    let floor = value.floor();
    if floor + 1.0 - value < 5e-8 { floor as usize + 1 } else { floor as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_decimals_then_truncation_as_python_has_it() {
        // From Python: [int(round(x, 7)) for x in ...]
        for (value, expected) in [
            (0.0, 0),
            (0.999_999_94, 0),
            (0.999_999_96, 1),
            (11.999_999_949_999, 11),
            (11.999_999_950_001, 12),
            (12.0, 12),
            (47.5, 47),
        ] {
            assert_eq!(rounded_then_truncated(value), expected, "{value}");
        }
    }

    #[test]
    fn a_strip_thinner_than_a_patch_keeps_no_rows() {
        let canvases = [Size { height: 336, width: 672 }, Size { height: 336, width: 1008 }];
        let grid = TileGrid::new(Size { height: 1, width: 2000 }, &canvases, 336, 24);
        assert_eq!(grid.high(), (0, grid.canvas().1));
        assert_eq!(grid.n_tokens(), 576);
    }
}
