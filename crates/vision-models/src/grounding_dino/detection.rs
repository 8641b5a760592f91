//! [`Detection`]: queries that are sure enough, as boxes in pixels with the words they fit.

use lmm_prep::{Size, Tokenizer};
use torch_nn::tch::{Device, Kind, Tensor};

use super::decoder::Decoded;
use super::text::TextBatch;
use crate::VisionError;

/// From which probability on something counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// A query is a detection if it fits some token with more than this.
    pub box_threshold: f32,
    /// A token belongs to its phrase if the query fits it with more than this.
    pub text_threshold: f32,
}

impl Default for Thresholds {
    /// 0.3 is what multimodal-sae grounds explanations with; the other is transformers' default. multimodal-sae does without words.
    fn default() -> Self {
        Self { box_threshold: 0.3, text_threshold: 0.25 }
    }
}

/// Something that was found in an image. A box may reach beyond it.
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
/// [`VisionError::NotFinite`] when a probability or a box is no number, [`VisionError::Prep`] when tokens cannot be decoded.
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
) -> Result<Vec<Vec<Detection>>, VisionError> {
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
            // Comparisons with NaN are false, so that nothing would be found.
            if boxes.iter().chain(&probabilities).any(|number| !number.is_finite()) {
                return Err(VisionError::NotFinite { what: "boxes and probabilities" });
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n.\n";
        std::fs::write(folder.path().join("vocab.txt"), vocabulary).unwrap();
        Tokenizer::load_or(folder.path(), lmm_prep::TokenizerClass::Bert).unwrap()
    }

    fn found(logit: f32, side: f32, limit: usize) -> Result<Vec<Detection>, VisionError> {
        // [CLS] red . [SEP] and filling; the second query fits nothing.
        let texts = TextBatch::of_ids(vec![vec![2, 5, 6, 3]], 0, Device::Cpu);
        let logits = [-9.0, logit, 2.0, 1.0, f32::NEG_INFINITY, -9.0, -9.0, -9.0, -9.0, f32::NEG_INFINITY];
        let decoded = Decoded {
            hidden: Vec::new(),
            reference: Vec::new(),
            logits: Tensor::from_slice(&logits).view([1, 2, 5]),
            boxes: Tensor::from_slice(&[0.5_f32, 0.5, side, 0.5, 0.5, 0.5, 0.5, 0.5]).view([1, 2, 4]),
        };
        let image = Size { height: 20, width: 10 };
        let thresholds = Thresholds { box_threshold: 0.3, text_threshold: 0.5 };
        Ok(detections(&decoded, &texts, &[image], thresholds, limit, &tokenizer())?.remove(0))
    }

    #[test]
    fn a_box_is_in_pixels_with_the_words_it_fits() {
        let seen = found(3.0, 0.5, 9).unwrap();
        assert_eq!(seen.len(), 1);
        let corners = [seen[0].x0, seen[0].y0, seen[0].x1, seen[0].y1];
        assert_eq!((corners, seen[0].phrase.as_str()), ([2.5, 5.0, 7.5, 15.0], "red. [SEP]"));
        // The last token that a text may have belongs to no phrase.
        assert_eq!(found(3.0, 0.5, 4).unwrap()[0].phrase, "red.");
    }

    #[test]
    fn what_is_no_number_is_an_error_and_not_nothing() {
        for (logit, side) in [(f32::NAN, 0.5), (3.0, f32::NAN)] {
            let error = found(logit, side, 9).unwrap_err();
            assert!(matches!(error, VisionError::NotFinite { .. }), "{error}");
        }
    }
}
