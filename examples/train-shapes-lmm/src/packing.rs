//! Several questions after one image, each seeing only the image and itself.
//!
//! The image prefix is most of a sequence, so asking everything a scene allows at once multiplies the
//! supervision per image. Segments restart their positions behind the prefix and are masked from each other,
//! so the model sees each question exactly as it will when asked alone.

use anyhow::Result;
use lmm_hooks::{Batch, PaddingSide};
use lmm_prep::{Inputs, Tokenizer};
use tch::{Device, Kind, Tensor};

use crate::lessons::Lesson;

/// What stands around an answer, as the chat template has it.
const BEFORE_ANSWER: &str = "assistant :";
const AFTER_ANSWER: &str = "</s>";

/// Prompts with their packed questions, and what is to be learnt from them.
pub(crate) struct Packed {
    pub(crate) batch: Batch,
    /// Flat indices into `[prompts * tokens]` of the positions that predict a target.
    pub(crate) predicting: Tensor,
    /// The target token of each predicting position.
    pub(crate) targets: Tensor,
}

/// One question in token ids, with its answer.
struct Turn {
    question: Vec<u32>,
    answer: Vec<u32>,
}

/// Puts the questions of each prompt behind it; it ends with its last image.
pub(crate) fn pack(lesson: &Lesson, tokenizer: &Tokenizer, kind: Kind) -> Result<Packed> {
    let rows: Vec<Vec<Turn>> = lesson
        .turns
        .iter()
        .map(|turns| turns.iter().map(|(question, answer)| Turn::new(question, answer, tokenizer)).collect())
        .collect::<Result<_>>()?;
    let total = rows
        .iter()
        .zip(&lesson.prompts)
        .map(|(turns, prompt)| prompt.input_ids.len() + turns.iter().map(Turn::len).sum::<usize>())
        .max()
        .unwrap_or(0);
    let n = rows.len();
    let mut positions: Vec<i64> = (0..n).flat_map(|_| 0..total as i64).collect();
    // Segment 0 is the prompt, seen by all; -1 is padding, which sees only the prompt and itself.
    let mut segments = vec![-1i64; n * total];
    let (mut predicting, mut targets) = (Vec::new(), Vec::new());
    let mut inputs = lesson.prompts.clone();
    for (row, (turns, inputs)) in rows.iter().zip(&mut inputs).enumerate() {
        let row = row * total;
        let prefix = inputs.input_ids.len();
        segments[row..row + prefix].fill(0);
        for (segment, turn) in turns.iter().enumerate() {
            for (offset, &token) in turn.question.iter().chain(&turn.answer).enumerate() {
                let at = row + inputs.input_ids.len();
                inputs.input_ids.push(token);
                positions[at] = (prefix + offset) as i64;
                segments[at] = segment as i64 + 1;
                if offset >= turn.question.len() {
                    predicting.push(at as i64 - 1);
                    targets.push(i64::from(token));
                }
            }
        }
        inputs.layout.n_tokens = inputs.input_ids.len();
    }
    let shape = [n as i64, total as i64];
    let segments = Tensor::from_slice(&segments).view(shape);
    let keys = segments.unsqueeze(1);
    let causal = Tensor::ones([total as i64, total as i64], (Kind::Bool, Device::Cpu)).tril(0);
    let mask =
        keys.eq(0).logical_or(&keys.eq_tensor(&segments.unsqueeze(2))).logical_and(&causal).unsqueeze(1);
    let samples: Vec<&Inputs> = inputs.iter().collect();
    let batch = Batch::new(&samples, 0, Device::Cpu, kind, PaddingSide::Right)?
        .with_attention(Tensor::from_slice(&positions).view(shape), mask);
    Ok(Packed { batch, predicting: Tensor::from_slice(&predicting), targets: Tensor::from_slice(&targets) })
}

impl Turn {
    fn new(question: &str, answer: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self {
            question: tokenizer.encode(&format!("{question} {BEFORE_ANSWER}"), false)?,
            answer: tokenizer.encode(&format!("{answer} {AFTER_ANSWER}"), false)?,
        })
    }

    fn len(&self) -> usize {
        self.question.len() + self.answer.len()
    }
}
