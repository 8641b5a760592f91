//! `config.json` of DINOv2.

use std::path::Path;

use serde_json::{Map, Value};

use super::Activation;
use crate::error::PrepError;
use crate::json::Fields;

/// Mirror of transformers 4.57's `Dinov2Config`, with that class's defaults ([`Dinov2Config::default`]).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Dinov2Config {
    /// Width of the model.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the MLPs, in widths of the model.
    pub mlp_ratio: f64,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Side of the square image its position embeddings were made for, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Colour channels; only 3 is accepted.
    pub num_channels: usize,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.0,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            image_size: 224,
            patch_size: 14,
            num_channels: 3,
            qkv_bias: true,
            extra: Map::new(),
        }
    }
}

impl Dinov2Config {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault; `use_swiglu_ffn`, which
    /// only `dinov2-giant` has, is refused.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        Self::from_fields(Fields::open(&folder.join("config.json"))?)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`Dinov2Config::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("config.json"))?)
    }

    /// Patches along one side of the image its position embeddings were made for.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Width of the MLPs: `int(hidden_size * mlp_ratio)`.
    pub fn intermediate_size(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio) as usize
    }

    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.required("model_type")?;
        if model_type != "dinov2" {
            return Err(fields.error("model_type", "\"dinov2\"", format!("{model_type:?}")));
        }
        if fields.or("use_swiglu_ffn", false)? {
            return Err(fields.error("use_swiglu_ffn", "false", "true"));
        }
        let default = Self::default();
        let mut config = Self {
            hidden_size: fields.or("hidden_size", default.hidden_size)?,
            num_hidden_layers: fields.or("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: fields.or("num_attention_heads", default.num_attention_heads)?,
            mlp_ratio: fields.or("mlp_ratio", default.mlp_ratio)?,
            hidden_act: Activation::take(&mut fields, "hidden_act", default.hidden_act)?,
            layer_norm_eps: fields.or("layer_norm_eps", default.layer_norm_eps)?,
            image_size: fields.or("image_size", default.image_size)?,
            patch_size: fields.or("patch_size", default.patch_size)?,
            num_channels: fields.or("num_channels", default.num_channels)?,
            qkv_bias: fields.or("qkv_bias", default.qkv_bias)?,
            extra: Map::new(),
        };
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of hidden_size = {}", config.hidden_size);
            let got = config.num_attention_heads.to_string();
            return Err(fields.error("num_attention_heads", expected, got));
        }
        if config.patch_size == 0 || config.image_size < config.patch_size || config.image_size > 1 << 16 {
            let got = format!("image_size {} with patch_size {}", config.image_size, config.patch_size);
            return Err(fields.error("image_size", "patch_size <= image_size <= 65536, patch_size > 0", got));
        }
        if !(config.mlp_ratio > 0.0 && config.mlp_ratio <= 1e3) {
            return Err(fields.error(
                "mlp_ratio",
                "a number above 0, at most 1000",
                config.mlp_ratio.to_string(),
            ));
        }
        if config.num_channels != 3 {
            return Err(fields.error("num_channels", "3", config.num_channels.to_string()));
        }
        config.extra = fields.into_extra();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_python_classs_and_faults_are_named() {
        let config = Dinov2Config::from_json(r#"{"model_type": "dinov2"}"#).unwrap();
        assert_eq!(config, Dinov2Config::default());
        assert_eq!((config.intermediate_size(), config.patches_per_side()), (3072, 16));
        let giant = Dinov2Config::from_json(r#"{"model_type": "dinov2", "use_swiglu_ffn": true}"#);
        assert!(giant.unwrap_err().to_string().contains("use_swiglu_ffn"));
    }
}
