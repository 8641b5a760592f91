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
    /// Tokens whose next one is predicted.
    pub(crate) predicting: Tensor,
    /// The ids of those next tokens.
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
            for next in predicted(inputs) {
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

/// The positions that are predicted: what the assistant says, which a model of chats was trained on, or without turns every text
/// token but the first.
fn predicted(inputs: &Inputs) -> Vec<usize> {
    let says = |position: &usize| *position > 0 && inputs.layout.kind(*position) == TokenKind::Text;
    if inputs.turns.is_empty() {
        return (1..inputs.input_ids.len()).filter(says).collect();
    }
    let answers = inputs.turns.iter().filter(|turn| turn.role == "assistant");
    answers.flat_map(|turn| turn.tokens.clone()).filter(says).collect()
}

/// `[batch, tokens, width]` as rows `[batch · tokens, width]`.
pub(crate) fn rows(tensor: &Tensor) -> Tensor {
    tensor.reshape([-1, tensor.size()[2]])
}

#[cfg(test)]
mod tests {
    use lmm_prep::{ImageSpan, TokenLayout, TurnSpan};

    use super::*;

    #[test]
    fn answers_are_predicted_or_without_turns_all_text() {
        let images = vec![ImageSpan { start: 1, base: (1, 2), high: (0, 0) }];
        let layout = TokenLayout { images, n_tokens: 9 };
        let mut inputs = Inputs { input_ids: vec![0; 9], images: Vec::new(), layout, turns: Vec::new() };
        assert_eq!(predicted(&inputs), [3, 4, 5, 6, 7, 8]);
        let turn = |role: &str, tokens| TurnSpan { role: role.to_owned(), tokens };
        inputs.turns = vec![turn("user", 0..4), turn("assistant", 5..7), turn("assistant", 8..9)];
        assert_eq!(predicted(&inputs), [5, 6, 8]);
    }
}
