//! [`Places`]: which rows of a padded batch count, and which predict what.

use lmm_hooks::Batch;
use lmm_prep::{Inputs, TokenKind};
use tch::{Device, Tensor};

/// Rows of a batch's tensors, flattened to `[batch · tokens, width]`.
#[derive(Debug)]
pub(crate) struct Places {
    /// The counted tokens: first all image tokens, then all text tokens.
    pub(crate) counted: Tensor,
    /// How many of them are image tokens.
    pub(crate) images: usize,
    /// Tokens that are followed by a text token of their sample.
    pub(crate) predicting: Tensor,
    /// The ids of those text tokens.
    pub(crate) targets: Tensor,
}

impl Places {
    #[track_caller]
    pub(crate) fn new(batch: &Batch, inputs: &[&Inputs], counted: &[Vec<usize>], device: Device) -> Self {
        assert_eq!(inputs.len(), batch.len(), "inputs against samples of the batch");
        assert_eq!(counted.len(), batch.len(), "lists of counted positions against samples of the batch");
        let (mut images, mut texts) = (Vec::new(), Vec::new());
        let (mut predicting, mut targets) = (Vec::new(), Vec::new());
        for (row, (inputs, counted)) in inputs.iter().zip(counted).enumerate() {
            let tokens = batch.tokens_of(row);
            assert_eq!(inputs.input_ids.len(), tokens.len(), "tokens of sample {row} against its batch");
            let rising = counted.is_sorted_by(|a, b| a < b);
            let within = counted.last().is_none_or(|&last| last < tokens.len());
            assert!(
                rising && within,
                "positions of sample {row} must rise strictly and stay below {}",
                tokens.len()
            );
            let place = |position: usize| (row * batch.width() + tokens.start + position) as i64;
            for &position in counted {
                match inputs.layout.kind(position) {
                    TokenKind::Text => texts.push(place(position)),
                    TokenKind::Base { .. } | TokenKind::Tile { .. } | TokenKind::Newline { .. } => {
                        images.push(place(position));
                    }
                }
            }
            for next in (1..tokens.len()).filter(|&next| inputs.layout.kind(next) == TokenKind::Text) {
                predicting.push(place(next - 1));
                targets.push(i64::from(inputs.input_ids[next]));
            }
        }
        let n_images = images.len();
        images.extend(texts);
        let tensor = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        Self {
            counted: tensor(&images),
            images: n_images,
            predicting: tensor(&predicting),
            targets: tensor(&targets),
        }
    }

    /// How many tokens predict.
    pub(crate) fn predictions(&self) -> usize {
        self.predicting.size()[0] as usize
    }
}

/// `[batch, tokens, width]` as rows `[batch · tokens, width]`.
pub(crate) fn rows(tensor: &Tensor) -> Tensor {
    tensor.reshape([-1, tensor.size()[2]])
}
