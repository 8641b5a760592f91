//! `vision_config`: the CLIP vision tower.

use std::path::Path;

use serde_json::{Map, Value};

use super::Activation;
use crate::error::PrepError;
use crate::json::Fields;

/// Mirror of transformers 4.57's `CLIPVisionConfig`, with that class's defaults ([`ClipVisionConfig::default`]).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClipVisionConfig {
    /// Width of the tower.
    pub hidden_size: usize,
    /// Width of its MLPs.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Colour channels; only 3 is accepted.
    pub num_channels: usize,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Width of CLIP's joint space, which [`super::ClipConfig`] names itself; LLaVA does not use it.
    pub projection_dim: usize,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            num_channels: 3,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            extra: Map::new(),
        }
    }
}

impl ClipVisionConfig {
    /// The tower `LlavaNextConfig` assumes when `vision_config` is absent altogether: CLIP ViT-L/14 at 336 pixels.
    pub fn llava_next() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            projection_dim: 768,
            ..Self::default()
        }
    }

    /// Reads `config.json` of a folder that holds the tower alone, a `CLIPVisionModel`.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        Self::from_fields(Fields::open(&folder.join("config.json"))?)
    }

    /// Patches along one side of a tile.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    pub(super) fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.or("model_type", "clip_vision_model".into())?;
        if model_type != "clip_vision_model" {
            return Err(fields.error("model_type", "\"clip_vision_model\"", format!("{model_type:?}")));
        }
        let default = Self::default();
        let mut config = Self {
            hidden_size: fields.or("hidden_size", default.hidden_size)?,
            intermediate_size: fields.or("intermediate_size", default.intermediate_size)?,
            num_hidden_layers: fields.or("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: fields.or("num_attention_heads", default.num_attention_heads)?,
            image_size: fields.or("image_size", default.image_size)?,
            patch_size: fields.or("patch_size", default.patch_size)?,
            num_channels: fields.or("num_channels", default.num_channels)?,
            hidden_act: Activation::take(&mut fields, "hidden_act", default.hidden_act)?,
            layer_norm_eps: fields.or("layer_norm_eps", default.layer_norm_eps)?,
            projection_dim: fields.or("projection_dim", default.projection_dim)?,
            extra: Map::new(),
        };
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of hidden_size = {}", config.hidden_size);
            return Err(fields.error(
                "num_attention_heads",
                expected,
                config.num_attention_heads.to_string(),
            ));
        }
        if config.patch_size == 0 || config.image_size < config.patch_size || config.image_size > 1 << 16 {
            let got = format!("image_size {} with patch_size {}", config.image_size, config.patch_size);
            return Err(fields.error("image_size", "patch_size <= image_size <= 65536, patch_size > 0", got));
        }
        if config.num_channels != 3 {
            return Err(fields.error("num_channels", "3", config.num_channels.to_string()));
        }
        config.extra = fields.into_extra();
        Ok(config)
    }
}
