//! PIL's image resize for 8-bit RGB, bit for bit.
//!
//! Pillow (`src/libImaging/Resample.c`, 13.0) resizes in two passes, horizontal then vertical or the other way round
//! (`is_vertical_first`), and rounds to 8 bits after each. Weights are doubles, normalised, then rounded to 22 fractional bits; sums are 32-bit integers. All of that is
//! reproduced; what is free is the order of the sums, which integers do not notice. So the horizontal pass runs on blocks
//! of rows turned on their side, where it is the same walk down columns of contiguous bytes as the vertical pass.

use std::ops::Range;

use image::RgbImage;
use rayon::prelude::*;
use serde_json::Value;

use crate::json::FromJson;

/// PIL's resampling filters, by PIL's number in `preprocessor_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// 0: the pixel under the centre.
    Nearest,
    /// 1: windowed sinc over 3 source pixels either side.
    Lanczos,
    /// 2: triangle.
    Bilinear,
    /// 3: Keys' cubic with a = -0.5.
    Bicubic,
    /// 4: mean of the covered pixels.
    Box,
    /// 5: Hamming-windowed sinc over 1 pixel either side.
    Hamming,
}

impl Filter {
    /// The filter PIL numbers so.
    pub fn from_pil(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Nearest,
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            _ => return None,
        })
    }

    /// Half the width of the filter at scale 1, in source pixels.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
        };
        match self {
            Self::Nearest => 1.0,
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => match x.abs() {
                0.0 => 1.0,
                x if x >= 1.0 => 0.0,
                x => {
                    let x = x * std::f64::consts::PI;
                    // C has 0.54f and 0.46f here.
                    x.sin() / x * (f64::from(0.54_f32) + f64::from(0.46_f32) * x.cos())
                }
            },
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

impl FromJson for Filter {
    const EXPECTED: &'static str =
        "0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (hamming)";
    fn from_json(value: &Value) -> Option<Self> {
        Self::from_pil(u32::from_json(value)?)
    }
}

/// Fractional bits of a weight: 32 bits less 8 for the pixel and 2 for overshoot and sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Channels of a pixel.
const CHANNELS: usize = 3;

/// Rows turned on their side at once: 16 rows x 3 channels fill six 256-bit registers of sums.
const BLOCK_ROWS: usize = 16;

/// Bytes of a turned block's column, and of the vertical pass's step: the sums that live in registers.
const LANES: usize = BLOCK_ROWS * CHANNELS;

/// Which source pixels make each output pixel of one axis, and with what weight.
struct Taps {
    /// For output i: the first source pixel, and its weights' range in `weights`.
    windows: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    /// Those of the output pixels `shown`, of `target`.
    fn new(filter: Filter, source: usize, target: usize, shown: &Range<usize>) -> Self {
        let scale = source as f64 / target as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let mut windows = Vec::with_capacity(shown.len());
        let mut weights = Vec::new();
        let mut exact = Vec::new();
        for index in shown.clone() {
            let center = (index as f64 + 0.5) * scale;
            // C's conversion to int truncates towards zero, as `as` does.
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as i64).min(source as i64) as usize;
            exact.clear();
            exact.extend((first..end).map(|x| filter.weight((x as f64 - center + 0.5) * inverse)));
            let total: f64 = exact.iter().sum();
            let start = weights.len();
            weights.extend(exact.iter().map(|&weight| {
                let weight = if total == 0.0 { weight } else { weight / total };
                let scaled = weight * f64::from(1 << PRECISION_BITS);
                if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
            }));
            windows.push((first, start..weights.len()));
        }
        Self { windows, weights }
    }

    /// The source pixels that have a weight.
    fn source(&self) -> Range<usize> {
        let first = self.windows.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self.windows.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        first..end.max(first)
    }

    /// The same for a source that begins at the pixel `first` of this one.
    fn starting_at(mut self, first: usize) -> Self {
        for window in &mut self.windows {
            window.0 -= first;
        }
        self
    }
}

/// How the pixels of one axis come about: those of the source that are needed, and their weights unless they stay as they are.
struct Axis {
    source: Range<usize>,
    taps: Option<Taps>,
}

impl Axis {
    fn new(filter: Filter, source: usize, target: usize, shown: &Range<usize>) -> Self {
        if source == target {
            return Self { source: shown.clone(), taps: None };
        }
        let taps = Taps::new(filter, source, target, shown);
        let source = taps.source();
        Self { taps: Some(taps.starting_at(source.start)), source }
    }
}

/// Resizes to `height` x `width` as `PIL.Image.resize((width, height), filter)` does. The same size is a copy.
///
/// # Panics
/// If either image has no pixels.
#[track_caller]
pub fn resize(image: &RgbImage, height: u32, width: u32, filter: Filter) -> RgbImage {
    let (from_height, from_width) = (image.height(), image.width());
    assert!(
        from_height > 0 && from_width > 0 && height > 0 && width > 0,
        "resize of {from_height}x{from_width} pixels to {height}x{width}"
    );
    if (from_height, from_width) == (height, width) {
        return image.clone();
    }
    resize_window(image, height, width, &(0..height as usize), &(0..width as usize), filter)
}

/// The pixels of these rows and columns of [`resize`]'s image, to the bit, made without the others: the memory it takes does not
/// grow with `height` and `width`.
///
/// # Panics
/// If the image or the window has no pixels, or the window reaches beyond `height` x `width`.
#[track_caller]
pub(crate) fn resize_window(
    image: &RgbImage,
    height: u32,
    width: u32,
    rows: &Range<usize>,
    cols: &Range<usize>,
    filter: Filter,
) -> RgbImage {
    let (from_rows, from_cols) = (image.height() as usize, image.width() as usize);
    let fits = rows.end <= height as usize && cols.end <= width as usize;
    assert!(
        from_rows > 0 && from_cols > 0 && !rows.is_empty() && !cols.is_empty() && fits,
        "rows {rows:?} and columns {cols:?} of {from_rows}x{from_cols} pixels resized to {height}x{width}"
    );
    if filter == Filter::Nearest {
        return nearest(image, height, width, rows, cols);
    }
    let down = Axis::new(filter, from_rows, height as usize, rows);
    let across = Axis::new(filter, from_cols, width as usize, cols);
    let needed = cut_out(image, &down.source, &across.source);
    let source = needed.as_ref().map_or(image.as_raw().as_slice(), Vec::as_slice);
    let (from_row, to_row) = (across.source.len() * CHANNELS, cols.len() * CHANNELS);
    let bytes = match (&across.taps, &down.taps) {
        (Some(across), Some(down)) if is_vertical_first(image, height, width) => {
            horizontal(&vertical(source, from_row, down), from_row, across)
        }
        (Some(across), Some(down)) => vertical(&horizontal(source, from_row, across), to_row, down),
        (Some(across), None) => horizontal(source, from_row, across),
        (None, Some(down)) => vertical(source, from_row, down),
        (None, None) => source.to_vec(),
    };
    RgbImage::from_raw(cols.len() as u32, rows.len() as u32, bytes)
        .expect("both passes fill rows x columns x 3 bytes")
}

/// The bytes of these rows and columns; `None` where that is the whole image.
fn cut_out(image: &RgbImage, rows: &Range<usize>, cols: &Range<usize>) -> Option<Vec<u8>> {
    let (height, width) = (image.height() as usize, image.width() as usize);
    if (rows, cols) == (&(0..height), &(0..width)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(rows.len() * cols.len() * CHANNELS);
    for row in image.as_raw().chunks_exact(width * CHANNELS).take(rows.end).skip(rows.start) {
        bytes.extend_from_slice(&row[cols.start * CHANNELS..cols.end * CHANNELS]);
    }
    Some(bytes)
}

/// Whether the vertical pass goes first: where the height loses more than twice the pixels the width does. Since Pillow
/// 13 (its pull request 9549); before, the horizontal pass always did.
fn is_vertical_first(image: &RgbImage, height: u32, width: u32) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (rows, cols) = (lost(image.height(), height), lost(image.width(), width));
    rows > 0 && rows > 2 * cols
}

/// Every row, `from_row` bytes, to `taps.windows.len()` pixels.
fn horizontal(source: &[u8], from_row: usize, taps: &Taps) -> Vec<u8> {
    let to_row = taps.windows.len() * CHANNELS;
    let mut target = vec![0; source.len() / from_row * to_row];
    let blocks = target.par_chunks_mut(BLOCK_ROWS * to_row).zip(source.par_chunks(BLOCK_ROWS * from_row));
    blocks.for_each_init(
        || vec![0; from_row / CHANNELS * LANES],
        |turned, (target, source)| {
            // A short last block leaves old rows in the remaining lanes; they are computed and not copied out.
            for (row, bytes) in source.chunks_exact(from_row).enumerate() {
                for (pixel, column) in bytes.chunks_exact(CHANNELS).zip(turned.chunks_exact_mut(LANES)) {
                    column[row * CHANNELS..][..CHANNELS].copy_from_slice(pixel);
                }
            }
            let mut column = [0; LANES];
            for (col, (first, weights)) in taps.windows.iter().enumerate() {
                weighted_sum(&turned[first * LANES..], LANES, &taps.weights[weights.clone()], &mut column);
                for (row, pixel) in target.chunks_exact_mut(to_row).zip(column.chunks_exact(CHANNELS)) {
                    row[col * CHANNELS..][..CHANNELS].copy_from_slice(pixel);
                }
            }
        },
    );
    target
}

/// Every column to `taps.windows.len()` rows; `row` is the bytes of one row.
fn vertical(source: &[u8], row: usize, taps: &Taps) -> Vec<u8> {
    let mut target = vec![0; taps.windows.len() * row];
    target.par_chunks_mut(row).zip(&taps.windows).for_each(|(target, (first, weights))| {
        let source = &source[first * row..];
        let weights = &taps.weights[weights.clone()];
        let mut steps = target.chunks_exact_mut(LANES);
        for (step, lanes) in (&mut steps).enumerate() {
            let lanes = lanes.try_into().expect("a chunk of LANES bytes");
            weighted_sum(&source[step * LANES..], row, weights, lanes);
        }
        let rest = steps.into_remainder();
        let offset = row - rest.len();
        for (lane, value) in rest.iter_mut().enumerate() {
            let sum = weights.iter().enumerate().fold(HALF, |sum, (tap, &weight)| {
                sum.wrapping_add(i32::from(source[tap * row + offset + lane]).wrapping_mul(weight))
            });
            *value = clipped(sum);
        }
    });
    target
}

/// Half a unit in the last place kept.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn clipped(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// `lanes[l] = clip(round(sum over t of weights[t] * source[t * stride + l]))`, by the widest instructions there are.
fn weighted_sum(source: &[u8], stride: usize, weights: &[i32], lanes: &mut [u8; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if x86::weighted_sum_avx2(source, stride, weights, lanes) {
        return;
    }
    weighted_sum_portable(source, stride, weights, lanes);
}

#[expect(clippy::inline_always, reason = "its AVX2 twin must contain it, not call it")]
#[inline(always)]
fn weighted_sum_portable(source: &[u8], stride: usize, weights: &[i32], lanes: &mut [u8; LANES]) {
    let mut sums = [HALF; LANES];
    for (tap, &weight) in weights.iter().enumerate() {
        let bytes = &source[tap * stride..][..LANES];
        for (sum, &byte) in sums.iter_mut().zip(bytes) {
            *sum = sum.wrapping_add(i32::from(byte).wrapping_mul(weight));
        }
    }
    for (lane, sum) in lanes.iter_mut().zip(sums) {
        *lane = clipped(sum);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(unsafe_code, reason = "a function compiled for AVX2 may only be called where AVX2 is")]

    use super::{LANES, weighted_sum_portable};

    /// The portable sum, compiled for AVX2. False, and nothing done, where the CPU has none.
    pub(super) fn weighted_sum_avx2(
        source: &[u8],
        stride: usize,
        weights: &[i32],
        lanes: &mut [u8; LANES],
    ) -> bool {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return false;
        }
        // SAFETY: the CPU has AVX2, the only thing `compiled` asks for.
        unsafe { compiled(source, stride, weights, lanes) };
        true
    }

    #[target_feature(enable = "avx2")]
    fn compiled(source: &[u8], stride: usize, weights: &[i32], lanes: &mut [u8; LANES]) {
        weighted_sum_portable(source, stride, weights, lanes);
    }
}

/// PIL's affine transform with the nearest filter, which is what its resize does for `NEAREST`; of it these rows and columns.
fn nearest(image: &RgbImage, height: u32, width: u32, rows: &Range<usize>, cols: &Range<usize>) -> RgbImage {
    // The source coordinate is accumulated, not multiplied: its rounding errors are part of the result.
    let indices = |source: u32, target: u32, shown: &Range<usize>| -> Vec<u32> {
        let step = f64::from(source) / f64::from(target);
        let mut position = step * 0.5;
        let mut indices = Vec::with_capacity(shown.len());
        for target in 0..shown.end {
            if target >= shown.start {
                indices.push((position as u32).min(source - 1));
            }
            position += step;
        }
        indices
    };
    let (from_rows, from_cols) = (indices(image.height(), height, rows), indices(image.width(), width, cols));
    RgbImage::from_fn(cols.len() as u32, rows.len() as u32, |x, y| {
        *image.get_pixel(from_cols[x as usize], from_rows[y as usize])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_what_the_whole_has_there() {
        let image = RgbImage::from_fn(37, 23, |x, y| {
            image::Rgb([(x * 7 + y) as u8, (y * 11) as u8, (x * x + y * y) as u8])
        });
        // Larger, smaller, one axis only, and the vertical pass first.
        let sizes = [(70, 91), (9, 12), (23, 50), (50, 37), (23, 20), (5, 37), (4, 36)];
        let filters = [
            Filter::Nearest,
            Filter::Box,
            Filter::Bilinear,
            Filter::Hamming,
            Filter::Bicubic,
            Filter::Lanczos,
        ];
        for (height, width) in sizes {
            for filter in filters {
                let whole = resize(&image, height, width, filter);
                let (bottom, right) = (height as usize, width as usize);
                for (rows, cols) in [
                    (0..1, 0..right),
                    (bottom - 1..bottom, right / 2..right),
                    (bottom / 3..bottom - 1, 1..right - 1),
                ] {
                    let got = resize_window(&image, height, width, &rows, &cols, filter);
                    let wanted = RgbImage::from_fn(cols.len() as u32, rows.len() as u32, |x, y| {
                        *whole.get_pixel(x + cols.start as u32, y + rows.start as u32)
                    });
                    assert!(got == wanted, "{rows:?} x {cols:?} of {height} x {width}, {filter:?}");
                }
            }
        }
    }

    #[test]
    fn every_path_of_the_sum_gives_the_plain_sum() {
        let source: Vec<u8> = (0..LANES * 40).map(|i| (i * 193 % 251) as u8).collect();
        for taps in [0, 1, 2, 3, 7, 39] {
            let weights: Vec<i32> = (0..taps).map(|tap| (tap * 1_234_567) % 4_000_001 - 900_000).collect();
            let expected: Vec<u8> = (0..LANES)
                .map(|lane| {
                    let exact: i64 = (0..taps as usize)
                        .map(|tap| i64::from(source[tap * LANES + lane]) * i64::from(weights[tap]))
                        .sum();
                    clipped((exact + i64::from(HALF)) as i32)
                })
                .collect();
            let (mut portable, mut chosen) = ([0; LANES], [0; LANES]);
            weighted_sum_portable(&source, LANES, &weights, &mut portable);
            weighted_sum(&source, LANES, &weights, &mut chosen);
            assert_eq!(portable[..], expected[..], "portable, {taps} taps");
            assert_eq!(chosen[..], expected[..], "chosen, {taps} taps");
        }
    }
}
