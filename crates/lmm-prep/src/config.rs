//! Mirrors of model folders' JSON files; here `config.json` of LLaVA-NeXT, in the submodules the others.

mod clip;
mod dinov2;
mod generation;
mod preprocessor;
mod processor;
mod text;
mod tokenizer;
mod vision;

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::PrepError;
use crate::json::Fields;

pub use clip::{ClipConfig, ClipTextConfig};
pub use dinov2::Dinov2Config;
pub use generation::GenerationConfig;
pub use preprocessor::{PreprocessorConfig, TargetSize};
pub use processor::ProcessorConfig;
pub use text::{RopeScaling, TextConfig, TextFamily};
pub use tokenizer::{AddedToken, BertText, TokenizerClass, TokenizerConfig};
pub use vision::ClipVisionConfig;

/// The `model_type` that `config.json` of a model folder names: which of the mirrors reads it.
///
/// # Errors
/// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] where there is none.
pub fn model_type(folder: &Path) -> Result<String, PrepError> {
    Fields::open(&folder.join("config.json"))?.required("model_type")
}

/// Height and width of an image or a canvas, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    /// Rows of pixels.
    pub height: u32,
    /// Columns of pixels.
    pub width: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}x{}", self.height, self.width)
    }
}

/// Nonlinearities the supported models use, by what they compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `x * Phi(x)` with the error function: `gelu`, `gelu_python`.
    Gelu,
    /// The tanh approximation of gelu: `gelu_new`, `gelu_pytorch_tanh`, `gelu_python_tanh`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`: `relu`.
    Relu,
}

impl Activation {
    const KNOWN: &'static str = "one of silu, swish, gelu, gelu_python, gelu_new, gelu_pytorch_tanh, \
                                 gelu_python_tanh, quick_gelu, relu";

    /// The nonlinearity the field `name` names, or `default` where the key is absent.
    ///
    /// # Errors
    /// [`PrepError::Field`] for a name that is not known.
    pub fn take(fields: &mut Fields, name: &str, default: Self) -> Result<Self, PrepError> {
        let Some(value) = fields.value(name) else { return Ok(default) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Self::Silu),
            Some("gelu" | "gelu_python") => Ok(Self::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh") => Ok(Self::GeluTanh),
            Some("quick_gelu") => Ok(Self::QuickGelu),
            Some("relu") => Ok(Self::Relu),
            _ => Err(fields.error(name, Self::KNOWN, value.to_string())),
        }
    }
}

/// Which of the vision tower's tokens become image features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureSelect {
    /// Patches only; the class token is dropped.
    Default,
    /// Class token and patches. transformers cannot pack these for CLIP, nor does this crate.
    Full,
}

impl FeatureSelect {
    pub(crate) fn parse(fields: &Fields, name: &str, text: &str) -> Result<Self, PrepError> {
        match text {
            "default" => Ok(Self::Default),
            "full" => Ok(Self::Full),
            other => Err(fields.error(name, "\"default\" or \"full\"", format!("{other:?}"))),
        }
    }
}

/// `config.json` of a LLaVA-NeXT model, with the defaults of transformers 4.57's `LlavaNextConfig`.
///
/// Public fields so that models can be described in code: start from [`LlavaNextConfig::new`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LlavaNextConfig {
    /// The language model.
    pub text_config: TextConfig,
    /// The vision tower.
    pub vision_config: ClipVisionConfig,
    /// Token id that stands for image features; `image_token_id` is read as the same.
    pub image_token_index: u32,
    /// The canvases tiles are cut from, in the file's order (the order decides ties).
    pub image_grid_pinpoints: Vec<Size>,
    /// Hidden state of the tower that is read, counted as Python indexes `hidden_states` (0 = embeddings, -2 = before the last layer).
    pub vision_feature_layer: i64,
    /// Which tokens of that hidden state are kept.
    pub vision_feature_select_strategy: FeatureSelect,
    /// Activation between the projector's two linear layers.
    pub projector_hidden_act: Activation,
    /// Whether the projector's linear layers have a bias.
    pub multimodal_projector_bias: bool,
    /// As written at the top level. transformers 4.57 ties by `text_config.tie_word_embeddings`, not by this.
    pub tie_word_embeddings: bool,
    /// Keys of the file that nothing here reads.
    pub extra: Map<String, Value>,
}

/// LLaVA-1.6's five canvases, in the order of the Python class.
pub(crate) const DEFAULT_PINPOINTS: [(u32, u32); 5] =
    [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];

pub(crate) fn default_pinpoints() -> Vec<Size> {
    DEFAULT_PINPOINTS.iter().map(|&(height, width)| Size { height, width }).collect()
}

impl LlavaNextConfig {
    /// The Python class's defaults around the given parts.
    pub fn new(text_config: TextConfig, vision_config: ClipVisionConfig) -> Self {
        Self {
            text_config,
            vision_config,
            image_token_index: 32_000,
            image_grid_pinpoints: default_pinpoints(),
            vision_feature_layer: -2,
            vision_feature_select_strategy: FeatureSelect::Default,
            projector_hidden_act: Activation::Gelu,
            multimodal_projector_bias: true,
            tie_word_embeddings: false,
            extra: Map::new(),
        }
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
    /// As [`LlavaNextConfig::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("config.json"))?)
    }

    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.required("model_type")?;
        if model_type != "llava_next" {
            return Err(fields.error("model_type", "\"llava_next\"", format!("{model_type:?}")));
        }
        let text_config = match fields.nullable_object("text_config")? {
            Some(text) => TextConfig::from_fields(text)?,
            None => TextConfig::new(TextFamily::Llama),
        };
        let vision_config = match fields.nullable_object("vision_config")? {
            Some(vision) => ClipVisionConfig::from_fields(vision)?,
            None => ClipVisionConfig::llava_next(),
        };
        let mut config = Self::new(text_config, vision_config);
        config.image_token_index = fields.or("image_token_index", config.image_token_index)?;
        config.image_token_index = fields.or("image_token_id", config.image_token_index)?;
        if let Some(pinpoints) = take_pinpoints(&mut fields)? {
            config.image_grid_pinpoints = pinpoints;
        }
        let side = config.vision_config.image_size as u32;
        for (index, size) in config.image_grid_pinpoints.iter().enumerate() {
            if !size.height.is_multiple_of(side) || !size.width.is_multiple_of(side) {
                let expected = format!("multiples of vision_config.image_size = {side}");
                return Err(fields.error(
                    &format!("image_grid_pinpoints[{index}]"),
                    expected,
                    size.to_string(),
                ));
            }
        }
        config.vision_feature_layer = match fields.value("vision_feature_layer") {
            None => config.vision_feature_layer,
            Some(value) => value.as_i64().ok_or_else(|| {
                let expected = "one integer (lists of layers are not supported)";
                fields.error("vision_feature_layer", expected, value.to_string())
            })?,
        };
        let states = config.vision_config.num_hidden_layers as i64 + 1;
        if !(-states..states).contains(&config.vision_feature_layer) {
            let expected = format!("{}..={} (the tower has {} layers)", -states, states - 1, states - 1);
            return Err(fields.error(
                "vision_feature_layer",
                expected,
                config.vision_feature_layer.to_string(),
            ));
        }
        let strategy: String = fields.or("vision_feature_select_strategy", "default".into())?;
        config.vision_feature_select_strategy =
            FeatureSelect::parse(&fields, "vision_feature_select_strategy", &strategy)?;
        config.projector_hidden_act =
            Activation::take(&mut fields, "projector_hidden_act", config.projector_hidden_act)?;
        config.multimodal_projector_bias = fields.or("multimodal_projector_bias", true)?;
        config.tie_word_embeddings = fields.or("tie_word_embeddings", false)?;
        config.extra = fields.into_extra();
        Ok(config)
    }
}

/// `image_grid_pinpoints` of `config.json` or `preprocessor_config.json`; absent and `null` are `None`.
pub(crate) fn take_pinpoints(fields: &mut Fields) -> Result<Option<Vec<Size>>, PrepError> {
    const NAME: &str = "image_grid_pinpoints";
    let Some(pairs) = fields.nullable::<Vec<Vec<u32>>>(NAME, None)? else { return Ok(None) };
    let expected = "a non-empty list of [height, width] pairs, each side 1 to 16384";
    let side = 1..=16_384;
    let sizes: Option<Vec<Size>> = pairs
        .iter()
        .map(|pair| match pair[..] {
            [height, width] if side.contains(&height) && side.contains(&width) => {
                Some(Size { height, width })
            }
            _ => None,
        })
        .collect();
    match sizes {
        Some(sizes) if !sizes.is_empty() => Ok(Some(sizes)),
        _ => Err(fields.error(NAME, expected, format!("{pairs:?}"))),
    }
}
