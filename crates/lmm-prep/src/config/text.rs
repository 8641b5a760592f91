//! `text_config`: the language models LLaVA-NeXT comes with.

use serde_json::{Map, Value};

use super::Activation;
use crate::error::PrepError;
use crate::json::{Fields, Ids};

/// The decoder's architecture, by `model_type`. Vicuna and Llama 3 are `llama`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextFamily {
    /// `llama`.
    Llama,
    /// `mistral`.
    Mistral,
    /// `qwen2`.
    Qwen2,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, a smooth blend between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context the model was first trained at.
        original_max_position_embeddings: usize,
    },
}

/// Mirror of `LlamaConfig`, `MistralConfig` and `Qwen2Config` of transformers 4.57, with each class's own defaults
/// ([`TextConfig::new`]).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TextConfig {
    /// Which class it mirrors.
    pub family: TextFamily,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head. Need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Activation of the MLPs' gate.
    pub hidden_act: Activation,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// How many positions back a token sees, itself included, in layers that slide ([`TextConfig::sliding_window_of`]).
    /// For Qwen2 already `None` unless `use_sliding_window`.
    pub sliding_window: Option<usize>,
    /// Qwen2: layers below this index see everything. 0 elsewhere.
    pub max_window_layers: usize,
    /// Llama's `attention_bias`: biases on q, k, v and o. See [`TextConfig::qkv_bias`] for what a family really has.
    pub attention_bias: bool,
    /// Llama's `mlp_bias`.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding matrix. This is what transformers 4.57 obeys.
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// End of sequence; any of these ends generation.
    pub eos_token_id: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl TextConfig {
    /// The defaults of the family's Python class.
    pub fn new(family: TextFamily) -> Self {
        let llama = Self {
            family,
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            hidden_act: Activation::Silu,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            max_window_layers: 0,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            max_position_embeddings: 2048,
            bos_token_id: Some(1),
            eos_token_id: vec![2],
            pad_token_id: None,
            extra: Map::new(),
        };
        match family {
            TextFamily::Llama => llama,
            TextFamily::Mistral => Self {
                intermediate_size: 14_336,
                num_key_value_heads: 8,
                sliding_window: Some(4096),
                max_position_embeddings: 4096 * 32,
                ..llama
            },
            TextFamily::Qwen2 => Self {
                vocab_size: 151_936,
                intermediate_size: 22_016,
                max_window_layers: 28,
                max_position_embeddings: 32_768,
                bos_token_id: None,
                eos_token_id: Vec::new(),
                ..llama
            },
        }
    }

    /// Whether the query, key and value projections have biases: always for Qwen2, by `attention_bias` for Llama.
    pub fn qkv_bias(&self) -> bool {
        match self.family {
            TextFamily::Llama => self.attention_bias,
            TextFamily::Mistral => false,
            TextFamily::Qwen2 => true,
        }
    }

    /// Whether the attention's output projection has a bias: only Llama's can.
    pub fn output_bias(&self) -> bool {
        self.family == TextFamily::Llama && self.attention_bias
    }

    /// The sliding window of one layer; `None` where the layer sees everything before it.
    pub fn sliding_window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| layer >= self.max_window_layers)
    }

    pub(super) fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.or("model_type", "llama".into())?;
        let family = match model_type.as_str() {
            "llama" => TextFamily::Llama,
            "mistral" => TextFamily::Mistral,
            "qwen2" => TextFamily::Qwen2,
            other => {
                return Err(fields.error("model_type", "one of llama, mistral, qwen2", format!("{other:?}")));
            }
        };
        let mut config = Self::new(family);
        config.vocab_size = fields.or("vocab_size", config.vocab_size)?;
        config.hidden_size = fields.or("hidden_size", config.hidden_size)?;
        config.intermediate_size = fields.or("intermediate_size", config.intermediate_size)?;
        config.num_hidden_layers = fields.or("num_hidden_layers", config.num_hidden_layers)?;
        config.num_attention_heads =
            positive(&mut fields, "num_attention_heads", config.num_attention_heads)?;
        // Llama's default is as many as query heads; Mistral's and Qwen2's are the numbers of their classes.
        let kv_heads = (family != TextFamily::Llama).then_some(config.num_key_value_heads);
        config.num_key_value_heads =
            fields.nullable("num_key_value_heads", kv_heads)?.unwrap_or(config.num_attention_heads);
        config.head_dim = match fields.nullable::<usize>("head_dim", None)? {
            Some(head_dim) => head_dim,
            None if config.hidden_size.is_multiple_of(config.num_attention_heads) => {
                config.hidden_size / config.num_attention_heads
            }
            None => {
                let expected = format!("a divisor of hidden_size = {}, or a head_dim", config.hidden_size);
                let got = config.num_attention_heads.to_string();
                return Err(fields.error("num_attention_heads", expected, got));
            }
        };
        if config.head_dim == 0 || !config.head_dim.is_multiple_of(2) {
            return Err(fields.error("head_dim", "an even number above 0", config.head_dim.to_string()));
        }
        if config.num_key_value_heads == 0
            || !config.num_attention_heads.is_multiple_of(config.num_key_value_heads)
        {
            let expected = format!("a divisor of num_attention_heads = {}", config.num_attention_heads);
            return Err(fields.error(
                "num_key_value_heads",
                expected,
                config.num_key_value_heads.to_string(),
            ));
        }
        config.hidden_act = Activation::take(&mut fields, "hidden_act", config.hidden_act)?;
        config.rms_norm_eps = fields.or("rms_norm_eps", config.rms_norm_eps)?;
        config.rope_theta = fields.or("rope_theta", config.rope_theta)?;
        config.rope_scaling = rope_scaling(&mut fields)?;
        match family {
            TextFamily::Llama => {
                config.attention_bias = fields.or("attention_bias", config.attention_bias)?;
                config.mlp_bias = fields.or("mlp_bias", config.mlp_bias)?;
            }
            TextFamily::Mistral => {
                config.sliding_window = fields.nullable("sliding_window", config.sliding_window)?;
            }
            TextFamily::Qwen2 => {
                config.max_window_layers = fields.or("max_window_layers", config.max_window_layers)?;
                let slides = fields.or("use_sliding_window", false)?;
                config.sliding_window = fields.nullable("sliding_window", Some(4096))?.filter(|_| slides);
                check_layer_types(&mut fields, &config)?;
            }
        }
        if config.sliding_window == Some(0) {
            return Err(fields.error("sliding_window", "null or a positive integer", "0"));
        }
        config.tie_word_embeddings = fields.or("tie_word_embeddings", config.tie_word_embeddings)?;
        config.max_position_embeddings =
            fields.or("max_position_embeddings", config.max_position_embeddings)?;
        config.bos_token_id = fields.nullable("bos_token_id", config.bos_token_id)?;
        let eos = fields.nullable("eos_token_id", Some(Ids(config.eos_token_id)))?;
        config.eos_token_id = eos.map(|ids| ids.0).unwrap_or_default();
        config.pad_token_id = fields.nullable::<i64>("pad_token_id", None)?.and_then(|id| id.try_into().ok());
        config.extra = fields.into_extra();
        Ok(config)
    }
}

fn positive(fields: &mut Fields, name: &str, default: usize) -> Result<usize, PrepError> {
    match fields.or(name, default)? {
        0 => Err(fields.error(name, "a positive integer", "0")),
        value => Ok(value),
    }
}

/// Qwen2's explicit `layer_types` must say what `max_window_layers` says; nothing else is modelled.
fn check_layer_types(fields: &mut Fields, config: &TextConfig) -> Result<(), PrepError> {
    let Some(types) = fields.nullable::<Vec<String>>("layer_types", None)? else { return Ok(()) };
    let wanted = (0..config.num_hidden_layers).map(|layer| match config.sliding_window_of(layer) {
        Some(_) => "sliding_attention",
        None => "full_attention",
    });
    if types.iter().map(String::as_str).eq(wanted) {
        return Ok(());
    }
    let expected = "what use_sliding_window and max_window_layers imply, one entry per layer";
    Err(fields.error("layer_types", expected, format!("{types:?}")))
}

fn rope_scaling(fields: &mut Fields) -> Result<Option<RopeScaling>, PrepError> {
    let Some(mut scaling) = fields.nullable_object("rope_scaling")? else { return Ok(None) };
    // Python copies `type` over `rope_type` where both are there.
    let newer: String = scaling.or("rope_type", "default".into())?;
    let kind: String = scaling.or("type", newer)?;
    let factor = |scaling: &mut Fields| -> Result<f64, PrepError> {
        let factor: f64 = scaling.required("factor")?;
        if factor >= 1.0 {
            return Ok(factor);
        }
        Err(scaling.error("factor", "a number of at least 1", factor.to_string()))
    };
    match kind.as_str() {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: factor(&mut scaling)? })),
        "llama3" => {
            let factor = factor(&mut scaling)?;
            let low_freq_factor: f64 = scaling.required("low_freq_factor")?;
            let high_freq_factor: f64 = scaling.required("high_freq_factor")?;
            if low_freq_factor <= 0.0 || high_freq_factor <= low_freq_factor {
                let got = format!("{high_freq_factor} with low_freq_factor {low_freq_factor}");
                return Err(scaling.error(
                    "high_freq_factor",
                    "more than low_freq_factor, both above 0",
                    got,
                ));
            }
            Ok(Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: positive_required(
                    &mut scaling,
                    "original_max_position_embeddings",
                )?,
            }))
        }
        other => Err(scaling.error("rope_type", "one of default, linear, llama3", format!("{other:?}"))),
    }
}

fn positive_required(fields: &mut Fields, name: &str) -> Result<usize, PrepError> {
    match fields.required(name)? {
        0 => Err(fields.error(name, "a positive integer", "0")),
        value => Ok(value),
    }
}
