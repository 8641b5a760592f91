//! [`Detection`]: queries that are sure enough, as boxes in pixels with the words they fit.

use lmm_prep::{PrepError, Size, Tokenizer};
use torch_nn::tch::{Device, Kind, Tensor};

use super::decoder::Decoded;
use super::text::TextBatch;

/// From which probability on something counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// A query is a detection if it fits some token with more than this.
    pub box_threshold: f32,
    /// A token belongs to its phrase if the query fits it with more than this.
    pub text_threshold: f32,
}

impl Default for Thresholds {
    /// What multimodal-sae grounds explanations with.
    fn default() -> Self {
        Self { box_threshold: 0.3, text_threshold: 0.25 }
    }
}

/// Something that was found in an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// Left edge, in pixels of the image before it was resized.
    pub x0: f32,
    /// Upper edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Lower edge.
    pub y1: f32,
    /// The largest probability of a token.
    pub score: f32,
    /// The tokens it fits, decoded, as transformers has them: perhaps of several phrases, with their full stops, or none at
    /// all.
    pub phrase: String,
}

/// transformers' `post_process_grounded_object_detection` of a batch, but with the surest first; ties as queries are ordered.
/// `max_text_len` is that of the model.
///
/// # Errors
/// [`PrepError::Tokenizer`] when tokens cannot be decoded.
///
/// # Panics
/// When batch, texts and images are not equally many.
#[track_caller]
pub fn detections(
    decoded: &Decoded,
    texts: &TextBatch,
    images: &[Size],
    thresholds: Thresholds,
    max_text_len: usize,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<Detection>>, PrepError> {
    let (n, tokens) = (decoded.logits.size()[0] as usize, decoded.logits.size()[2] as usize);
    assert!(
        n == texts.ids.len() && n == images.len(),
        "{n} results, {} texts, {} images",
        texts.ids.len(),
        images.len()
    );
    let probabilities = decoded.logits.sigmoid();
    let rows = |x: &Tensor, image: usize| -> Vec<f32> {
        let flat = x.get(image as i64).to_kind(Kind::Float).to_device(Device::Cpu).reshape([-1]);
        Vec::try_from(flat).expect("a vector of f32")
    };
    (0..n)
        .map(|image| {
            let (boxes, probabilities) = (rows(&decoded.boxes, image), rows(&probabilities, image));
            let ids = &texts.ids[image];
            let (width, height) = (images[image].width as f32, images[image].height as f32);
            let mut found = Vec::new();
            for (corners, probabilities) in boxes.chunks_exact(4).zip(probabilities.chunks_exact(tokens)) {
                let score = probabilities.iter().copied().fold(0.0, f32::max);
                if score <= thresholds.box_threshold {
                    continue;
                }
                // The first and the last possible token belong to no phrase.
                let fits = |place: &usize| {
                    *place != 0
                        && *place + 1 != max_text_len
                        && probabilities[*place] > thresholds.text_threshold
                };
                let phrase: Vec<u32> = (0..ids.len()).filter(fits).map(|place| ids[place]).collect();
                let &[x, y, w, h] = corners else { continue };
                found.push(Detection {
                    x0: (x - 0.5 * w) * width,
                    y0: (y - 0.5 * h) * height,
                    x1: (x + 0.5 * w) * width,
                    y1: (y + 0.5 * h) * height,
                    score,
                    phrase: tokenizer.decode(&phrase, false)?,
                });
            }
            found.sort_by(|one, other| other.score.total_cmp(&one.score));
            Ok(found)
        })
        .collect()
}
