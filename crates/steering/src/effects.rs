//! What steering moves: divergence of the next token, repetition, perplexity.

use std::cell::RefCell;
use std::collections::BTreeSet;

use lmm_hooks::{Batch, HookError, Hooks, LlavaNext, Midway, PaddingSide};
use lmm_prep::Inputs;
use sae_types::HookPoint;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use crate::Steering;

/// Length of the runs of tokens whose repetition is counted.
const RUN: usize = 4;

/// Tokens whose logits are looked at together, so that no more than so many rows of the vocabulary's length are there at once.
const SLICE: usize = 32;

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
    /// Log-probabilities at the original's tokens, `[tokens, vocab]` f32.
    distributions: Tensor,
    /// The pass over prompt and original up to the first hook point that was last asked for, which it does not depend on what is
    /// changed there.
    before: RefCell<Option<(HookPoint, Midway)>>,
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
        let empty = Tensor::new();
        let mut new = Self { model, prompt, pad, original, distributions: empty, before: RefCell::new(None) };
        let hidden = no_grad(|| model.last_hidden(&new.batch(&[original])?, &mut Hooks::new()))?;
        let mut parts = Vec::new();
        if let Some(hidden) = hidden {
            new.slices(&hidden.get(0), original.len(), |_, part| parts.push(part));
        }
        new.distributions = Tensor::cat(&parts, 0);
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
        let forced = self.forced(steering, &self.batch(&originals)?)?;
        let own: Vec<&[u32]> = steered.iter().map(Vec::as_slice).collect();
        let plain = no_grad(|| self.model.last_hidden(&self.batch(&own)?, &mut Hooks::new()))?;
        // Neither pass can be stopped.
        let (Some(forced), Some(plain)) = (forced, plain) else { return Ok(Vec::new()) };
        let finite = |number: &f64| number.is_finite();
        let effect = |(row, steered): (usize, &Vec<u32>)| {
            let (mut kl, mut said) = (Vec::new(), Vec::new());
            self.slices(&forced.get(row as i64), self.original.len(), |first, part| {
                let own = self.distributions.narrow(0, first as i64, part.size()[0]);
                kl.extend(divergences(&own, &part));
            });
            self.slices(&plain.get(row as i64), steered.len(), |first, part| {
                said.extend(chosen(&part, &steered[first..first + part.size()[0] as usize]));
            });
            Effect {
                kl_first: kl.first().copied().filter(finite),
                kl_mean: Some(kl.iter().sum::<f64>() / kl.len() as f64).filter(finite),
                repetition: repetition(steered),
                perplexity: perplexity(&said).filter(finite),
            }
        };
        Ok(steered.iter().enumerate().map(|(row, steered)| no_grad(|| effect((row, steered)))).collect())
    }

    /// The states that the head reads of the original answer behind the prompt, `[rows, tokens, width]`, steered. What comes before
    /// the first hook point is the same for all rows and strengths, and is computed once.
    fn forced(&self, steering: &Steering<'_>, batch: &Batch) -> Result<Option<Tensor>, HookError> {
        let lengths = vec![self.prompt.input_ids.len(); batch.len()];
        let mut hooks = steering.hooks_with_answers(&lengths);
        let order = self.model.hook_points();
        let place = |point: &&HookPoint| order.iter().position(|known| known == *point);
        let Some(first) = steering.points().min_by_key(place) else {
            return no_grad(|| self.model.last_hidden(batch, &mut hooks));
        };
        let mut before = self.before.borrow_mut();
        let midway = match &mut *before {
            Some((point, midway)) if point == first => midway,
            before => {
                let single = self.batch(&[self.original])?;
                let midway = self.model.run_up_to(&single, std::slice::from_ref(first))?.remove(0);
                &mut before.insert((first.clone(), midway)).1
            }
        };
        no_grad(|| self.model.run_on(batch, &midway.repeated(batch.len()), &mut hooks))
    }

    /// The prompt with each answer behind it, but for the answer's last token, which nothing comes after.
    fn batch(&self, answers: &[&[u32]]) -> Result<Batch, HookError> {
        let read: Vec<&[u32]> =
            answers.iter().map(|answer| &answer[..answer.len().saturating_sub(1)]).collect();
        let (device, kind) = (self.model.device(), self.model.kind());
        Batch::continued(self.prompt, &read, self.pad, device, kind, PaddingSide::Right)
    }

    /// Shows the log-probabilities `[some, vocab]` (f32) that tokens of an answer of `len` were chosen by, a slice at a time, with the
    /// number of the first; `hidden` is a row's, `[tokens, width]`.
    fn slices(&self, hidden: &Tensor, len: usize, mut show: impl FnMut(usize, Tensor)) {
        let behind = self.prompt.input_ids.len() - 1;
        for first in (0..len).step_by(SLICE) {
            let some = hidden.narrow(0, (behind + first) as i64, SLICE.min(len - first) as i64);
            show(first, no_grad(|| self.model.lm_head(&some).log_softmax(-1, Kind::Float)));
        }
    }
}

/// The log-probabilities of `tokens` among `[tokens, vocab]`.
fn chosen(log_probabilities: &Tensor, tokens: &[u32]) -> Vec<f64> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    let ids = Tensor::from_slice(&ids).to_device(log_probabilities.device()).unsqueeze(1);
    numbers(&log_probabilities.gather(1, &ids, false).squeeze_dim(1))
}

/// `KL(p ‖ q) = Σ p (ln p - ln q)` in nats of each row of log-probabilities `[n, vocab]`, summed in f64, some rows at a time. What `p`
/// excludes counts for nothing; what `q` alone excludes makes it infinite.
///
/// # Panics
/// When the shapes differ.
#[track_caller]
pub fn divergences(p: &Tensor, q: &Tensor) -> Vec<f64> {
    assert_eq!(p.size(), q.size(), "log-probabilities of both");
    let n = p.size()[0];
    let mut all = Vec::with_capacity(n as usize);
    for first in (0..n).step_by(SLICE) {
        let some = |rows: &Tensor| rows.narrow(0, first, (SLICE as i64).min(n - first)).to_kind(Kind::Double);
        let (p, q) = (some(p), some(q));
        let terms = (p.exp() * (&p - q)).masked_fill(&p.eq(f64::NEG_INFINITY), 0.0);
        all.extend(numbers(&terms.sum_dim_intlist(-1, false, Kind::Double).clamp_min(0.0)));
    }
    all
}

/// The numbers of a tensor of one dimension.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    let own = tensor.to_device(Device::Cpu).to_kind(Kind::Double).contiguous();
    let mut numbers = vec![0.0; own.numel()];
    own.copy_data(&mut numbers, own.numel());
    numbers
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
        // More rows than are looked at together.
        let many = |rows: &Tensor| rows.repeat([40, 1]);
        assert_eq!(divergences(&many(&p), &many(&q)), found.repeat(40));
    }
}
