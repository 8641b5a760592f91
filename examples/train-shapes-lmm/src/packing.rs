//! Several turns after one prompt, each seeing the prompt's first pictures and itself.
//!
//! Pictures are most of a sequence, so asking all that a scene allows, and asking again after each further picture, multiplies
//! what is learnt from them. A turn's positions go on where its pictures end and turns are masked from each other, so the
//! model sees each question exactly as it will when asked alone.

use anyhow::Result;
use lmm_hooks::{Batch, PaddingSide};
use lmm_prep::{Inputs, Tokenizer};
use tch::{Device, Kind, Tensor};

use crate::lessons::{Lesson, Turn};

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

/// One turn in token ids.
struct Segment {
    /// How many tokens of the prompt it sees.
    prefix: usize,
    question: Vec<u32>,
    answer: Vec<u32>,
}

/// Puts the turns of each prompt behind it; it ends with its last image.
pub(crate) fn pack(lesson: &Lesson, tokenizer: &Tokenizer, kind: Kind) -> Result<Packed> {
    let rows: Vec<Vec<Segment>> = lesson
        .turns
        .iter()
        .zip(&lesson.prompts)
        .map(|(turns, prompt)| turns.iter().map(|turn| Segment::new(turn, prompt, tokenizer)).collect())
        .collect::<Result<_>>()?;
    let total = rows
        .iter()
        .zip(&lesson.prompts)
        .map(|(segments, prompt)| prompt.input_ids.len() + segments.iter().map(Segment::len).sum::<usize>())
        .max()
        .unwrap_or(0);
    let n = rows.len();
    let mut positions: Vec<i64> = (0..n).flat_map(|_| 0..total as i64).collect();
    // Segment 0 is the prompt; -1 is padding, which sees only itself.
    let mut segments = vec![-1i64; n * total];
    // How much of the prompt a token sees, beside what its own segment shows it.
    let mut prefixes = vec![0i64; n * total];
    let (mut predicting, mut targets) = (Vec::new(), Vec::new());
    let mut inputs = lesson.prompts.clone();
    for (row, (turns, inputs)) in rows.iter().zip(&mut inputs).enumerate() {
        let row = row * total;
        segments[row..row + inputs.input_ids.len()].fill(0);
        for (segment, turn) in (1..).zip(turns) {
            for (offset, &token) in turn.question.iter().chain(&turn.answer).enumerate() {
                let at = row + inputs.input_ids.len();
                inputs.input_ids.push(token);
                positions[at] = (turn.prefix + offset) as i64;
                segments[at] = segment;
                prefixes[at] = turn.prefix as i64;
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
    let places = Tensor::arange(total as i64, (Kind::Int64, Device::Cpu));
    let own = segments.unsqueeze(1).eq_tensor(&segments.unsqueeze(2));
    let prefix = places.lt_tensor(&Tensor::from_slice(&prefixes).view(shape).unsqueeze(2));
    let causal = places.le_tensor(&places.unsqueeze(1));
    let mask = own.logical_and(&causal).logical_or(&prefix).unsqueeze(1);
    let samples: Vec<&Inputs> = inputs.iter().collect();
    let batch = Batch::new(&samples, 0, Device::Cpu, kind, PaddingSide::Right)?
        .with_attention(Tensor::from_slice(&positions).view(shape), mask);
    Ok(Packed { batch, predicting: Tensor::from_slice(&predicting), targets: Tensor::from_slice(&targets) })
}

impl Segment {
    fn new(turn: &Turn, prompt: &Inputs, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self {
            prefix: prompt.layout.images[turn.pictures - 1].positions().end,
            question: tokenizer.encode(&format!("{} {BEFORE_ANSWER}", turn.question), false)?,
            answer: tokenizer.encode(&format!("{} {AFTER_ANSWER}", turn.answer), false)?,
        })
    }

    fn len(&self) -> usize {
        self.question.len() + self.answer.len()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lmm_hooks::{Hooks, LlavaNext, LoadOptions};
    use lmm_prep::Processor;

    use super::*;
    use crate::lessons::prompt;
    use crate::lit::{LitPicture, LitSet, REQUEST};

    /// The logits `[predicting, vocabulary]` of a lesson of one prompt.
    fn logits(pictures: &[LitPicture], turns: Vec<Turn>) -> Tensor {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes-lmm-l");
        let processor = Processor::load(&folder).unwrap();
        let model = LlavaNext::load(&folder, &LoadOptions::default()).unwrap();
        let images: Vec<_> = pictures.iter().map(LitPicture::render).collect();
        let inputs = processor.prepare(&prompt(images.len()), &images).unwrap();
        let lesson = Lesson { prompts: vec![inputs], patches: Vec::new(), turns: vec![turns] };
        let packed = pack(&lesson, processor.tokenizer(), Kind::Float).unwrap();
        let hidden = model.last_hidden(&packed.batch, &mut Hooks::new()).unwrap().unwrap();
        model.lm_head(&hidden.flatten(0, 1).index_select(0, &packed.predicting))
    }

    #[test]
    fn a_packed_turn_is_read_as_if_it_were_alone() {
        let set = LitSet::generate(6, 0, 3);
        let turn = |pictures| Turn {
            pictures,
            question: REQUEST.to_owned(),
            answer: "[explanation]: large red circle".to_owned(),
        };
        let packed = logits(&set.pictures, (1..=3).map(turn).collect());
        let alone: Vec<Tensor> = (1..=3).map(|n| logits(&set.pictures[..n], vec![turn(n)])).collect();
        let alone = Tensor::cat(&alone, 0);
        assert_eq!(packed.size(), alone.size());
        let difference = (&packed - &alone).abs().max().double_value(&[]);
        assert!(difference < 1e-3, "logits differ by {difference}");
        let between = (alone.get(0) - alone.get(alone.size()[0] / 3)).abs().max().double_value(&[]);
        assert!(between > 0.1, "one picture more makes no difference");
    }
}
