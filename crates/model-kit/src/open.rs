//! [`OpenModel`]: a model with its processor, opened as the flags say, and what reads samples into it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lmm_hooks::{Batch, HookError, LlavaNext, LoadOptions, PaddingSide, WeightPrecision};
use lmm_prep::{GenerationConfig, Inputs, Processor};
use mm_data::hub::{self, RepoKind};
use sae_types::HookPoint;
use torch_nn::Weights;
use torch_nn::tch::{Device, Kind, Tensor};

use crate::{ModelError, TorchArgs};

/// What of a Hub repository a model needs.
const MODEL_FILES: [&str; 4] = ["*.json", "*.safetensors", "*.jinja", "*.model"];

/// The prompt that shows an image and says nothing, msae's for caching.
pub const IMAGE_PROMPT: &str = "<image>";

/// A model's folder, found and checked, its weights not yet read.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    /// Where it lies.
    pub folder: PathBuf,
    /// Makes the model's inputs; shared with the threads that prepare them.
    pub processor: Arc<Processor>,
}

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

impl ModelFolder {
    /// Finds a model, a folder or a Hub id, which is downloaded if need be.
    ///
    /// # Errors
    /// When there is none, or its configuration and processor files are unsound.
    pub fn find(model: &str) -> Result<Self, ModelError> {
        let folder = hub::resolve(model, RepoKind::Model, &MODEL_FILES)
            .map_err(|source| ModelError::Find { model: model.to_owned(), source: Box::new(source) })?;
        let processor = Processor::load(&folder)
            .map_err(|source| ModelError::Processor { folder: folder.clone(), source: Box::new(source) })?;
        Ok(Self { folder, processor: Arc::new(processor) })
    }

    /// The network without its weights: it knows its hook points and widths and takes no memory, but computes nothing of use.
    ///
    /// # Errors
    /// When the configuration is not supported.
    pub fn hollow(&self) -> Result<LlavaNext, ModelError> {
        let config = self.processor.config();
        let zero = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        let tensors = LlavaNext::parameter_shapes(config).into_iter();
        let tensors: BTreeMap<String, Tensor> = tensors
            .map(|(name, shape)| (name, zero.as_strided(&shape, vec![0; shape.len()].as_slice(), 0)))
            .collect();
        LlavaNext::from_weights(config.clone(), &Weights::from_tensors(tensors))
            .map_err(|source| ModelError::Network { folder: self.folder.clone(), source: Box::new(source) })
    }

    /// How the folder wants text to be generated, with the tokens that end it: where `generation_config.json` names none, the
    /// tokenizer's.
    ///
    /// # Errors
    /// When the file is unsound.
    pub fn generation_config(&self) -> Result<GenerationConfig, ModelError> {
        let mut config = GenerationConfig::load(&self.folder)
            .map_err(|source| ModelError::Processor {
                folder: self.folder.clone(),
                source: Box::new(source),
            })?
            .unwrap_or_default();
        if config.eos_token_id.is_empty() {
            config.eos_token_id = self.processor.tokenizer().special_id("eos_token").into_iter().collect();
        }
        if config.eos_token_id.is_empty() {
            tracing::warn!(
                "the model's folder names no token that ends an answer: all will be as long as they may"
            );
        }
        Ok(config)
    }

    /// Reads the weights, on the device and in the dtype the flags name.
    ///
    /// # Errors
    /// When the device is not there, or the weights are unsound.
    pub fn load(self, flags: TorchArgs, precision: WeightPrecision) -> Result<OpenModel, ModelError> {
        torch_nn::keep_freed_memory();
        let device = flags
            .device
            .open()
            .map_err(|source| ModelError::Device { device: flags.device, source: Box::new(source) })?;
        let Self { folder, processor } = self;
        let options = LoadOptions { device, kind: flags.dtype.kind(), precision };
        let network = LlavaNext::load(&folder, &options)
            .map_err(|source| ModelError::Network { folder: folder.clone(), source: Box::new(source) })?;
        tracing::info!(model = %folder.display(), device = %flags.device, dtype = %flags.dtype, "model loaded");
        if let Some(quantisation) = network.quantisation() {
            tracing::info!(
                matrices = quantisation.matrices.len(),
                bytes_before = quantisation.bytes_before(),
                bytes_after = quantisation.bytes_after(),
                mean_relative_error = quantisation.mean_error(),
                largest_relative_error = quantisation.worst().map(|worst| worst.relative_error),
                "matrices held in 8 bits"
            );
        }
        Ok(OpenModel { folder, processor, network })
    }
}

impl OpenModel {
    /// Opens a model folder or Hub id on the device and in the dtype the flags name.
    ///
    /// # Errors
    /// When the device is not there, or the folder is no model this project knows.
    pub fn open(model: &str, flags: TorchArgs) -> Result<Self, ModelError> {
        ModelFolder::find(model)?.load(flags, WeightPrecision::Full)
    }

    /// Prompts as the network takes them, padded on the right.
    ///
    /// # Errors
    /// When there is none, or one has no tokens.
    pub fn batch(&self, prompts: &[&Inputs]) -> Result<Batch, ModelError> {
        let (device, kind) = (self.network.device(), self.network.kind());
        Batch::new(prompts, self.pad(), device, kind, PaddingSide::Right)
            .map_err(|source| self.failed(source))
    }

    /// Prompts to be continued, padded on the left.
    ///
    /// # Errors
    /// As [`OpenModel::batch`].
    pub fn prompts(&self, prompts: &[&Inputs]) -> Result<Batch, ModelError> {
        let (device, kind) = (self.network.device(), self.network.kind());
        Batch::new(prompts, self.pad(), device, kind, PaddingSide::Left).map_err(|source| self.failed(source))
    }

    /// One prompt to be continued in `rows` ways; its images go through the tower once.
    ///
    /// # Errors
    /// As [`OpenModel::batch`].
    pub fn repeated(&self, prompt: &Inputs, rows: usize) -> Result<Batch, ModelError> {
        let (device, kind) = (self.network.device(), self.network.kind());
        Batch::continued(prompt, &vec![&[][..]; rows], self.pad(), device, kind, PaddingSide::Left)
            .map_err(|source| self.failed(source))
    }

    /// The token that fills shorter prompts up.
    pub fn pad(&self) -> u32 {
        self.processor.tokenizer().special_id("pad_token").unwrap_or(0)
    }

    /// The hidden states at `points` of chosen tokens, `[tokens of all prompts, width]` in f32 on the model's device:
    /// first those at `positions[0]` of the first prompt, in that order, then those of the next. Nothing after the last
    /// point is computed.
    ///
    /// # Errors
    /// When a hook point is unknown or on the vision side, or the batch does not fit the model.
    ///
    /// # Panics
    /// When there are not as many lists of positions as prompts, or a position is beyond its prompt.
    #[track_caller]
    pub fn states(
        &self,
        batch: &Batch,
        positions: &[Vec<u32>],
        points: &[HookPoint],
    ) -> Result<BTreeMap<HookPoint, Tensor>, ModelError> {
        assert_eq!(positions.len(), batch.len(), "lists of positions against prompts");
        for point in points {
            if self.network.is_vision(point).map_err(|source| self.failed(source))? {
                return Err(ModelError::VisionPoint { point: point.clone() });
            }
        }
        let mut places = Vec::with_capacity(positions.iter().map(Vec::len).sum());
        for (prompt, (positions, &length)) in positions.iter().zip(batch.lengths()).enumerate() {
            let first = (prompt * batch.width()) as i64;
            for &position in positions {
                assert!((position as usize) < length, "position {position} of a prompt of {length} tokens");
                places.push(first + i64::from(position));
            }
        }
        let places = Tensor::from_slice(&places).to_device(self.network.device());
        let hidden = self.network.hidden_states(batch, points).map_err(|source| self.failed(source))?;
        let chosen = |states: &Tensor| states.flatten(0, 1).index_select(0, &places).to_kind(Kind::Float);
        Ok(hidden.iter().map(|(point, states)| (point.clone(), chosen(states))).collect())
    }

    fn failed(&self, source: HookError) -> ModelError {
        ModelError::Run { folder: self.folder.clone(), source: Box::new(source) }
    }
}
