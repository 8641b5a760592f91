//! [`SamConfig`]: `config.json` of a Segment Anything checkpoint.

use std::ops::RangeInclusive;
use std::path::Path;

use lmm_prep::{Activation, Fields, PrepError};
use serde_json::{Map, Value};

/// What a width or a count may be: a typo must not eat the memory.
const COUNT: RangeInclusive<usize> = 1..=65_536;

/// The most patches along a side: tables of relative positions grow with the square.
const MAX_GRID: usize = 512;

/// Mirror of transformers 4.57's `SamConfig`, with that class's defaults ([`SamConfig::default`]: SAM-ViT-B).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SamConfig {
    /// The image encoder.
    pub vision_config: SamVisionConfig,
    /// The encoder of points, boxes and masks.
    pub prompt_encoder_config: SamPromptEncoderConfig,
    /// What makes masks of both.
    pub mask_decoder_config: SamMaskDecoderConfig,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

/// Mirror of `SamVisionConfig`: a vision transformer whose layers attend within windows, but for a few.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamVisionConfig {
    /// Width of the transformer.
    pub hidden_size: usize,
    /// Channels of the image embedding.
    pub output_channels: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Colour channels; only 3 is accepted.
    pub num_channels: usize,
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layers' norms.
    pub layer_norm_eps: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether a position embedding is added to the patches.
    pub use_abs_pos: bool,
    /// Whether attention scores depend on relative positions.
    pub use_rel_pos: bool,
    /// Patches along the side of a window; 0 makes every layer global.
    pub window_size: usize,
    /// The layers that attend over the whole image.
    pub global_attn_indexes: Vec<usize>,
    /// Random frequencies of the position encoding; its width is twice as many.
    pub num_pos_feats: usize,
    /// Width of the MLPs: `mlp_dim`, or `hidden_size · mlp_ratio` where that is absent or null.
    pub mlp_dim: usize,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

/// Mirror of `SamPromptEncoderConfig`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamPromptEncoderConfig {
    /// Width of a prompt's tokens, and of everything behind them.
    pub hidden_size: usize,
    /// Side of the square the coordinates of prompts lie in, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Channels inside the mask encoder; a multiple of 4.
    pub mask_input_channels: usize,
    /// Kinds of points that have an embedding: background, object, and the two corners of a box come first.
    pub num_point_embeddings: usize,
    /// Activation of the mask encoder.
    pub hidden_act: Activation,
    /// Epsilon of the mask encoder's norms.
    pub layer_norm_eps: f64,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

/// Mirror of `SamMaskDecoderConfig`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamMaskDecoderConfig {
    /// Width of tokens and image; a multiple of 8.
    pub hidden_size: usize,
    /// Activation of the layers' MLPs.
    pub hidden_act: Activation,
    /// Width of the layers' MLPs.
    pub mlp_dim: usize,
    /// Two-way transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads, which divide `hidden_size` and what it is reduced to.
    pub num_attention_heads: usize,
    /// By how much the last attention reduces its width. That of the layers is 2 whatever this says, as in Python.
    pub attention_downsample_rate: usize,
    /// Masks of a prompt where several are asked for.
    pub num_multimask_outputs: usize,
    /// Linear layers of the head that estimates the IoU.
    pub iou_head_depth: usize,
    /// Its width.
    pub iou_head_hidden_dim: usize,
    /// Epsilon of the layers' norms.
    pub layer_norm_eps: f64,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for SamVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            output_channels: 256,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 1024,
            patch_size: 16,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            use_abs_pos: true,
            use_rel_pos: true,
            window_size: 14,
            global_attn_indexes: vec![2, 5, 8, 11],
            num_pos_feats: 128,
            mlp_dim: 3072,
            extra: Map::new(),
        }
    }
}

impl Default for SamPromptEncoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            image_size: 1024,
            patch_size: 16,
            mask_input_channels: 16,
            num_point_embeddings: 4,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            extra: Map::new(),
        }
    }
}

impl Default for SamMaskDecoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            hidden_act: Activation::Relu,
            mlp_dim: 2048,
            num_hidden_layers: 2,
            num_attention_heads: 8,
            attention_downsample_rate: 2,
            num_multimask_outputs: 3,
            iou_head_depth: 3,
            iou_head_hidden_dim: 256,
            layer_norm_eps: 1e-6,
            extra: Map::new(),
        }
    }
}

impl SamConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        Self::from_fields(Fields::open(&folder.join("config.json"))?)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`SamConfig::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("config.json"))?)
    }

    /// Patches along a side of the image, which is also the side of the image embedding.
    pub fn grid(&self) -> usize {
        self.vision_config.grid()
    }

    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.required("model_type")?;
        if model_type != "sam" {
            return Err(fields.error("model_type", "\"sam\"", format!("{model_type:?}")));
        }
        let vision = fields.nullable_object("vision_config")?;
        let vision_config = vision.map_or_else(|| Ok(SamVisionConfig::default()), SamVisionConfig::take)?;
        let prompts = fields.nullable_object("prompt_encoder_config")?;
        let prompt_encoder_config =
            prompts.map_or_else(|| Ok(SamPromptEncoderConfig::default()), SamPromptEncoderConfig::take)?;
        let decoder = fields.nullable_object("mask_decoder_config")?;
        let mask_decoder_config =
            decoder.map_or_else(|| Ok(SamMaskDecoderConfig::default()), SamMaskDecoderConfig::take)?;

        // What the parts must agree on.
        let width = prompt_encoder_config.hidden_size;
        let prompt_grid = prompt_encoder_config.image_size / prompt_encoder_config.patch_size;
        let parts = [
            ("vision_config.output_channels", vision_config.output_channels, 1),
            ("vision_config.num_pos_feats", vision_config.num_pos_feats, 2),
            ("mask_decoder_config.hidden_size", mask_decoder_config.hidden_size, 1),
        ];
        for (name, got, times) in parts {
            if got * times != width {
                let share = if times == 1 { "" } else { "half of " };
                let expected = format!("{share}prompt_encoder_config.hidden_size = {width}");
                return Err(fields.error(name, expected, got.to_string()));
            }
        }
        if prompt_grid != vision_config.grid() {
            let expected = format!("{} patches a side, as vision_config has", vision_config.grid());
            return Err(fields.error("prompt_encoder_config.image_size", expected, prompt_grid.to_string()));
        }
        let extra = fields.into_extra();
        Ok(Self { vision_config, prompt_encoder_config, mask_decoder_config, extra })
    }
}

impl SamVisionConfig {
    /// Patches along a side of the image.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches along the side of what layer `layer` attends over, and whether that is a window.
    pub(super) fn extent(&self, layer: usize) -> (usize, bool) {
        let global = self.window_size == 0 || self.global_attn_indexes.contains(&layer);
        if global { (self.grid(), false) } else { (self.window_size, true) }
    }

    fn take(mut fields: Fields) -> Result<Self, PrepError> {
        // Written empty by versions before the class had a name.
        let model_type: String = fields.or("model_type", String::new())?;
        if !matches!(model_type.as_str(), "" | "sam_vision_model") {
            return Err(fields.error("model_type", "\"sam_vision_model\"", format!("{model_type:?}")));
        }
        let default = Self::default();
        let mut count = |name: &str, default| fields.within(name, default, COUNT);
        let hidden_size = count("hidden_size", default.hidden_size)?;
        let mut config = Self {
            hidden_size,
            output_channels: count("output_channels", default.output_channels)?,
            num_hidden_layers: count("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: count("num_attention_heads", default.num_attention_heads)?,
            num_channels: count("num_channels", default.num_channels)?,
            image_size: count("image_size", default.image_size)?,
            patch_size: count("patch_size", default.patch_size)?,
            num_pos_feats: count("num_pos_feats", default.num_pos_feats)?,
            hidden_act: Activation::take(&mut fields, "hidden_act", default.hidden_act)?,
            layer_norm_eps: fields.positive("layer_norm_eps", default.layer_norm_eps)?,
            qkv_bias: fields.or("qkv_bias", default.qkv_bias)?,
            use_abs_pos: fields.or("use_abs_pos", default.use_abs_pos)?,
            use_rel_pos: fields.or("use_rel_pos", default.use_rel_pos)?,
            window_size: fields.or("window_size", default.window_size)?,
            global_attn_indexes: fields.or("global_attn_indexes", default.global_attn_indexes)?,
            mlp_dim: 0,
            extra: Map::new(),
        };
        let mlp_ratio: f64 = fields.or("mlp_ratio", 4.0)?;
        let by_ratio = (hidden_size as f64 * mlp_ratio) as usize;
        config.mlp_dim = fields.nullable("mlp_dim", None)?.unwrap_or(by_ratio);
        if !COUNT.contains(&config.mlp_dim) {
            let expected = format!("{} to {}", COUNT.start(), COUNT.end());
            let got = format!("{} with mlp_ratio {mlp_ratio}", config.mlp_dim);
            return Err(fields.error("mlp_dim", expected, got));
        }
        if !hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of hidden_size = {hidden_size}");
            return Err(fields.error(
                "num_attention_heads",
                expected,
                config.num_attention_heads.to_string(),
            ));
        }
        if config.num_channels != 3 {
            return Err(fields.error("num_channels", "3", config.num_channels.to_string()));
        }
        check_grid(&fields, config.image_size, config.patch_size)?;
        if config.window_size > MAX_GRID {
            let expected = format!("0 to {MAX_GRID}");
            return Err(fields.error("window_size", expected, config.window_size.to_string()));
        }
        config.extra = fields.into_extra();
        Ok(config)
    }
}

impl SamPromptEncoderConfig {
    fn take(mut fields: Fields) -> Result<Self, PrepError> {
        let default = Self::default();
        let mut count = |name: &str, default| fields.within(name, default, COUNT);
        let mut config = Self {
            hidden_size: count("hidden_size", default.hidden_size)?,
            image_size: count("image_size", default.image_size)?,
            patch_size: count("patch_size", default.patch_size)?,
            mask_input_channels: count("mask_input_channels", default.mask_input_channels)?,
            num_point_embeddings: count("num_point_embeddings", default.num_point_embeddings)?,
            hidden_act: Activation::take(&mut fields, "hidden_act", default.hidden_act)?,
            layer_norm_eps: fields.positive("layer_norm_eps", default.layer_norm_eps)?,
            extra: Map::new(),
        };
        check_grid(&fields, config.image_size, config.patch_size)?;
        if !config.mask_input_channels.is_multiple_of(4) {
            let got = config.mask_input_channels.to_string();
            return Err(fields.error("mask_input_channels", "a multiple of 4", got));
        }
        if config.num_point_embeddings < 4 {
            let got = config.num_point_embeddings.to_string();
            return Err(fields.error("num_point_embeddings", "4 or more", got));
        }
        config.extra = fields.into_extra();
        Ok(config)
    }
}

impl SamMaskDecoderConfig {
    fn take(mut fields: Fields) -> Result<Self, PrepError> {
        let default = Self::default();
        let mut count = |name: &str, default| fields.within(name, default, COUNT);
        let mut config = Self {
            hidden_size: count("hidden_size", default.hidden_size)?,
            mlp_dim: count("mlp_dim", default.mlp_dim)?,
            num_hidden_layers: count("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: count("num_attention_heads", default.num_attention_heads)?,
            attention_downsample_rate: count("attention_downsample_rate", default.attention_downsample_rate)?,
            num_multimask_outputs: count("num_multimask_outputs", default.num_multimask_outputs)?,
            iou_head_depth: count("iou_head_depth", default.iou_head_depth)?,
            iou_head_hidden_dim: count("iou_head_hidden_dim", default.iou_head_hidden_dim)?,
            hidden_act: Activation::take(&mut fields, "hidden_act", default.hidden_act)?,
            layer_norm_eps: fields.positive("layer_norm_eps", default.layer_norm_eps)?,
            extra: Map::new(),
        };
        let width = config.hidden_size;
        if !width.is_multiple_of(8) {
            return Err(fields.error("hidden_size", "a multiple of 8", width.to_string()));
        }
        let heads = config.num_attention_heads;
        for rate in [1, LAYER_DOWNSAMPLE_RATE, config.attention_downsample_rate] {
            let inner = width / rate;
            if inner == 0 || !inner.is_multiple_of(heads) {
                let expected = format!("a divisor of hidden_size / {rate} = {inner}");
                return Err(fields.error("num_attention_heads", expected, heads.to_string()));
            }
        }
        if config.iou_head_depth < 2 {
            return Err(fields.error("iou_head_depth", "2 or more", config.iou_head_depth.to_string()));
        }
        config.extra = fields.into_extra();
        Ok(config)
    }
}

/// By how much the attention between tokens and image reduces its width inside the layers, whatever the configuration says.
pub(super) const LAYER_DOWNSAMPLE_RATE: usize = 2;

fn check_grid(fields: &Fields, image_size: usize, patch_size: usize) -> Result<(), PrepError> {
    if (1..=MAX_GRID).contains(&(image_size / patch_size)) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_GRID} times patch_size");
    Err(fields.error("image_size", expected, format!("{image_size} with patch_size {patch_size}")))
}
