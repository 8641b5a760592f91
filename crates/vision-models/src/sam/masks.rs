//! [`SamMask`]: the decoder's small scores as masks of the whole image, a few at a time.

use lmm_prep::Size;
use torch_nn::tch::{Device, Kind, Tensor, no_grad};

use super::processor::SamSizes;
use super::prompts::SamPrompt;
use super::{Sam, SamImage};
use crate::VisionError;

/// Prompts that go through the decoder together.
const PROMPTS_AT_ONCE: usize = 8;

/// Bytes of full-size scores that are there at once, unless one mask's are more.
const SCORE_BYTES: u64 = 128 << 20;

/// A mask of the whole image.
#[derive(Clone, Debug, PartialEq)]
pub struct SamMask {
    /// Which prompt asked for it, by its place among those given.
    pub prompt: usize,
    /// Whether each pixel belongs to it, row by row: `height · width`.
    pub pixels: Vec<bool>,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The IoU with the truth that the model expects of it.
    pub score: f32,
}

impl Sam {
    /// The masks of each prompt, in the order of the prompts: one each, or with `multimask` the several that a prompt may mean
    /// (3), in the model's order.
    ///
    /// Beside the masks themselves, a byte per pixel, it takes what [`Sam::for_each_mask`] does.
    ///
    /// # Errors
    /// As [`Sam::for_each_mask`].
    ///
    /// # Panics
    /// When a coordinate is not finite.
    #[track_caller]
    pub fn masks<P: Clone + Into<SamPrompt>>(
        &self,
        image: &SamImage,
        prompts: &[P],
        multimask: bool,
    ) -> Result<Vec<SamMask>, VisionError> {
        let mut masks = Vec::new();
        self.for_each_mask(image, prompts, multimask, |mask| masks.push(mask))?;
        Ok(masks)
    }

    /// Shows `each` mask of [`Sam::masks`], and keeps none.
    ///
    /// However many prompts there are, 8 of them are decoded together (some 250 MiB at 1024 pixels in f32), and full-size scores
    /// are made for as many masks as fit into some 128 MiB, at 4 bytes for each pixel of canvas and image, or for one; scaling
    /// copies part of them, so that the peak is nearer to twice as much.
    ///
    /// # Errors
    /// [`VisionError::NotFinite`] when a score is no number, before a mask of that prompt is shown.
    ///
    /// # Panics
    /// When a coordinate is not finite, or the image was embedded by a model of other sizes.
    #[track_caller]
    pub fn for_each_mask<P: Clone + Into<SamPrompt>>(
        &self,
        image: &SamImage,
        prompts: &[P],
        multimask: bool,
        each: impl FnMut(SamMask),
    ) -> Result<(), VisionError> {
        let at_once = masks_at_once(self.canvas(), image.sizes.original);
        self.for_each_of(image, prompts, multimask, at_once, each)
    }

    /// The same, with full-size scores of so many masks at once.
    #[track_caller]
    pub(super) fn for_each_of<P: Clone + Into<SamPrompt>>(
        &self,
        image: &SamImage,
        prompts: &[P],
        multimask: bool,
        at_once: i64,
        mut each: impl FnMut(SamMask),
    ) -> Result<(), VisionError> {
        let prompts: Vec<SamPrompt> = prompts.iter().cloned().map(Into::into).collect();
        let Size { height, width } = image.sizes.original;
        let dense = self.prompt_encoder().dense(None);
        let mut first = 0;
        // Only prompts with as many tokens go together: padding would be tokens of its own.
        for same in prompts.chunk_by(|one, next| one.tokens() == next.tokens()) {
            for some in same.chunks(PROMPTS_AT_ONCE) {
                let sparse = no_grad(|| self.prompt_encoder().sparse(some, &image.sizes));
                let (scores, qualities) = self.low_res_masks(&image.embedding, &sparse, &dense, multimask);
                let per_prompt = scores.size()[1] as usize;
                // Comparisons with NaN are false, so that masks would be empty.
                let finite = scores.isfinite().all().logical_and(&qualities.isfinite().all());
                if finite.int64_value(&[]) == 0 {
                    return Err(VisionError::NotFinite { what: "scores of masks" });
                }
                let qualities = numbers(&qualities);
                let scores = scores.flatten(0, 1);
                for (part, start) in scores.split(at_once, 0).iter().zip((0..).step_by(at_once as usize)) {
                    // One copy from the device for all of them.
                    let masks = full_size_masks(part, self.canvas(), &image.sizes).to_device(Device::Cpu);
                    for (index, mask) in (start..).zip(masks.unbind(0)) {
                        each(SamMask {
                            prompt: first + index / per_prompt,
                            pixels: booleans(&mask),
                            width,
                            height,
                            score: qualities[index],
                        });
                    }
                }
                first += some.len();
            }
        }
        Ok(())
    }

    fn canvas(&self) -> Size {
        self.processor().config().pad_size
    }
}

/// `SamImageProcessor.post_process_masks`: scores `[n, rows, columns]` of the whole canvas, scaled bilinearly to its pixels, cut to the
/// image, scaled to the image's own size, and true where they are positive: `[n, height, width]`, bool, on their device.
pub fn full_size_masks(scores: &Tensor, canvas: Size, sizes: &SamSizes) -> Tensor {
    no_grad(|| full_size_scores(scores, canvas, sizes).squeeze_dim(1).gt(0.0))
}

fn full_size_scores(scores: &Tensor, canvas: Size, sizes: &SamSizes) -> Tensor {
    let scaled = |x: &Tensor, to: Size| {
        x.upsample_bilinear2d([i64::from(to.height), i64::from(to.width)], false, None, None)
    };
    let on_canvas = scaled(&scores.to_kind(Kind::Float).unsqueeze(1), canvas);
    let (rows, cols) = (i64::from(sizes.resized.height), i64::from(sizes.resized.width));
    scaled(&on_canvas.narrow(2, 0, rows).narrow(3, 0, cols), sizes.original)
}

fn masks_at_once(canvas: Size, original: Size) -> i64 {
    let pixels = |size: Size| u64::from(size.height) * u64::from(size.width);
    let bytes = 4 * (pixels(canvas) + pixels(original));
    (SCORE_BYTES / bytes).max(1) as i64
}

fn numbers(x: &Tensor) -> Vec<f32> {
    let x = x.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Vec::try_from(&x).expect("a row of f32")
}

fn booleans(mask: &Tensor) -> Vec<bool> {
    Vec::try_from(&mask.contiguous().view(-1)).expect("a row of bool")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_scaled_cut_and_scaled_again() {
        // A canvas of 8 x 8 of whose pixels the image, 2 high and 4 wide, fills the upper 4 rows; scores at a quarter.
        let canvas = Size { height: 8, width: 8 };
        let sizes =
            SamSizes { original: Size { height: 2, width: 4 }, resized: Size { height: 4, width: 8 } };
        let scores = Tensor::from_slice(&[4.0_f32, -4.0, -100.0, -100.0]).view([1, 2, 2]);
        // Columns lie at 1/8 + x/4 of the width between scores at 1/4 and 3/4; the outer ones are held. On the canvas a row
        // reads 4 4 3 1 -1 -3 -4 -4; rows 0 and 1 are the upper scores, rows 2 and 3 go 1/8 and 3/8 of the way down to -100.
        let row = |way: f64| {
            [4.0, 4.0, 3.0, 1.0, -1.0, -3.0, -4.0, -4.0].map(|upper| upper + way * (-100.0 - upper))
        };
        let halved = |a: [f64; 8], b: [f64; 8]| -> Vec<f64> {
            (0..4).map(|x| (a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1]) / 4.0).collect()
        };
        let expected = [halved(row(0.0), row(0.0)), halved(row(0.125), row(0.375))].concat();
        let got = full_size_scores(&scores, canvas, &sizes);
        assert_eq!(got.size(), [1, 1, 2, 4]);
        for (got, expected) in numbers(&got).iter().zip(&expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} for {expected}");
        }
        let masks = full_size_masks(&scores, canvas, &sizes);
        assert_eq!(booleans(&masks), [true, true, false, false, false, false, false, false]);
    }

    #[test]
    fn full_size_scores_of_a_large_image_are_made_for_one_mask_at_a_time() {
        let canvas = Size { height: 1024, width: 1024 };
        let at_once = |height, width| masks_at_once(canvas, Size { height, width });
        assert_eq!([at_once(480, 640), at_once(1024, 1024), at_once(6000, 8000)], [24, 16, 1]);
    }
}
