//! `generation_config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::PrepError;
use crate::json::{Fields, Ids};

/// How a model folder wants text to be generated, with the defaults of transformers 4.57's `GenerationConfig`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Any of these ends generation.
    pub eos_token_id: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// How many tokens to add at most.
    pub max_new_tokens: Option<usize>,
    /// How long prompt and answer may be together, where `max_new_tokens` does not say.
    pub max_length: usize,
    /// Sample instead of taking the likeliest token.
    pub do_sample: bool,
    /// Divisor of the logits.
    pub temperature: f64,
    /// Share of probability mass that is sampled from.
    pub top_p: f64,
    /// How many tokens are sampled from; `None` or 0 means all.
    pub top_k: Option<usize>,
    /// 1 leaves repeated tokens alone.
    pub repetition_penalty: f64,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            bos_token_id: None,
            eos_token_id: Vec::new(),
            pad_token_id: None,
            max_new_tokens: None,
            max_length: 20,
            do_sample: false,
            temperature: 1.0,
            top_p: 1.0,
            top_k: Some(50),
            repetition_penalty: 1.0,
            extra: Map::new(),
        }
    }
}

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder; `None` where the folder has none.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault.
    pub fn load(folder: &Path) -> Result<Option<Self>, PrepError> {
        let Some(mut fields) = Fields::open_optional(&folder.join("generation_config.json"))? else {
            return Ok(None);
        };
        let default = Self::default();
        let eos: Option<Ids> = fields.nullable("eos_token_id", None)?;
        let mut config = Self {
            bos_token_id: fields.nullable("bos_token_id", None)?,
            eos_token_id: eos.map(|ids| ids.0).unwrap_or_default(),
            pad_token_id: fields.nullable::<i64>("pad_token_id", None)?.and_then(|id| id.try_into().ok()),
            max_new_tokens: fields.nullable("max_new_tokens", None)?,
            max_length: fields.or("max_length", default.max_length)?,
            do_sample: fields.or("do_sample", default.do_sample)?,
            temperature: fields.nullable("temperature", Some(1.0))?.unwrap_or(1.0),
            top_p: fields.nullable("top_p", Some(1.0))?.unwrap_or(1.0),
            top_k: fields.nullable("top_k", default.top_k)?,
            repetition_penalty: fields.nullable("repetition_penalty", Some(1.0))?.unwrap_or(1.0),
            extra: Map::new(),
        };
        if config.temperature.is_nan() || config.temperature < 0.0 {
            let got = config.temperature.to_string();
            return Err(fields.error("temperature", "a number of at least 0", got));
        }
        config.extra = fields.into_extra();
        Ok(Some(config))
    }
}
