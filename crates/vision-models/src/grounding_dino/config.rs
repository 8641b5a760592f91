//! [`GroundingDinoConfig`]: `config.json` of a GroundingDINO folder.

use std::path::Path;

use lmm_prep::{Activation, Fields, PrepError};
use serde_json::{Map, Value};

use crate::bert::{BertConfig, LARGEST};
use crate::swin::SwinConfig;

/// The groups of the norm behind each input projection.
pub(super) const NORM_GROUPS: usize = 32;

/// Mirror of transformers 4.57's `GroundingDinoConfig`, with that class's defaults ([`GroundingDinoConfig::default`]).
///
/// Read are models with a Swin backbone, a BERT encoder, two stages and query embeddings, which all published ones are.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroundingDinoConfig {
    /// The image backbone.
    pub backbone_config: SwinConfig,
    /// The text encoder.
    pub text_config: BertConfig,
    /// Width of the encoder and decoder.
    pub d_model: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Width of its MLPs; half of it in the text's and in the fusion of both.
    pub encoder_ffn_dim: usize,
    /// Its attention heads; half as many in the text's and in the fusion of both.
    pub encoder_attention_heads: usize,
    /// Points that a head of it samples on each level.
    pub encoder_n_points: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Width of its MLPs.
    pub decoder_ffn_dim: usize,
    /// Its attention heads.
    pub decoder_attention_heads: usize,
    /// Points that a head of it samples on each level.
    pub decoder_n_points: usize,
    /// Activation of all MLPs of encoder and decoder.
    pub activation_function: Activation,
    /// Objects that can be found in an image.
    pub num_queries: usize,
    /// Feature maps that the encoder sees; what the backbone does not give is made of its last.
    pub num_feature_levels: usize,
    /// Tokens that a text may have.
    pub max_text_len: usize,
    /// Temperature of the sine embeddings of places in a feature map.
    pub positional_embedding_temperature: f64,
    /// Epsilon of the layer norms of encoder and decoder.
    pub layer_norm_eps: f64,
    /// Whether all decoder layers have one head for boxes.
    pub decoder_bbox_embed_share: bool,
    /// Keys that nothing here reads: dropout, losses, training.
    pub extra: Map<String, Value>,
}

impl Default for GroundingDinoConfig {
    fn default() -> Self {
        Self {
            backbone_config: SwinConfig { out_indices: vec![2, 3, 4], ..SwinConfig::default() },
            text_config: BertConfig::default(),
            d_model: 256,
            encoder_layers: 6,
            encoder_ffn_dim: 2048,
            encoder_attention_heads: 8,
            encoder_n_points: 4,
            decoder_layers: 6,
            decoder_ffn_dim: 2048,
            decoder_attention_heads: 8,
            decoder_n_points: 4,
            activation_function: Activation::Relu,
            num_queries: 900,
            num_feature_levels: 4,
            max_text_len: 256,
            positional_embedding_temperature: 20.0,
            layer_norm_eps: 1e-5,
            decoder_bbox_embed_share: true,
            extra: Map::new(),
        }
    }
}

impl GroundingDinoConfig {
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
    /// As [`GroundingDinoConfig::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("config.json"))?)
    }

    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.required("model_type")?;
        if model_type != "grounding-dino" {
            return Err(fields.error("model_type", "\"grounding-dino\"", format!("{model_type:?}")));
        }
        refuse_others(&mut fields)?;
        let default = Self::default();
        let backbone_config = match fields.nullable_object("backbone_config")? {
            Some(backbone) => SwinConfig::from_fields(backbone)?,
            None => default.backbone_config,
        };
        let text_config = match fields.nullable_object("text_config")? {
            Some(text) => BertConfig::from_fields(text)?,
            None => default.text_config,
        };
        let layers = 1..=1024;
        let points = 1..=1024;
        let mut config = Self {
            backbone_config,
            text_config,
            d_model: fields.within("d_model", default.d_model, 1..=LARGEST)?,
            encoder_layers: fields.within("encoder_layers", default.encoder_layers, layers.clone())?,
            encoder_ffn_dim: fields.within("encoder_ffn_dim", default.encoder_ffn_dim, 2..=LARGEST)?,
            encoder_attention_heads: fields.within(
                "encoder_attention_heads",
                default.encoder_attention_heads,
                2..=LARGEST,
            )?,
            encoder_n_points: fields.within("encoder_n_points", default.encoder_n_points, points.clone())?,
            decoder_layers: fields.within("decoder_layers", default.decoder_layers, layers)?,
            decoder_ffn_dim: fields.within("decoder_ffn_dim", default.decoder_ffn_dim, 1..=LARGEST)?,
            decoder_attention_heads: fields.within(
                "decoder_attention_heads",
                default.decoder_attention_heads,
                1..=LARGEST,
            )?,
            decoder_n_points: fields.within("decoder_n_points", default.decoder_n_points, points)?,
            activation_function: Activation::take(
                &mut fields,
                "activation_function",
                default.activation_function,
            )?,
            num_queries: fields.within("num_queries", default.num_queries, 1..=LARGEST)?,
            num_feature_levels: fields.within("num_feature_levels", default.num_feature_levels, 1..=16)?,
            max_text_len: fields.or("max_text_len", default.max_text_len)?,
            positional_embedding_temperature: fields
                .positive("positional_embedding_temperature", default.positional_embedding_temperature)?,
            layer_norm_eps: fields.positive("layer_norm_eps", default.layer_norm_eps)?,
            decoder_bbox_embed_share: fields
                .or("decoder_bbox_embed_share", default.decoder_bbox_embed_share)?,
            extra: Map::new(),
        };
        config.check(&fields)?;
        config.extra = fields.into_extra();
        Ok(config)
    }

    /// That the sizes fit each other.
    fn check(&self, fields: &Fields) -> Result<(), PrepError> {
        let divisor = |name: &str, heads: usize, of: &str, width: usize| {
            if width.is_multiple_of(heads) {
                return Ok(());
            }
            Err(fields.error(name, format!("a divisor of {of} = {width}"), heads.to_string()))
        };
        if !self.d_model.is_multiple_of(NORM_GROUPS) {
            let expected = format!("a multiple of {NORM_GROUPS}");
            return Err(fields.error("d_model", expected, self.d_model.to_string()));
        }
        divisor("decoder_attention_heads", self.decoder_attention_heads, "d_model", self.d_model)?;
        divisor("encoder_attention_heads", self.encoder_attention_heads, "d_model", self.d_model)?;
        let half = "encoder_attention_heads, halved,";
        divisor(half, self.encoder_attention_heads / 2, "d_model", self.d_model)?;
        divisor(half, self.encoder_attention_heads / 2, "encoder_ffn_dim / 2", self.encoder_ffn_dim / 2)?;
        let maps = self.backbone_config.out_indices.len();
        if self.num_feature_levels < maps {
            let expected = format!("at least the {maps} feature maps of backbone_config");
            return Err(fields.error("num_feature_levels", expected, self.num_feature_levels.to_string()));
        }
        let positions = self.text_config.max_position_embeddings;
        if !(1..=positions).contains(&self.max_text_len) {
            let expected = format!("1 to text_config.max_position_embeddings = {positions}");
            return Err(fields.error("max_text_len", expected, self.max_text_len.to_string()));
        }
        Ok(())
    }
}

/// Values of other models than those read here.
fn refuse_others(fields: &mut Fields) -> Result<(), PrepError> {
    for name in ["backbone", "backbone_kwargs"] {
        if let Some(value) = fields.value(name).filter(|value| !value.is_null()) {
            return Err(fields.error(name, "null (a Swin backbone by backbone_config)", value.to_string()));
        }
    }
    for (name, default, known) in [
        ("use_timm_backbone", false, false),
        ("use_pretrained_backbone", false, false),
        ("two_stage", true, true),
        ("embedding_init_target", true, true),
    ] {
        let value = fields.or(name, default)?;
        if value != known {
            return Err(fields.error(name, known.to_string(), value.to_string()));
        }
    }
    let positions: String = fields.or("position_embedding_type", "sine".into())?;
    if positions != "sine" {
        return Err(fields.error("position_embedding_type", "\"sine\"", format!("{positions:?}")));
    }
    let query_dim = fields.or("query_dim", 4_usize)?;
    if query_dim != 4 {
        return Err(fields.error("query_dim", "4", query_dim.to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, field: &str) {
        let error = GroundingDinoConfig::from_json(text).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(&format!("`{field}`")), "{text}: {error}");
    }

    #[test]
    fn absent_keys_have_the_defaults_of_python() {
        let config = GroundingDinoConfig::from_json(r#"{"model_type": "grounding-dino"}"#).unwrap();
        assert_eq!(config, GroundingDinoConfig::default());
        assert_eq!(config.backbone_config.out_indices, [2, 3, 4]);
        let text = r#"{"model_type": "grounding-dino", "backbone": null, "giou_cost": 2.0, "text_config": {},
                       "backbone_config": {"model_type": "swin", "embed_dim": 128, "depths": [2, 2, 18, 2],
                       "num_heads": [4, 8, 16, 32], "window_size": 12, "out_features": ["stage2", "stage4"]}}"#;
        let config = GroundingDinoConfig::from_json(text).unwrap();
        assert_eq!(
            (config.backbone_config.out_indices.as_slice(), config.text_config),
            (&[2, 4][..], BertConfig::default())
        );
        assert_eq!((config.backbone_config.channels(4), config.extra.len()), (1024, 1));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let with = |pair: &str| format!(r#"{{"model_type": "grounding-dino", {pair}}}"#);
        refused("{}", "model_type");
        refused(r#"{"model_type": "detr"}"#, "model_type");
        for (pair, field) in [
            (r#""backbone": "resnet50""#, "backbone"),
            (r#""use_timm_backbone": true"#, "use_timm_backbone"),
            (r#""two_stage": false"#, "two_stage"),
            (r#""embedding_init_target": false"#, "embedding_init_target"),
            (r#""position_embedding_type": "learned""#, "position_embedding_type"),
            (r#""query_dim": 2"#, "query_dim"),
            (r#""d_model": 100"#, "d_model"),
            (r#""d_model": 1e9"#, "d_model"),
            (r#""decoder_attention_heads": 7"#, "decoder_attention_heads"),
            (r#""encoder_ffn_dim": 2042"#, "encoder_attention_heads, halved,"),
            (r#""num_feature_levels": 2"#, "num_feature_levels"),
            (r#""max_text_len": 600"#, "max_text_len"),
            (r#""layer_norm_eps": -1e-5"#, "layer_norm_eps"),
            (r#""positional_embedding_temperature": 0"#, "positional_embedding_temperature"),
            (r#""text_config": {"layer_norm_eps": 0}"#, "text_config.layer_norm_eps"),
            (
                r#""backbone_config": {"model_type": "swin", "layer_norm_eps": 0}"#,
                "backbone_config.layer_norm_eps",
            ),
            (r#""activation_function": "mish""#, "activation_function"),
            (r#""text_config": {"model_type": "roberta"}"#, "text_config.model_type"),
            (r#""text_config": {"num_attention_heads": 5}"#, "text_config.num_attention_heads"),
            (r#""backbone_config": {"model_type": "resnet"}"#, "backbone_config.model_type"),
            (
                r#""backbone_config": {"model_type": "swin", "num_heads": [3, 6]}"#,
                "backbone_config.num_heads",
            ),
            (
                r#""backbone_config": {"model_type": "swin", "out_indices": [3, 2]}"#,
                "backbone_config.out_indices",
            ),
            (
                r#""backbone_config": {"model_type": "swin", "out_indices": [2, -1], "out_features": ["stage2", "stage3"]}"#,
                "backbone_config.out_features",
            ),
            (
                r#""backbone_config": {"model_type": "swin", "use_absolute_embeddings": true}"#,
                "backbone_config.use_absolute_embeddings",
            ),
        ] {
            refused(&with(pair), field);
        }
    }
}
