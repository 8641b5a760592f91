//! Choosing the next token from logits.

use std::collections::BTreeSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use torch_nn::tch::{Device, Kind, Tensor};

use crate::generate::{GenerationOptions, Sampling};

/// Chooses tokens for the samples of a batch.
pub(crate) struct Sampler {
    sampling: Sampling,
    repetition_penalty: f64,
    /// Tokens each sample holds so far.
    seen: Vec<BTreeSet<u32>>,
    streams: Vec<ChaCha8Rng>,
}

impl Sampler {
    pub(crate) fn new(options: &GenerationOptions, prompts: &[Vec<u32>]) -> Self {
        let seed = match options.sampling {
            Sampling::Greedy => 0,
            Sampling::Sample { seed, .. } => seed,
        };
        let stream = |row: usize| {
            let mut stream = ChaCha8Rng::seed_from_u64(seed);
            stream.set_stream(row as u64);
            stream
        };
        Self {
            sampling: options.sampling,
            repetition_penalty: options.repetition_penalty,
            seen: prompts.iter().map(|prompt| prompt.iter().copied().collect()).collect(),
            streams: (0..prompts.len()).map(stream).collect(),
        }
    }

    /// One token per row of `logits [batch, vocab]`. Rows that have ended draw nothing and get 0.
    pub(crate) fn next(&mut self, logits: &Tensor, ended: &[bool]) -> Vec<u32> {
        let vocab = logits.size()[1] as usize;
        let logits = logits.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let mut row_logits = vec![0f32; vocab];
        let mut tokens = Vec::with_capacity(ended.len());
        for (row, &ended) in ended.iter().enumerate() {
            if ended {
                tokens.push(0);
                continue;
            }
            logits.get(row as i64).copy_data(&mut row_logits, vocab);
            penalise(&mut row_logits, &self.seen[row], self.repetition_penalty as f32);
            let token = match self.sampling {
                Sampling::Greedy => likeliest(&row_logits),
                Sampling::Sample { temperature, top_p, top_k, .. } => {
                    let kept = kept(&row_logits, temperature as f32, top_k, top_p);
                    draw(&kept, self.streams[row].random::<f64>())
                }
            };
            self.seen[row].insert(token);
            tokens.push(token);
        }
        tokens
    }
}

fn penalise(logits: &mut [f32], seen: &BTreeSet<u32>, penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    for &token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// The tokens that may be drawn, with their weights `exp(logit - max)`.
fn kept(logits: &[f32], temperature: f32, top_k: Option<usize>, top_p: f64) -> Vec<(u32, f64)> {
    let mut order: Vec<(u32, f32)> =
        logits.iter().enumerate().map(|(token, logit)| (token as u32, logit / temperature)).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if let Some(k) = top_k.filter(|&k| k < order.len()) {
        // Equals of the k-th stay, as transformers only removes what lies below it.
        let least = order[k - 1].1;
        let end = order.partition_point(|&(_, logit)| logit >= least);
        order.truncate(end);
    }
    let max = order[0].1;
    let mut weights: Vec<(u32, f64)> =
        order.into_iter().map(|(token, logit)| (token, f64::from(logit - max).exp())).collect();
    if top_p < 1.0 {
        // A token goes when it and everything less likely hold at most 1 - p.
        let total: f64 = weights.iter().map(|&(_, weight)| weight).sum();
        let mut below = 0.0;
        while weights.len() > 1 {
            below += weights[weights.len() - 1].1 / total;
            if below > 1.0 - top_p {
                break;
            }
            weights.pop();
        }
    }
    weights
}

/// The token under `point`, a number in `[0, 1)`.
fn draw(weights: &[(u32, f64)], point: f64) -> u32 {
    let total: f64 = weights.iter().map(|&(_, weight)| weight).sum();
    let mut left = point * total;
    for &(token, weight) in weights {
        left -= weight;
        if left < 0.0 {
            return token;
        }
    }
    weights[weights.len() - 1].0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(kept: &[(u32, f64)]) -> Vec<u32> {
        kept.iter().map(|&(token, _)| token).collect()
    }

    #[test]
    fn top_k_keeps_equals_and_top_p_the_smallest_sufficient_set() {
        let logits = [0.1f32, 0.5, 0.25, 0.15].map(f32::ln);
        assert_eq!(ids(&kept(&logits, 1.0, None, 1.0)), [1, 2, 3, 0]);
        assert_eq!(ids(&kept(&logits, 1.0, Some(2), 1.0)), [1, 2]);
        assert_eq!(ids(&kept(&logits, 1.0, None, 0.7)), [1, 2]);
        assert_eq!(ids(&kept(&logits, 1.0, None, 0.01)), [1]);
        // After top_k the shares are of what is left: 2/3 and 1/3.
        assert_eq!(ids(&kept(&logits, 1.0, Some(2), 0.6)), [1]);
        assert_eq!(ids(&kept(&[2.0, 1.0, 2.0, 2.0], 1.0, Some(2), 1.0)), [0, 2, 3]);
    }

    #[test]
    fn draws_follow_the_weights() {
        let weights = [(7, 3.0), (9, 1.0)];
        assert_eq!([0.0, 0.74, 0.76, 0.999_999].map(|point| draw(&weights, point)), [7, 7, 9, 9]);
        assert_eq!(likeliest(&[1.0, 3.0, 3.0]), 1);
    }
}
