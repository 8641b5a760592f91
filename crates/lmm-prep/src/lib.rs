//! Inputs of large multimodal models, equal to Hugging Face's to the bit: image tiles, tokens, chat templates, token layout.
//!
//! A [`Processor`] is one model folder in the Hub's layout. It turns a prompt and its images into [`Inputs`]: token ids with
//! every `<image>` expanded, normalised tiles, and a [`TokenLayout`] that says for each position whether it is text, a patch
//! of the base tile, a patch of the high-resolution canvas or the end of one of its rows. Of a conversation it also says
//! which tokens are which turn's ([`TurnSpan`]).
//!
//! ```
//! use lmm_prep::{ChatOptions, Message, Processor, TokenKind};
//!
//! # let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models/mistral"));
//! let processor = Processor::load(folder)?;                  // a folder with config.json, tokenizer.json, ...
//! let image = image::RgbImage::new(100, 60);                 // or decode_image(&bytes)?
//! let question = Message::image_and_text("user", "What is shown in this image?");
//! let prompt = processor.chat(&[question], ChatOptions { add_generation_prompt: true })?;
//! let inputs = processor.prepare(&prompt, &[image])?;
//!
//! let span = inputs.layout.images[0];
//! assert_eq!(inputs.images[0].pixels.shape(), [5, 3, 24, 24]); // the base tile and a canvas of 2 x 2 tiles
//! assert_eq!((span.base, span.high), ((6, 6), (8, 12)));       // patches; 4 of the canvas's 12 rows were padding
//! assert_eq!(span.n_tokens(), 6 * 6 + 8 * (12 + 1));
//! assert_eq!(inputs.layout.kind(span.start + 36), TokenKind::Tile { image: 0, row: 0, col: 0 });
//! # Ok::<(), lmm_prep::PrepError>(())
//! ```
//!
//! Everything is measured against Python transformers 4.57 and PIL 13, with fixtures beside the tests:
//!
//! * [`decode_image`]: `Image.open(file).convert("RGB")`, but for JPEG's rounding;
//! * [`resize`]: `Image.resize`, bit for bit; [`best_canvas`], [`fitted_size`], [`TileGrid`]: the anyres geometry, in
//!   integers and doubles, never in single precision;
//! * [`ImageProcessor`]: `LlavaNextImageProcessor`'s pixel values, bit for bit, and `CLIPImageProcessor`'s;
//! * [`Tokenizer`] and [`ChatTemplate`]: ids, decoded text and rendered conversations;
//! * [`LlavaNextConfig`] and its like: each file read as the Python class reads it, defaults included. Keys that nothing
//!   reads are kept in `extra`; values that are not understood are errors naming file and field, never guesses. [`Fields`] is
//!   how, for mirrors of other models' files too.
//!
//! This crate refuses libtorch, so that inputs can be prepared, cached and tested without it; and the network: a folder is
//! a local path. It reads LLaVA-NeXT with a CLIP tower and a Llama, Mistral or Qwen2 text model, CLIP itself
//! ([`ClipConfig`], [`PreprocessorConfig::load_whole`], [`Tokenizer::load_or`]), DINOv2, and
//! tokenizers of BERT.

mod anyres;
mod chat;
mod config;
mod decode;
mod error;
mod image_processor;
mod inputs;
mod json;
mod layout;
mod pixel_scale;
mod processor;
mod resample;
mod text_stream;
mod tokenizer;
mod turns;

pub use anyres::{TileGrid, best_canvas, fitted_size};
pub use chat::{ChatOptions, ChatTemplate, Content, Message, Part};
pub use config::{
    Activation, AddedToken, BertText, ClipConfig, ClipTextConfig, ClipVisionConfig, Dinov2Config,
    FeatureSelect, GenerationConfig, LlavaNextConfig, PreprocessorConfig, ProcessorConfig, RopeScaling, Size,
    TargetSize, TextConfig, TextFamily, TokenizerClass, TokenizerConfig, model_type,
};
pub use decode::{decode_image, decode_image_upright, read_image_upright};
pub use error::PrepError;
pub use image_processor::ImageProcessor;
pub use inputs::{ImageTiles, Inputs};
pub use json::{Fields, FromJson};
pub use layout::{ImageSpan, TokenKind, TokenLayout};
pub use pixel_scale::{PixelConfig, PixelScale, PixelStatistics};
pub use processor::Processor;
pub use resample::{Filter, resize};
pub use text_stream::{Said, TextStream};
pub use tokenizer::{Encoded, Tokenizer};
pub use turns::TurnSpan;
