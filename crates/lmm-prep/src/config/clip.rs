//! `config.json` of CLIP: both towers and the space they share.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Activation, ClipVisionConfig};
use crate::error::PrepError;
use crate::json::Fields;

/// Mirror of transformers 4.57's `CLIPTextConfig`, with that class's defaults ([`ClipTextConfig::default`]).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClipTextConfig {
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the tower.
    pub hidden_size: usize,
    /// Width of its MLPs.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Tokens of the longest text.
    pub max_position_embeddings: usize,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The token a text is pooled at. 2, which no CLIP's end token is, stands for the highest id of the text: configurations
    /// older than transformers 4.31 have it.
    pub eos_token_id: u32,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
            extra: Map::new(),
        }
    }
}

impl ClipTextConfig {
    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.or("model_type", "clip_text_model".into())?;
        if model_type != "clip_text_model" {
            return Err(fields.error("model_type", "\"clip_text_model\"", format!("{model_type:?}")));
        }
        let default = Self::default();
        let mut config = Self {
            vocab_size: fields.or("vocab_size", default.vocab_size)?,
            hidden_size: fields.or("hidden_size", default.hidden_size)?,
            intermediate_size: fields.or("intermediate_size", default.intermediate_size)?,
            num_hidden_layers: fields.or("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: fields.or("num_attention_heads", default.num_attention_heads)?,
            max_position_embeddings: fields.or("max_position_embeddings", default.max_position_embeddings)?,
            hidden_act: Activation::take(&mut fields, "hidden_act", default.hidden_act)?,
            layer_norm_eps: fields.or("layer_norm_eps", default.layer_norm_eps)?,
            eos_token_id: fields.or("eos_token_id", default.eos_token_id)?,
            extra: Map::new(),
        };
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of hidden_size = {}", config.hidden_size);
            let got = config.num_attention_heads.to_string();
            return Err(fields.error("num_attention_heads", expected, got));
        }
        config.extra = fields.into_extra();
        Ok(config)
    }
}

/// `config.json` of a CLIP, with the defaults of transformers 4.57's `CLIPConfig`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClipConfig {
    /// The text tower.
    pub text_config: ClipTextConfig,
    /// The vision tower.
    pub vision_config: ClipVisionConfig,
    /// Width of the space both are projected to. The towers' own `projection_dim` say nothing here.
    pub projection_dim: usize,
    /// Keys of the file that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self::new(ClipTextConfig::default(), ClipVisionConfig::default())
    }
}

impl ClipConfig {
    /// The Python class's defaults around the given towers.
    pub fn new(text_config: ClipTextConfig, vision_config: ClipVisionConfig) -> Self {
        Self { text_config, vision_config, projection_dim: 512, extra: Map::new() }
    }

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
    /// As [`ClipConfig::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("config.json"))?)
    }

    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.required("model_type")?;
        if model_type != "clip" {
            return Err(fields.error("model_type", "\"clip\"", format!("{model_type:?}")));
        }
        // An older file's `*_config_dict` counts for all fields, the class's defaults where it has none.
        let mut tower = |name: &str| -> Result<Option<Fields>, PrepError> {
            let newer = fields.nullable_object(name)?;
            Ok(fields.nullable_object(&format!("{name}_dict"))?.or(newer))
        };
        let text_config = tower("text_config")?.map(ClipTextConfig::from_fields).transpose()?;
        let vision_config = tower("vision_config")?.map(ClipVisionConfig::from_fields).transpose()?;
        let mut config = Self::new(text_config.unwrap_or_default(), vision_config.unwrap_or_default());
        config.projection_dim = fields.or("projection_dim", config.projection_dim)?;
        config.extra = fields.into_extra();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keys_have_the_values_of_the_python_class() {
        let config = ClipConfig::from_json(r#"{"model_type": "clip"}"#).unwrap();
        assert_eq!(config, ClipConfig::default());
        assert_eq!((config.projection_dim, config.text_config.eos_token_id), (512, 49_407));
    }

    #[test]
    fn an_older_files_dictionary_overrules_every_field() {
        let config = ClipConfig::from_json(
            r#"{"model_type": "clip", "projection_dim": 32,
                "text_config": {"hidden_size": 64, "eos_token_id": 2, "num_hidden_layers": 3},
                "text_config_dict": {"hidden_size": 128},
                "vision_config": {"hidden_size": 96}, "vision_config_dict": null}"#,
        )
        .unwrap();
        let text = ClipTextConfig { hidden_size: 128, ..ClipTextConfig::default() };
        assert_eq!(config.text_config, text);
        assert_eq!((config.vision_config.hidden_size, config.projection_dim), (96, 32));
    }

    #[test]
    fn a_field_at_fault_is_named() {
        let refused = |text: &str| ClipConfig::from_json(text).unwrap_err().to_string();
        let error = refused(r#"{"model_type": "siglip"}"#);
        assert!(error.contains("model_type") && error.contains("siglip"), "{error}");
        let error = refused(r#"{"model_type": "clip", "text_config": {"num_attention_heads": 7}}"#);
        assert!(error.contains("text_config.num_attention_heads") && error.contains("512"), "{error}");
        let error = refused(r#"{"model_type": "clip", "vision_config": {"hidden_act": "selu"}}"#);
        assert!(error.contains("vision_config.hidden_act"), "{error}");
    }
}
