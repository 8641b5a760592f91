//! Text generation with a key-value cache.

use lmm_prep::GenerationConfig;
use torch_nn::tch::{self, Kind, Tensor};

use crate::cache::KvCache;
use crate::hooks::{Pass, Phase};
use crate::model::finished;
use crate::sampling::Sampler;
use crate::{Batch, HookError, Hooks, LlavaNext};

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
        /// Each sample of a batch draws from its own stream of this seed, so its text does not depend on its
        /// neighbours.
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
}

impl GenerationOptions {
    /// Greedy generation.
    pub fn greedy(max_new_tokens: usize, eos: Vec<u32>) -> Self {
        Self { max_new_tokens, sampling: Sampling::Greedy, eos, repetition_penalty: 1.0 }
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
        }
    }

    fn check(&self) -> Result<(), HookError> {
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

impl LlavaNext {
    /// Continues each prompt, without gradients; gives the new tokens of each, the ending one included.
    ///
    /// Hooks see the prompts as one pass and each new token as another ([`Phase`]); their `stop_after_last` does not
    /// apply. The last token generated is not read by the model and so not seen.
    ///
    /// # Errors
    /// As [`LlavaNext::forward`]; also when prompts of different lengths are padded on the right, or an option is out
    /// of range.
    pub fn generate(
        &self,
        batch: &Batch,
        options: &GenerationOptions,
        hooks: &mut Hooks<'_>,
    ) -> Result<Vec<Vec<u32>>, HookError> {
        options.check()?;
        if batch.is_padded() && !batch.is_padded_left() {
            return Err(HookError::RightPadded);
        }
        if batch.allowed.is_some() {
            return Err(HookError::GivenAttention);
        }
        let mut texts = vec![Vec::new(); batch.len()];
        if options.max_new_tokens == 0 {
            return Ok(texts);
        }
        let _guard = tch::no_grad_guard();
        let mut cache = KvCache::new((batch.width() + options.max_new_tokens) as i64);
        let mut sampler = Sampler::new(options, &batch.prompts());
        let mut ended = vec![false; batch.len()];
        let mut pass = Pass::new(&self.points, hooks, batch)?.unstoppable();
        let mut hidden = self.prefill(&mut pass, Some(&mut cache))?;
        for step in 0..options.max_new_tokens {
            let Some(states) = &hidden else { break };
            let last = states.narrow(1, states.size()[1] - 1, 1).squeeze_dim(1);
            let tokens = sampler.next(&self.lm_head(&last), &ended);
            for (row, &token) in tokens.iter().enumerate().filter(|&(row, _)| !ended[row]) {
                texts[row].push(token);
            }
            for (row, token) in tokens.iter().enumerate() {
                ended[row] |= options.eos.contains(token);
            }
            if step + 1 == options.max_new_tokens || ended.iter().all(|&ended| ended) {
                break;
            }
            let read = |row: usize| if ended[row] { batch.pad() } else { tokens[row] };
            let ids: Vec<i64> = (0..batch.len()).map(|row| i64::from(read(row))).collect();
            let positions: Vec<i64> = batch.lengths().iter().map(|&length| (length + step) as i64).collect();
            let real: Vec<bool> = ended.iter().map(|&ended| !ended).collect();
            let device = batch.input_ids().device();
            pass.phase = Phase::Decode { step };
            pass.positions = Tensor::from_slice(&positions).unsqueeze(1).to_device(device);
            pass.real = Tensor::from_slice(&real).unsqueeze(1).to_device(device);
            let ids = Tensor::from_slice(&ids).unsqueeze(1).to_device(device);
            let embeddings = self.decoder.embeddings.forward(&ids);
            hidden = finished(self.decoder.forward(embeddings, Some(&mut cache), &mut pass))?;
        }
        Ok(texts)
    }
}

impl Batch {
    /// The prompts' token ids, without padding.
    fn prompts(&self) -> Vec<Vec<u32>> {
        let ids = self.input_ids().to_device(tch::Device::Cpu).to_kind(Kind::Int64);
        (0..self.len())
            .map(|row| {
                let own = self.tokens_of(row);
                let row = ids.get(row as i64).narrow(0, own.start as i64, own.len() as i64);
                let mut out = vec![0i64; own.len()];
                row.copy_data(&mut out, own.len());
                out.into_iter().map(|id| id as u32).collect()
            })
            .collect()
    }
}
