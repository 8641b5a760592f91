//! Inputs of large multimodal models, equal to Hugging Face's to the bit: image tiles, tokens, chat templates, token layout.

mod anyres;
mod chat;
mod config;
mod decode;
mod error;
mod image_processor;
mod inputs;
mod json;
mod layout;
mod processor;
mod resample;
mod tokenizer;

pub use anyres::{TileGrid, best_canvas, fitted_size};
pub use chat::{ChatOptions, ChatTemplate, Content, Message, Part};
pub use config::{
    Activation, AddedToken, ClipVisionConfig, FeatureSelect, GenerationConfig, LlavaNextConfig,
    PreprocessorConfig, ProcessorConfig, RopeScaling, Size, TargetSize, TextConfig, TextFamily,
    TokenizerClass, TokenizerConfig,
};
pub use decode::{decode_image, decode_image_upright};
pub use error::PrepError;
pub use image_processor::ImageProcessor;
pub use inputs::{ImageTiles, Inputs};
pub use layout::{ImageSpan, TokenKind, TokenLayout};
pub use processor::Processor;
pub use resample::{Filter, resize};
pub use tokenizer::Tokenizer;
