//! [`GenerationOptions`]: how text is generated.

use lmm_prep::GenerationConfig;

use crate::HookError;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The likeliest token; the lower id of equals.
    Greedy,
    /// A random token. Logits are divided by the temperature, then cut to `top_k`, then to `top_p`, as transformers does.
    Sample {
        /// Divisor of the logits, above 0.
        temperature: f64,
        /// The smallest set of tokens with this much probability is kept; 1 keeps all.
        top_p: f64,
        /// How many tokens are kept; `None` keeps all.
        top_k: Option<usize>,
        /// Of the random numbers, with [`GenerationOptions::stream`]. A sample's text does not depend on its neighbours.
        seed: u64,
    },
}

/// How text is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationOptions {
    /// How many tokens to add at most.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Any of these ends a sample, and is the last of its tokens.
    pub eos: Vec<u32>,
    /// Logits of tokens seen before are divided by this if positive and multiplied if negative; 1 leaves them alone.
    pub repetition_penalty: f64,
    /// How many of the likeliest tokens to give at each place, beside the log-probability of the one chosen; `None` computes
    /// neither.
    pub logprobs: Option<usize>,
    /// Which of the seed's random streams a sample draws from. [`LlavaNext::generate`] counts on from it, row by row.
    ///
    /// [`LlavaNext::generate`]: crate::LlavaNext::generate
    pub stream: u64,
}

impl GenerationOptions {
    /// Greedy generation.
    pub fn greedy(max_new_tokens: usize, eos: Vec<u32>) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::Greedy,
            eos,
            repetition_penalty: 1.0,
            logprobs: None,
            stream: 0,
        }
    }

    /// What a model folder's `generation_config.json` asks for; `max_new_tokens` where that does not say.
    pub fn from_config(config: &GenerationConfig, max_new_tokens: usize, seed: u64) -> Self {
        let sampling = if config.do_sample {
            Sampling::Sample {
                temperature: config.temperature,
                top_p: config.top_p,
                top_k: config.top_k.filter(|&k| k > 0),
                seed,
            }
        } else {
            Sampling::Greedy
        };
        Self {
            max_new_tokens: config.max_new_tokens.unwrap_or(max_new_tokens),
            sampling,
            eos: config.eos_token_id.clone(),
            repetition_penalty: config.repetition_penalty,
            logprobs: None,
            stream: 0,
        }
    }

    pub(crate) fn check(&self) -> Result<(), HookError> {
        let wrong =
            |option, expected, got: String| Err(HookError::GenerationOption { option, expected, got });
        // Written so that NaN fails too.
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if let Sampling::Sample { temperature, top_p, top_k, .. } = self.sampling {
            if !positive(temperature) {
                return wrong(
                    "temperature",
                    "a number above 0 (or greedy sampling)",
                    temperature.to_string(),
                );
            }
            if !(positive(top_p) && top_p <= 1.0) {
                return wrong("top_p", "a number above 0 and at most 1", top_p.to_string());
            }
            if top_k == Some(0) {
                return wrong("top_k", "a positive number, or none", "0".to_owned());
            }
        }
        if !positive(self.repetition_penalty) {
            return wrong("repetition_penalty", "a number above 0", self.repetition_penalty.to_string());
        }
        Ok(())
    }
}
