//! [`Preparer`]: from a request to what the model reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use image::RgbImage;
use lmm_hooks::{GenerationOptions, Sampling};
use lmm_prep::{ChatOptions, Content, GenerationConfig, Inputs, Message, Processor};
use steering::{Plan, Steerable};

use crate::media;
use crate::problem::Problem;
use crate::request::{ChatRequest, Part, Turn};
use crate::steer;

/// What a request has to be checked and made ready with.
#[derive(Debug)]
pub(crate) struct Preparer {
    pub(crate) processor: Arc<Processor>,
    pub(crate) steerable: Steerable,
    /// The steering of requests that name none.
    pub(crate) steering: Plan,
    /// How the model's folder wants text to be generated, with tokens that end it.
    pub(crate) generation: GenerationConfig,
    /// How many tokens an answer may have if the request does not say.
    pub(crate) max_tokens: usize,
    /// How many tokens prompt and answer may have together.
    pub(crate) context: usize,
    /// Bytes of a prompt that can be so many tokens; a longer one is not even cut into tokens.
    pub(crate) longest_prompt: usize,
    pub(crate) max_images: usize,
    /// Of all images of a request together.
    pub(crate) max_pixels: u64,
    /// The seed of the next request that has none.
    pub(crate) next_seed: AtomicU64,
    pub(crate) warned: AtomicBool,
}

/// What the model reads, and how it is to answer.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) inputs: Inputs,
    pub(crate) options: GenerationOptions,
    pub(crate) stops: Vec<String>,
    pub(crate) steering: Plan,
}

impl Preparer {
    /// Checks a request, unpacks its images and cuts them into tiles.
    ///
    /// # Errors
    /// 400 with what is wrong.
    pub(crate) fn prepare(&self, mut request: ChatRequest) -> Result<Prepared, Problem> {
        let steering = match &request.steer {
            None => self.steering.clone(),
            Some(asked) => steer::of_request(&self.steerable, asked)
                .map_err(|reason| Problem::of("steer", format!("steer: {reason}")))?,
        };
        let inputs = self.inputs(std::mem::take(&mut request.messages))?;
        let length = inputs.input_ids.len();
        if length >= self.context {
            let length = format!("{length} tokens, images included,");
            return Err(Problem::too_long(&length, self.context));
        }
        let mut options = self.options(&request);
        options.max_new_tokens = options.max_new_tokens.min(self.context - length);
        Ok(Prepared { inputs, options, stops: request.stop, steering })
    }

    fn inputs(&self, turns: Vec<Turn>) -> Result<Inputs, Problem> {
        let mut urls = Vec::new();
        let mut part = |part| match part {
            Part::Text(text) => lmm_prep::Part::Text { text },
            Part::Image { url, param } => {
                urls.push((url, param));
                lmm_prep::Part::Image
            }
        };
        let messages: Vec<Message> = turns
            .into_iter()
            .map(|turn| Message::parts(turn.role, turn.parts.into_iter().map(&mut part).collect()))
            .collect();
        let failed = |error: lmm_prep::PrepError| Problem::of("messages", error.to_string());
        let options = ChatOptions { add_generation_prompt: true };
        let prompt = self.processor.chat(&messages, options).map_err(failed)?;
        if prompt.len() > self.longest_prompt {
            return Err(Problem::too_long(&format!("{} bytes of text", prompt.len()), self.context));
        }
        self.warn_of_lost_system(&messages, &prompt);
        let images = self.images(urls)?;
        self.processor.prepare_rendered(&prompt, &images).map_err(failed)
    }

    /// Unpacks the images of a request, `(URL, where it stands)`.
    fn images(&self, urls: Vec<(String, String)>) -> Result<Vec<RgbImage>, Problem> {
        let mut left = self.max_pixels;
        let unpack = |(url, param): (String, String)| {
            let image = media::decode(&url, left)
                .map_err(|reason| Problem::of(&param, format!("{param} cannot be used: {reason}")))?;
            left -= u64::from(image.width()) * u64::from(image.height());
            Ok(image)
        };
        urls.into_iter().map(unpack).collect()
    }

    /// Some chat templates have no place for a system message. That is theirs to decide, and for the log to say, once.
    fn warn_of_lost_system(&self, messages: &[Message], prompt: &str) {
        let is_lost = |part: &lmm_prep::Part| matches!(part, lmm_prep::Part::Text { text } if !prompt.contains(text.trim()));
        let loses = |message: &Message| {
            let Content::Parts(parts) = &message.content else { return false };
            message.role == "system" && parts.iter().any(is_lost)
        };
        if messages.iter().any(loses) && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!("the model's chat template leaves system messages out; this is said once");
        }
    }

    /// The model folder's own way, but for what the request names. A temperature of 0 is greedy; a `top_p` below 1 alone asks
    /// for samples too.
    fn options(&self, request: &ChatRequest) -> GenerationOptions {
        let config = &self.generation;
        let cuts = request.top_p.is_some_and(|p| p < 1.0);
        let asked = request.temperature.or(cuts.then_some(config.temperature));
        let temperature = match asked {
            Some(temperature) => temperature,
            None if config.do_sample => config.temperature,
            None => 0.0,
        };
        let sampling = if temperature > 0.0 {
            Sampling::Sample {
                temperature,
                top_p: request.top_p.unwrap_or(config.top_p),
                top_k: config.top_k.filter(|&k| k > 0 && config.do_sample),
                seed: request.seed.unwrap_or_else(|| self.next_seed.fetch_add(1, Ordering::Relaxed)),
            }
        } else {
            Sampling::Greedy
        };
        GenerationOptions {
            max_new_tokens: request.max_tokens.unwrap_or(self.max_tokens),
            sampling,
            eos: config.eos_token_id.clone(),
            repetition_penalty: config.repetition_penalty,
            logprobs: request.logprobs,
            stream: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn only_what_changes_a_greedy_answer_asks_for_samples() {
        let models =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/lmm-prep/tests/fixtures/models");
        let preparer = Preparer {
            processor: Arc::new(Processor::load(&models.join("words")).unwrap()),
            steerable: Steerable::default(),
            steering: Plan::default(),
            generation: GenerationConfig::default(),
            max_tokens: 5,
            context: 100,
            longest_prompt: 100,
            max_images: 1,
            max_pixels: 100,
            next_seed: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        };
        let sampling = |members: &str| {
            let body = format!(
                "{{\"model\": \"m\", \"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}]{members}}}"
            );
            preparer.options(&ChatRequest::parse(body.as_bytes(), 1).unwrap()).sampling
        };
        for members in ["", ", \"top_p\": 1", ", \"top_p\": 0.5, \"temperature\": 0"] {
            assert_eq!(sampling(members), Sampling::Greedy, "{members}");
        }
        let sample = |temperature, top_p| Sampling::Sample { temperature, top_p, top_k: None, seed: 3 };
        assert_eq!(sampling(", \"top_p\": 0.5, \"seed\": 3"), sample(1.0, 0.5));
        assert_eq!(sampling(", \"top_p\": 1, \"temperature\": 2, \"seed\": 3"), sample(2.0, 1.0));
    }
}
