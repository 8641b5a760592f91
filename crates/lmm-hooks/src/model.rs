//! [`LlavaNext`]: vision tower, projector, language model and head, with hook points.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lmm_prep::{FeatureSelect, LlavaNextConfig};
use sae_types::HookPoint;
use torch_nn::tch::{self, Device, Kind, Tensor};
use torch_nn::{Activation, Linear, Quantisation, WeightPrecision, Weights};
use vision_models::{ClipVision, state_index};

use crate::cache::KvCache;
use crate::decoder::{self, Decoder};
use crate::hooks::{Flow, Halt, Pass};
use crate::layout::Layout;
use crate::points::{Points, Site};
use crate::{Batch, HookError, Hooks};

/// Where a model's tensors go when it is read from a folder.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Their device.
    pub device: Device,
    /// Their dtype.
    pub kind: Kind,
    /// How the matrices of the language model's layers are kept.
    pub precision: WeightPrecision,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, kind: Kind::Float, precision: WeightPrecision::Full }
    }
}

/// What a forward pass gives.
#[derive(Debug)]
pub struct Output {
    /// `[batch, tokens, vocab]` in the dtype of the head; `None` when the pass was stopped before.
    pub logits: Option<Tensor>,
}

/// A LLaVA-NeXT model.
#[derive(Debug)]
pub struct LlavaNext {
    config: LlavaNextConfig,
    tower: ClipVision,
    projector: Projector,
    newline: Tensor,
    pub(crate) decoder: Decoder,
    head: Linear,
    pub(crate) points: Points,
    quantisation: Option<Quantisation>,
    bytes: u64,
}

#[derive(Debug)]
struct Projector {
    first: Linear,
    activation: Activation,
    second: Linear,
}

impl LlavaNext {
    /// Reads `config.json` and the safetensors weights of a folder in Hugging Face layout.
    ///
    /// # Errors
    /// When a file is absent or unsound, the configuration is not supported, or tensors are missing, mis-shaped or
    /// left over.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self, HookError> {
        let config = LlavaNextConfig::load(folder).map_err(|source| HookError::Config { source })?;
        let weights = Weights::open(folder, options.device, options.kind)
            .map_err(|source| HookError::Weights { source })?;
        Self::from_weights_in(config, &weights, options.precision)
    }

    /// Builds the model from named tensors, in either of the key layouts on the Hub. Tensors in memory are shared, not
    /// copied, and gradients flow back to them; doing this anew for every training step costs next to nothing.
    ///
    /// # Errors
    /// As [`LlavaNext::load`].
    pub fn from_weights(config: LlavaNextConfig, weights: &Weights) -> Result<Self, HookError> {
        Self::from_weights_in(config, weights, WeightPrecision::Full)
    }

    /// The same with the seven matrices of each layer of the language model (query, key, value, output, gate, up, down) in a
    /// precision of their own. Embeddings, norms, biases, head, tower and projector stay as they are.
    ///
    /// In 8 bits these matrices are copies, made one at a time, and no gradient flows to them; gradients to hidden states
    /// flow on ([`torch_nn::QuantisedMatrix::forward`] says at what cost in memory).
    ///
    /// # Errors
    /// As [`LlavaNext::load`]; in 8 bits also when a matrix holds a number that is not finite.
    pub fn from_weights_in(
        config: LlavaNextConfig,
        weights: &Weights,
        precision: WeightPrecision,
    ) -> Result<Self, HookError> {
        let (text, vision) = (&config.text_config, &config.vision_config);
        let state = feature_state(&config)?;
        let layout = Layout::detect(weights.names());
        let root = weights.root();
        let width = text.hidden_size as i64;
        let bias = config.multimodal_projector_bias;
        let projector = root.sub(layout.projector());
        let tower = ClipVision::load_up_to(&root.sub(layout.tower()), vision, state);
        let projector = Projector {
            first: Linear::load(&projector.sub("linear_1"), vision.hidden_size as i64, width, bias),
            activation: decoder::activation(config.projector_hidden_act),
            second: Linear::load(&projector.sub("linear_2"), width, width, bias),
        };
        let newline = root.tensor(layout.newline(), &[width]);
        let rope = decoder::rope(text, weights.device());
        let decoder = Decoder::load(&root.sub(layout.decoder()), text, rope, precision);
        let head = if text.tie_word_embeddings {
            root.skip(layout.head());
            Linear::new(decoder.embeddings.weight().shallow_clone(), None)
        } else {
            Linear::load(&root.sub(layout.head()), width, text.vocab_size as i64, false)
        };
        let report = weights.finish().map_err(|source| HookError::Weights { source })?;
        let points = Points::new(&config, state);
        let quantisation = (precision == WeightPrecision::Int8).then_some(report.quantisation);
        let bytes = report.bytes;
        Ok(Self { config, tower, projector, newline, decoder, head, points, quantisation, bytes })
    }

    /// What 8 bits did to the matrices of the layers; `None` at full precision.
    pub fn quantisation(&self) -> Option<&Quantisation> {
        self.quantisation.as_ref()
    }

    /// The bytes its tensors hold.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the model was built from.
    pub fn config(&self) -> &LlavaNextConfig {
        &self.config
    }

    /// The device its tensors are on.
    pub fn device(&self) -> Device {
        self.newline.device()
    }

    /// The dtype its matrices are in.
    pub fn kind(&self) -> Kind {
        self.head.kind()
    }

    /// Every hook point, in the order a forward pass reaches them.
    pub fn hook_points(&self) -> Vec<HookPoint> {
        self.points.all()
    }

    /// The hook points that any of `patterns` matches, in the order a forward pass reaches them, each once.
    ///
    /// Patterns are those of Python's `fnmatch`: `*` (dots too), `?`, `[0-9]`, `[!0-9]`. A plain name matches itself.
    ///
    /// # Errors
    /// When a pattern matches nothing, with the nearest names: [`HookError::UnknownPoint`] for a name,
    /// [`HookError::UnmatchedPattern`] for anything else.
    pub fn matching_points(&self, patterns: &[impl AsRef<str>]) -> Result<Vec<HookPoint>, HookError> {
        let mut sites = BTreeSet::new();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let found = self.points.matching(pattern);
            if found.is_empty() {
                let near = self.points.nearest(pattern);
                return Err(match HookPoint::new(pattern) {
                    Ok(point) => HookError::UnknownPoint { point, near },
                    Err(_) => HookError::UnmatchedPattern { pattern: pattern.to_owned(), near },
                });
            }
            sites.extend(found);
        }
        Ok(sites.into_iter().filter_map(Site::point).collect())
    }

    /// The hook point whose tensor is what the module at `point` reads, for a transcoder.
    ///
    /// | module | its input |
    /// |---|---|
    /// | `model.layers.{i}.mlp` | `model.layers.{i}.post_attention_layernorm` |
    /// | `model.layers.{i}.self_attn` | `model.layers.{i}.input_layernorm` |
    /// | `model.layers.{i}`, `model.layers.{i}.input_layernorm` | `model.layers.{i-1}`, or `model.embed_tokens` |
    /// | `model.norm` | the last layer |
    /// | a layer of the tower | the layer before |
    ///
    /// # Errors
    /// [`HookError::UnknownPoint`]; [`HookError::NoInputPoint`] for every other module, such as
    /// `post_attention_layernorm`, which reads a sum that no hook point shows.
    pub fn input_point(&self, point: &HookPoint) -> Result<HookPoint, HookError> {
        let input = self.points.input(self.site(point)?);
        input.and_then(Site::point).ok_or_else(|| HookError::NoInputPoint { point: point.clone() })
    }

    /// Whether the model has this hook point.
    ///
    /// # Errors
    /// [`HookError::UnknownPoint`] with the nearest names.
    pub fn check(&self, point: &HookPoint) -> Result<(), HookError> {
        self.site(point).map(|_| ())
    }

    /// The width of the vectors at a hook point.
    ///
    /// # Errors
    /// [`HookError::UnknownPoint`] with the nearest names.
    pub fn width(&self, point: &HookPoint) -> Result<i64, HookError> {
        Ok(match self.site(point)? {
            Site::TowerLayer(_) => self.config.vision_config.hidden_size as i64,
            _ => self.config.text_config.hidden_size as i64,
        })
    }

    /// Whether a hook point lies before the language model, in the tower or the projector: the rows of its tensor are
    /// then tiles, not prompts.
    ///
    /// # Errors
    /// [`HookError::UnknownPoint`] with the nearest names.
    pub fn is_vision(&self, point: &HookPoint) -> Result<bool, HookError> {
        Ok(self.site(point)?.is_vision())
    }

    pub(crate) fn site(&self, point: &HookPoint) -> Result<Site, HookError> {
        self.points.site(point).ok_or_else(|| HookError::UnknownPoint {
            point: point.clone(),
            near: self.points.nearest(point.as_str()),
        })
    }

    /// A forward pass over the prompts, differentiable unless the caller turned gradients off.
    ///
    /// # Errors
    /// When a hook point is unknown, the batch does not fit the model, or a hook changes a shape.
    pub fn forward(&self, batch: &Batch, hooks: &mut Hooks<'_>) -> Result<Output, HookError> {
        let hidden = self.last_hidden(batch, hooks)?;
        Ok(Output { logits: hidden.map(|hidden| self.lm_head(&hidden)) })
    }

    /// The hidden states `[batch, tokens, width]` that [`LlavaNext::lm_head`] makes logits of, or `None` when the pass
    /// was stopped before. Differentiable; for losses that need logits at a few positions only.
    ///
    /// # Errors
    /// As [`LlavaNext::forward`].
    pub fn last_hidden(&self, batch: &Batch, hooks: &mut Hooks<'_>) -> Result<Option<Tensor>, HookError> {
        let mut pass = Pass::new(&self.points, hooks, batch)?;
        self.prefill(&mut pass, None)
    }

    /// Logits `[.., vocab]` of final hidden states `[.., width]`.
    pub fn lm_head(&self, hidden: &Tensor) -> Tensor {
        self.head.forward(hidden)
    }

    /// The logits of some tokens alone, `[.., ids]`, of final hidden states `[.., width]`. Products and sums are f32 whatever the
    /// model's dtype, in which the differences of logits that are nearly equal would be steps of its rounding. Differentiable.
    ///
    /// # Panics
    /// When a token is beyond the vocabulary.
    #[track_caller]
    pub fn logits_of(&self, hidden: &Tensor, ids: &[u32]) -> Tensor {
        let vocab_size = self.config.text_config.vocab_size;
        let beyond = ids.iter().find(|&&id| id as usize >= vocab_size);
        assert!(beyond.is_none(), "token {beyond:?} of a vocabulary of {vocab_size}");
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        self.head.some_outputs(hidden, &Tensor::from_slice(&ids).to_device(hidden.device()))
    }

    /// The hidden states at some hook points, without gradients: `[batch, tokens, width]`, or `[n_tiles, .., width]` for
    /// the tower and the projector. Nothing after the last of them is computed.
    ///
    /// # Errors
    /// As [`LlavaNext::forward`]; also when a point of the vision side is asked of a batch without images.
    pub fn hidden_states(
        &self,
        batch: &Batch,
        points: &[HookPoint],
    ) -> Result<BTreeMap<HookPoint, Tensor>, HookError> {
        let found = RefCell::new(BTreeMap::new());
        if points.is_empty() {
            return Ok(found.into_inner());
        }
        let mut hooks = Hooks::new().stop_after_last();
        for point in points {
            hooks = hooks.read(point.clone(), |context, tensor| {
                found.borrow_mut().insert(context.point.clone(), tensor.shallow_clone());
            });
        }
        {
            let _guard = tch::no_grad_guard();
            self.last_hidden(batch, &mut hooks)?;
        }
        drop(hooks);
        let found = found.into_inner();
        match points.iter().find(|point| !found.contains_key(point)) {
            Some(point) => Err(HookError::NotReached { point: point.clone() }),
            None => Ok(found),
        }
    }

    /// What the tower makes of `pixels [n, 3, side, side]` at the configured layer and strategy:
    /// `[n, patches, tower width]`, the input of [`LlavaNext::project`]. Differentiable, without hooks.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn tower_features(&self, pixels: &Tensor) -> Tensor {
        self.select(&self.tower.hidden_states(pixels, self.config.vision_feature_layer))
    }

    /// The projector: tower features `[.., tower width]` to image embeddings `[.., width]`. Differentiable.
    pub fn project(&self, features: &Tensor) -> Tensor {
        let projector = &self.projector;
        projector.second.forward(&projector.activation.forward(&projector.first.forward(features)))
    }

    fn select(&self, hidden: &Tensor) -> Tensor {
        match self.config.vision_feature_select_strategy {
            FeatureSelect::Default => hidden.narrow(1, 1, hidden.size()[1] - 1),
            FeatureSelect::Full => hidden.shallow_clone(),
        }
    }

    /// Reads the prompts of a pass; `None` when it was stopped.
    pub(crate) fn prefill(
        &self,
        pass: &mut Pass<'_, '_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Option<Tensor>, HookError> {
        self.check_batch(pass.batch)?;
        let result = match self.embed(pass) {
            Flow::Continue(embeddings) => self.decoder.forward(embeddings, cache, pass),
            Flow::Break(halt) => Flow::Break(halt),
        };
        finished(result)
    }

    /// Token embeddings with the images in their places.
    fn embed(&self, pass: &mut Pass<'_, '_>) -> Flow<Tensor> {
        let images = self.image_features(pass)?;
        if pass.last().is_some_and(Site::is_vision) {
            return Flow::Break(Halt::Reached);
        }
        let embeddings = self.decoder.embeddings.forward(pass.batch.input_ids());
        let (Some(pictures), Some(images)) = (&pass.batch.pictures, images) else {
            return Flow::Continue(embeddings);
        };
        let (kind, width) = (embeddings.kind(), self.config.text_config.hidden_size as i64);
        // Two copies rather than one of features and newlines joined: a newline's gradient is then a sum that libtorch
        // accumulates in f32, not hundreds of additions in the dtype of the pass.
        let features = images.reshape([-1, width]).index_select(0, &pictures.features).to_kind(kind);
        let newlines = self.newline.to_kind(kind).expand([pictures.newline_places.size()[0], width], false);
        let merged = embeddings
            .view([-1, width])
            .index_copy(0, &pictures.feature_places, &features)
            .index_copy(0, &pictures.newline_places, &newlines);
        Flow::Continue(merged.view(embeddings.size().as_slice()))
    }

    /// The projector's output for every tile of the batch, `[n_tiles, patches, width]`.
    fn image_features(&self, pass: &mut Pass<'_, '_>) -> Flow<Option<Tensor>> {
        let Some(pixels) = pass.batch.pixels() else { return Flow::Continue(None) };
        let depth = self.tower.depth();
        let hidden =
            self.tower.forward(pixels, depth, |layer, hidden| pass.visit(Site::TowerLayer(layer), hidden))?;
        let images = self.project(&self.select(&hidden));
        pass.visit(Site::Projector, images).map_continue(Some)
    }

    fn check_batch(&self, batch: &Batch) -> Result<(), HookError> {
        let vocab_size = self.config.text_config.vocab_size;
        let token = batch.largest_id();
        if token as usize >= vocab_size {
            return Err(HookError::TokenBeyondVocabulary { token, vocab_size });
        }
        let Some(pictures) = &batch.pictures else { return Ok(()) };
        let vision = &self.config.vision_config;
        let side = vision.image_size as i64;
        let wrong = |field, expected: String, got: String| HookError::ConfigField { field, expected, got };
        if pictures.pixels.size()[2] != side {
            let got = format!("tiles of {} pixels", pictures.pixels.size()[2]);
            return Err(wrong("vision_config.image_size", side.to_string(), got));
        }
        let per_side = vision.patches_per_side() as i64;
        let class = i64::from(self.config.vision_feature_select_strategy == FeatureSelect::Full);
        if pictures.patches_per_tile != per_side * per_side + class {
            let expected = format!("{} features per tile", per_side * per_side + class);
            let got = format!("inputs laid out for {}", pictures.patches_per_tile);
            return Err(wrong("vision_feature_select_strategy", expected, got));
        }
        if let Some(other) = pictures.placeholders.iter().find(|&&id| id != self.config.image_token_index) {
            let expected = self.config.image_token_index.to_string();
            return Err(wrong("image_token_index", expected, format!("token {other} in an image's place")));
        }
        Ok(())
    }
}

/// The hidden state of the tower whose features are used, by its index from the front.
pub(crate) fn feature_state(config: &LlavaNextConfig) -> Result<usize, HookError> {
    let (layers, layer) = (config.vision_config.num_hidden_layers, config.vision_feature_layer);
    state_index(layers, layer).ok_or_else(|| HookError::ConfigField {
        field: "vision_feature_layer",
        expected: format!("a hidden state of {layers} layers"),
        got: layer.to_string(),
    })
}

/// Tells a pass that ended early from one that failed.
pub(crate) fn finished(flow: Flow<Tensor>) -> Result<Option<Tensor>, HookError> {
    match flow {
        Flow::Continue(hidden) => Ok(Some(hidden)),
        Flow::Break(Halt::Reached) => Ok(None),
        Flow::Break(Halt::Failed(error)) => Err(error),
    }
}
