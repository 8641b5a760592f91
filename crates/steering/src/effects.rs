//! What steering moves: divergence of the next token, repetition, perplexity.

use std::collections::BTreeSet;

use lmm_hooks::{Batch, HookError, Hooks, LlavaNext, PaddingSide};
use lmm_prep::Inputs;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::Steering;

/// Length of the runs of tokens whose repetition is counted.
const RUN: usize = 4;

/// What steering did to the answer to one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// `KL(original ‖ steered)` of the first new token, in nats; `None` where it is no finite number, as of a model driven beyond
    /// what its numbers can hold.
    pub kl_first: Option<f64>,
    /// Its mean over all tokens of the original answer, each after those before it.
    pub kl_mean: Option<f64>,
    /// [`repetition`] of the steered answer; `None` where it is too short.
    pub repetition: Option<f64>,
    /// [`perplexity`] of the steered answer under the model as it is, given the prompt; `None` where it is empty.
    pub perplexity: Option<f64>,
}

/// Measures effects on the answer to one prompt.
#[derive(Debug)]
pub struct Effects<'a> {
    model: &'a LlavaNext,
    prompt: &'a Inputs,
    pad: u32,
    /// What the model said as it is.
    original: &'a [u32],
    /// Log-probabilities of the original's tokens, `[tokens, vocab]` f32.
    distributions: Tensor,
}

impl<'a> Effects<'a> {
    /// Reads the original answer, tokens `original`, once more; without gradients.
    ///
    /// # Errors
    /// As [`LlavaNext::forward`].
    ///
    /// # Panics
    /// When the answer has no token.
    #[track_caller]
    pub fn new(
        model: &'a LlavaNext,
        prompt: &'a Inputs,
        pad: u32,
        original: &'a [u32],
    ) -> Result<Self, HookError> {
        assert!(!original.is_empty(), "an answer has at least the token that ends it");
        let mut new = Self { model, prompt, pad, original, distributions: Tensor::new() };
        let batch = new.batch(&[original])?;
        let logits = new.answers(&batch, &[original], &mut Hooks::new())?;
        new.distributions = logits[0].log_softmax(-1, Kind::Float);
        Ok(new)
    }

    /// Perplexity of the original answer under the model that gave it.
    pub fn original_perplexity(&self) -> Option<f64> {
        perplexity(&chosen(&self.distributions, self.original))
    }

    /// The effect of each row of `steering` on the answer, which became `steered[row]`; without gradients.
    ///
    /// # Errors
    /// As [`LlavaNext::forward`].
    ///
    /// # Panics
    /// When there are not as many answers as rows.
    #[track_caller]
    pub fn of(&self, steering: &Steering<'_>, steered: &[Vec<u32>]) -> Result<Vec<Effect>, HookError> {
        let originals = vec![self.original; steered.len()];
        let batch = self.batch(&originals)?;
        let lengths = vec![self.prompt.input_ids.len(); steered.len()];
        let forced = self.answers(&batch, &originals, &mut steering.hooks_with_answers(&lengths))?;
        let own: Vec<&[u32]> = steered.iter().map(Vec::as_slice).collect();
        let plain = self.answers(&self.batch(&own)?, &own, &mut Hooks::new())?;
        let finite = |number: &f64| number.is_finite();
        let effect = |((forced, plain), steered): ((Tensor, Tensor), &Vec<u32>)| {
            let divergences = divergences(&self.distributions, &forced.log_softmax(-1, Kind::Float));
            Effect {
                kl_first: Some(divergences[0]).filter(finite),
                kl_mean: Some(divergences.iter().sum::<f64>() / divergences.len() as f64).filter(finite),
                repetition: repetition(steered),
                perplexity: perplexity(&chosen(&plain.log_softmax(-1, Kind::Float), steered)).filter(finite),
            }
        };
        Ok(forced.into_iter().zip(plain).zip(steered).map(effect).collect())
    }

    /// The prompt with each answer behind it, but for the answer's last token, which nothing comes after.
    fn batch(&self, answers: &[&[u32]]) -> Result<Batch, HookError> {
        let with = |answer: &&[u32]| {
            let mut inputs = self.prompt.clone();
            inputs.input_ids.extend(&answer[..answer.len().saturating_sub(1)]);
            inputs.layout.n_tokens = inputs.input_ids.len();
            inputs
        };
        let inputs: Vec<Inputs> = answers.iter().map(with).collect();
        let inputs: Vec<&Inputs> = inputs.iter().collect();
        Batch::new(&inputs, self.pad, self.model.device(), self.model.kind(), PaddingSide::Right)
    }

    /// The logits that each token of each answer was chosen by, `[tokens, vocab]`.
    fn answers(
        &self,
        batch: &Batch,
        answers: &[&[u32]],
        hooks: &mut Hooks<'_>,
    ) -> Result<Vec<Tensor>, HookError> {
        let Some(hidden) = no_grad(|| self.model.last_hidden(batch, hooks))? else { return Ok(Vec::new()) };
        let first = self.prompt.input_ids.len() as i64 - 1;
        let of_row = |(row, answer): (usize, &&[u32])| {
            no_grad(|| self.model.lm_head(&hidden.get(row as i64).narrow(0, first, answer.len() as i64)))
        };
        Ok(answers.iter().enumerate().map(of_row).collect())
    }
}

/// The log-probabilities of `tokens` among `[tokens, vocab]`.
fn chosen(log_probabilities: &Tensor, tokens: &[u32]) -> Vec<f64> {
    let of =
        |(place, &token): (usize, &u32)| log_probabilities.double_value(&[place as i64, i64::from(token)]);
    tokens.iter().enumerate().map(of).collect()
}

/// `KL(p ‖ q) = Σ p (ln p - ln q)` in nats of each row of log-probabilities `[n, vocab]`, summed in f64. What `p` excludes counts
/// for nothing; what `q` alone excludes makes it infinite.
///
/// # Panics
/// When the shapes differ.
#[track_caller]
pub fn divergences(p: &Tensor, q: &Tensor) -> Vec<f64> {
    assert_eq!(p.size(), q.size(), "log-probabilities of both");
    let (p, q) = (p.to_kind(Kind::Double), q.to_kind(Kind::Double));
    let terms = (p.exp() * (&p - q)).masked_fill(&p.eq(f64::NEG_INFINITY), 0.0);
    let sums = terms.sum_dim_intlist(-1, false, Kind::Double).clamp_min(0.0);
    (0..sums.size()[0]).map(|row| sums.double_value(&[row])).collect()
}

/// The share of runs of four tokens that are there before: `1 - distinct / all`. `None` of fewer than four tokens.
pub fn repetition(tokens: &[u32]) -> Option<f64> {
    let all = tokens.len().checked_sub(RUN)? + 1;
    let distinct: BTreeSet<&[u32]> = tokens.windows(RUN).collect();
    Some(1.0 - distinct.len() as f64 / all as f64)
}

/// `exp` of the mean of `-ln p`, given `ln p` of each token; `None` without tokens.
pub fn perplexity(log_probabilities: &[f64]) -> Option<f64> {
    let n = log_probabilities.len() as f64;
    (!log_probabilities.is_empty()).then(|| (-log_probabilities.iter().sum::<f64>() / n).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_worked_by_hand() {
        // 1 2 3 4, 2 3 4 1, 3 4 1 2, 4 1 2 3, 1 2 3 4: one of five is there before.
        assert_eq!(repetition(&[1, 2, 3, 4, 1, 2, 3, 4]), Some(0.199_999_999_999_999_96));
        assert_eq!(repetition(&[7; 6]), Some(1.0 - 1.0 / 3.0));
        assert_eq!((repetition(&[1, 2, 3]), repetition(&[1, 2, 3, 4])), (None, Some(0.0)));
        let halves = [0.5_f64.ln(), 0.125_f64.ln()];
        assert!((perplexity(&halves).unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(perplexity(&[]), None);
    }

    #[test]
    fn divergences_worked_by_hand() {
        let row = |shares: [f64; 3]| shares.map(f64::ln);
        let of = |rows: [[f64; 3]; 3]| Tensor::from_slice(&rows.concat()).view([3, 3]);
        let p = of([row([0.5, 0.5, 0.0]), row([0.2, 0.3, 0.5]), row([0.5, 0.5, 0.0])]);
        let q = of([row([0.25, 0.5, 0.25]), row([0.2, 0.3, 0.5]), row([1.0, 0.0, 0.0])]);
        let found = divergences(&p, &q);
        assert!((found[0] - 0.5 * 2f64.ln()).abs() < 1e-12);
        assert_eq!(found[1], 0.0);
        assert_eq!(found[2], f64::INFINITY);
    }
}
