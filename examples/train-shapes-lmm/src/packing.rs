//! Several questions after one image, each seeing only the image and itself.
//!
//! The image prefix is most of a sequence, so asking everything a scene allows at once multiplies the
//! supervision per image. Segments restart their positions behind the prefix and are masked from each other,
//! so the model sees each question exactly as it will when asked alone.

use anyhow::Result;
use lmm_hooks::{Batch, PaddingSide};
use lmm_prep::{Inputs, Tokenizer};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use shapes_world::{CAPTION_REQUEST, QuestionKind, Scene};
use tch::{Device, Kind, Tensor};

/// What stands around a question, as the chat template has it.
pub(crate) const PROMPT: &str = "user : <image>";
const BEFORE_ANSWER: &str = "assistant :";
const AFTER_ANSWER: &str = "</s>";

/// How many questions of the kinds that are not the point (position, caption) a scene is asked.
const POSITION_QUESTIONS: usize = 1;
const CAPTION_SHARE: f64 = 0.2;

/// Prompts with their packed questions, and what is to be learnt from them.
pub(crate) struct Packed {
    pub(crate) batch: Batch,
    /// Flat indices into `[scenes * tokens]` of the positions that predict a target.
    pub(crate) predicting: Tensor,
    /// The target token of each predicting position.
    pub(crate) targets: Tensor,
}

/// One question in token ids, with its answer.
struct Turn {
    question: Vec<u32>,
    answer: Vec<u32>,
}

/// Puts the questions of each scene behind its prompt, which ends with the image. The prompts are equally long.
pub(crate) fn pack(
    scenes: &[Scene],
    prompts: &[Inputs],
    tokenizer: &Tokenizer,
    kind: Kind,
    rng: &mut ChaCha8Rng,
) -> Result<Packed> {
    let rows: Vec<Vec<Turn>> =
        scenes.iter().map(|scene| turns(scene, tokenizer, rng)).collect::<Result<_>>()?;
    let prefix = prompts[0].input_ids.len();
    let total =
        prefix + rows.iter().map(|turns| turns.iter().map(Turn::len).sum::<usize>()).max().unwrap_or(0);
    let n = rows.len();
    let mut positions: Vec<i64> = (0..n).flat_map(|_| 0..total as i64).collect();
    // Segment 0 is the prompt, seen by all; -1 is padding, which sees only the prompt and itself.
    let mut segments = vec![-1i64; n * total];
    let (mut predicting, mut targets) = (Vec::new(), Vec::new());
    let mut inputs = prompts.to_vec();
    for (row, (turns, inputs)) in rows.iter().zip(&mut inputs).enumerate() {
        let row = row * total;
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
    fn len(&self) -> usize {
        self.question.len() + self.answer.len()
    }
}

/// Everything worth asking about a scene, in random order.
fn turns(scene: &Scene, tokenizer: &Tokenizer, rng: &mut ChaCha8Rng) -> Result<Vec<Turn>> {
    let mut questions = scene.questions();
    questions.shuffle(rng);
    let mut positions_left = POSITION_QUESTIONS;
    questions.retain(|question| {
        question.kind != QuestionKind::Position || {
            let keep = positions_left > 0;
            positions_left = positions_left.saturating_sub(1);
            keep
        }
    });
    let mut pairs: Vec<(String, String)> =
        questions.into_iter().map(|q| (q.text, q.answer.to_owned())).collect();
    if rng.random_bool(CAPTION_SHARE) {
        pairs.push((CAPTION_REQUEST.to_owned(), scene.caption()));
    }
    pairs.shuffle(rng);
    pairs
        .into_iter()
        .map(|(question, answer)| {
            Ok(Turn {
                question: tokenizer.encode(&format!("{question} {BEFORE_ANSWER}"), false)?,
                answer: tokenizer.encode(&format!("{answer} {AFTER_ANSWER}"), false)?,
            })
        })
        .collect()
}
