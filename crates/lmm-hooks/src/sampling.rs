//! Choosing the next token from logits.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::{GenerationOptions, NewToken, Sampling};

/// Chooses the tokens of one sample.
#[derive(Debug)]
pub(crate) struct Chooser {
    sampling: Sampling,
    repetition_penalty: f32,
    /// How many of the likeliest to report.
    logprobs: Option<usize>,
    /// Tokens the sample holds so far.
    seen: BTreeSet<u32>,
    random: ChaCha8Rng,
}

impl Chooser {
    pub(crate) fn new(options: &GenerationOptions, prompt: Vec<u32>) -> Self {
        let seed = match options.sampling {
            Sampling::Greedy => 0,
            Sampling::Sample { seed, .. } => seed,
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(options.stream);
        Self {
            sampling: options.sampling,
            repetition_penalty: options.repetition_penalty as f32,
            logprobs: options.logprobs,
            seen: prompt.into_iter().collect(),
            random,
        }
    }

    /// A token by its `logits [vocab]`.
    pub(crate) fn next(&mut self, logits: &[f32]) -> NewToken {
        let mut own = Cow::Borrowed(logits);
        if self.repetition_penalty != 1.0 {
            penalise(own.to_mut(), &self.seen, self.repetition_penalty);
        }
        let id = match self.sampling {
            Sampling::Greedy => likeliest(&own),
            Sampling::Sample { temperature, top_p, top_k, .. } => {
                draw(&kept(&own, temperature, top_k, top_p), self.random.random::<f64>())
            }
        };
        self.seen.insert(id);
        let Some(count) = self.logprobs else { return NewToken { id, logprob: None, top: Vec::new() } };
        let normaliser = log_sum_exp(logits);
        let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
        let top = largest(logits, count).map(|(token, logit)| (token, logprob(logit))).collect();
        NewToken { id, logprob: Some(logprob(logits[id as usize])), top }
    }
}

/// `ln Σ exp(logit)`, in f64.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

/// The `count` largest, descending; the lower token of equals first.
fn largest(logits: &[f32], count: usize) -> impl Iterator<Item = (u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let count = count.min(all.len());
    let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, descending);
    }
    all.truncate(count);
    all.sort_unstable_by(descending);
    all.into_iter()
}

fn penalise(logits: &mut [f32], seen: &BTreeSet<u32>, penalty: f32) {
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

/// The tokens that may be drawn, with their weights `exp((logit - max) / temperature)`. What is no number counts as least.
fn kept(logits: &[f32], temperature: f64, top_k: Option<usize>, top_p: f64) -> Vec<(u32, f64)> {
    let number = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied().map(number)).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if let Some(k) = top_k.filter(|&k| k < order.len()) {
        // Equals of the k-th stay, as transformers only removes what lies below it.
        let least = order[k - 1].1;
        let end = order.partition_point(|&(_, logit)| logit >= least);
        order.truncate(end.max(1));
    }
    let max = order[0].1;
    let weight = |logit: f32| {
        // Of infinite logits, too, the largest are alike.
        if logit == max { 1.0 } else { ((f64::from(logit) - f64::from(max)) / temperature).exp() }
    };
    let mut weights: Vec<(u32, f64)> =
        order.into_iter().map(|(token, logit)| (token, weight(logit))).collect();
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
    fn the_coldest_samples_are_the_likeliest_token_and_what_is_no_number_is_not_drawn() {
        let logits = [0.5f32, 2.0, -3.0, f32::NAN];
        for temperature in [1e-46, 5e-324, 1e-9] {
            for point in [0.0, 0.5, 0.999_999] {
                assert_eq!(draw(&kept(&logits, temperature, None, 1.0), point), 1, "{temperature}");
            }
        }
        let [inf, least] = [f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(draw(&kept(&[1.0, inf, f32::NAN, inf], 1.0, Some(3), 1.0), 0.75), 3);
        for logits in [[f32::NAN; 3], [least; 3]] {
            for top_k in [None, Some(1), Some(2)] {
                assert!(draw(&kept(&logits, 0.7, top_k, 0.5), 0.5) < 3, "{logits:?}");
            }
            assert_eq!(likeliest(&logits), 0);
        }
    }

    #[test]
    fn log_probabilities_are_of_the_logits_before_the_penalty() {
        let options = GenerationOptions {
            repetition_penalty: 4.0,
            logprobs: Some(2),
            ..GenerationOptions::greedy(1, Vec::new())
        };
        let shares = [0.1f32, 0.5, 0.3, 0.1];
        let logits = shares.map(|share| share.ln() + 7.0);
        let token = Chooser::new(&options, vec![1]).next(&logits);
        assert_eq!(token.id, 2, "token 1 was said before");
        let near = |logprob: f32, share: f32| assert!((logprob - share.ln()).abs() < 1e-6, "{logprob}");
        near(token.logprob.unwrap(), 0.3);
        assert_eq!([token.top[0].0, token.top[1].0], [1, 2]);
        near(token.top[0].1, 0.5);
        near(token.top[1].1, 0.3);
        // Equals come by their ids, and no more than there are.
        assert_eq!(largest(&logits, 9).map(|(token, _)| token).collect::<Vec<_>>(), [1, 2, 0, 3]);
        let silent = GenerationOptions::greedy(1, Vec::new());
        let token = Chooser::new(&silent, vec![1]).next(&logits);
        assert_eq!(token, NewToken { id: 1, logprob: None, top: Vec::new() });
    }

    #[test]
    fn draws_follow_the_weights() {
        let weights = [(7, 3.0), (9, 1.0)];
        assert_eq!([0.0, 0.74, 0.76, 0.999_999].map(|point| draw(&weights, point)), [7, 7, 9, 9]);
        assert_eq!(likeliest(&[1.0, 3.0, 3.0]), 1);
    }
}
