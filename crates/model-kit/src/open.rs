//! [`OpenModel`]: a model with its processor, opened as the flags say, and what reads samples into it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use lmm_hooks::{Batch, LlavaNext, LoadOptions, PaddingSide};
use lmm_prep::{ChatOptions, Inputs, Message, Part, PrepError, Processor};
use mm_data::hub::{self, RepoKind};
use mm_data::{Role, Sample};
use sae_types::HookPoint;
use torch_nn::tch::{Kind, Tensor};

use crate::{ModelError, TorchArgs};

/// What of a Hub repository a model needs.
const MODEL_FILES: [&str; 4] = ["*.json", "*.safetensors", "*.jinja", "*.model"];

/// The prompt that shows an image and says nothing, msae's for caching.
pub const IMAGE_PROMPT: &str = "<image>";

/// A model on its device with the processor of its folder.
#[derive(Debug)]
pub struct OpenModel {
    /// Where it was read from.
    pub folder: PathBuf,
    /// Makes its inputs; shared with the threads that prepare them.
    pub processor: Arc<Processor>,
    /// The network.
    pub network: LlavaNext,
}

impl OpenModel {
    /// Opens a model folder or Hub id on the device and in the dtype the flags name.
    ///
    /// # Errors
    /// When the device is not there, or the folder is no model this project knows.
    pub fn open(model: &str, flags: TorchArgs) -> Result<Self, ModelError> {
        torch_nn::keep_freed_memory();
        let device = flags
            .device
            .open()
            .map_err(|source| ModelError::Device { device: flags.device, source: Box::new(source) })?;
        let options = LoadOptions { device, kind: flags.dtype.kind() };
        let folder = hub::resolve(model, RepoKind::Model, &MODEL_FILES)
            .map_err(|source| ModelError::Find { model: model.to_owned(), source: Box::new(source) })?;
        let processor = Processor::load(&folder)
            .map_err(|source| ModelError::Processor { folder: folder.clone(), source: Box::new(source) })?;
        let network = LlavaNext::load(&folder, &options)
            .map_err(|source| ModelError::Network { folder: folder.clone(), source: Box::new(source) })?;
        tracing::info!(model = %folder.display(), device = %flags.device, dtype = %flags.dtype, "model loaded");
        Ok(Self { folder, processor: Arc::new(processor), network })
    }

    /// The hidden states at `points` of every prompt, each `[tokens, width]` in f32 on the model's device: without
    /// padding, and only the tokens of [`counted_tokens`]. One map entry per point, one tensor per prompt.
    ///
    /// # Errors
    /// When a hook point is unknown or on the vision side, or the inputs do not fit the model.
    pub fn rows(
        &self,
        prompts: &[&Inputs],
        points: &[HookPoint],
    ) -> Result<Vec<(HookPoint, Vec<Tensor>)>, ModelError> {
        let failed = |source| ModelError::Run { folder: self.folder.clone(), source: Box::new(source) };
        for point in points {
            if self.network.is_vision(point).map_err(failed)? {
                return Err(ModelError::VisionPoint { point: point.clone() });
            }
        }
        let (device, kind) = (self.network.device(), self.network.kind());
        let pad = self.processor.tokenizer().special_id("pad_token").unwrap_or(0);
        let batch = Batch::new(prompts, pad, device, kind, PaddingSide::Right).map_err(failed)?;
        let hidden = self.network.hidden_states(&batch, points).map_err(failed)?;
        let rows_of = |states: &Tensor| {
            prompts
                .iter()
                .enumerate()
                .map(|(row, inputs)| {
                    let tokens = counted_tokens(&self.processor, inputs);
                    let states = states.get(row as i64);
                    states.narrow(0, tokens.start as i64, tokens.len() as i64).to_kind(Kind::Float)
                })
                .collect()
        };
        Ok(hidden.iter().map(|(point, states)| (point.clone(), rows_of(states))).collect())
    }
}

/// The positions of a prompt whose hidden states are used: all but BOS, whose state is the same in every prompt and
/// in many models a hundred times larger than any other.
pub fn counted_tokens(processor: &Processor, inputs: &Inputs) -> Range<usize> {
    let bos = processor.tokenizer().special_id("bos_token");
    usize::from(bos.is_some() && inputs.input_ids.first().copied() == bos)..inputs.input_ids.len()
}

/// A sample as the model is to read it: its conversation in the model's chat template with the images in their places,
/// or, without a conversation, its images alone.
///
/// # Errors
/// When an image cannot be read, or the conversation does not fit the images or the template.
pub fn sample_inputs(processor: &Processor, sample: &Sample) -> Result<Inputs, PrepError> {
    let images: Vec<_> = sample
        .images
        .iter()
        .map(|image| lmm_prep::decode_image_upright(&image.bytes))
        .collect::<Result<_, _>>()?;
    if sample.conversations.is_empty() {
        let prompt = vec![IMAGE_PROMPT; images.len()].join(" ");
        return processor.prepare(&prompt, &images);
    }
    let placed = sample.conversations.iter().any(|turn| turn.text.contains(IMAGE_PROMPT));
    let mut unplaced = if placed { 0 } else { images.len() };
    let messages: Vec<Message> = sample
        .conversations
        .iter()
        .map(|turn| {
            let mut parts = Vec::new();
            if turn.role == Role::User {
                // LLaVA's data may leave the marker out; its images then stand before the first question.
                parts.extend(std::iter::repeat_n(Part::Image, std::mem::take(&mut unplaced)));
            }
            for (index, text) in turn.text.split(IMAGE_PROMPT).enumerate() {
                if index > 0 {
                    parts.push(Part::Image);
                }
                if !text.trim().is_empty() {
                    parts.push(Part::Text { text: text.trim().to_owned() });
                }
            }
            Message::parts(turn.role.chat_name(), parts)
        })
        .collect();
    processor.prepare_chat(&messages, ChatOptions { add_generation_prompt: false }, &images)
}
