//! `processor_config.json`: how many tokens an image stands for, and what stands for it in a prompt.

use std::path::Path;

use serde_json::{Map, Value};

use super::FeatureSelect;
use crate::error::PrepError;
use crate::json::Fields;

/// Mirror of the arguments transformers 4.57's `LlavaNextProcessor` is saved with.
///
/// Model folders from before that file existed have none: then, and for keys the file leaves out, `config.json` says
/// what follows. (transformers itself fails on such folders.)
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ProcessorConfig {
    /// Side of a patch, in pixels.
    pub patch_size: Option<usize>,
    /// Which of the tower's tokens become image features.
    pub vision_feature_select_strategy: Option<FeatureSelect>,
    /// Tokens the tower adds to the patches (1: the class token).
    pub num_additional_image_tokens: Option<usize>,
    /// What stands for an image in a prompt.
    pub image_token: String,
    /// The chat template, where it is kept here.
    pub chat_template: Option<String>,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for ProcessorConfig {
    fn default() -> Self {
        Self {
            patch_size: None,
            vision_feature_select_strategy: None,
            num_additional_image_tokens: None,
            image_token: "<image>".into(),
            chat_template: None,
            extra: Map::new(),
        }
    }
}

impl ProcessorConfig {
    /// Reads `processor_config.json` of a model folder, or gives the defaults where there is none.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        let Some(mut fields) = Fields::open_optional(&folder.join("processor_config.json"))? else {
            return Ok(Self::default());
        };
        let class = fields.nullable::<String>("processor_class", None)?;
        if let Some(class) = class.filter(|class| class != "LlavaNextProcessor") {
            return Err(fields.error("processor_class", "\"LlavaNextProcessor\"", format!("{class:?}")));
        }
        let strategy = match fields.nullable::<String>("vision_feature_select_strategy", None)? {
            Some(text) => Some(FeatureSelect::parse(&fields, "vision_feature_select_strategy", &text)?),
            None => None,
        };
        Ok(Self {
            patch_size: fields.nullable("patch_size", None)?,
            vision_feature_select_strategy: strategy,
            num_additional_image_tokens: fields.nullable("num_additional_image_tokens", None)?,
            image_token: fields.or("image_token", "<image>".into())?,
            chat_template: fields.nullable("chat_template", None)?,
            extra: fields.into_extra(),
        })
    }
}
