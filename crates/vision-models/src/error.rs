//! [`VisionError`]: why a model could not be opened, or an image or a text not be looked at.

use std::path::PathBuf;

use lmm_prep::PrepError;
use torch_nn::NnError;

/// Everything this crate reports about data it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisionError {
    /// A configuration or a tokenizer cannot be read or understood, or an image has no pixels.
    #[error(transparent)]
    Prep(#[from] PrepError),
    /// The weights cannot be read, or are not those of the configuration.
    #[error(transparent)]
    Weights(#[from] NnError),
    /// A folder whose files contradict one another, or hold a model that is not known here.
    #[error("{}: {field}: expected {expected}, got {got}", folder.display())]
    Folder {
        /// The model folder.
        folder: PathBuf,
        /// The file and field at fault.
        field: &'static str,
        /// What it may hold.
        expected: String,
        /// What it holds.
        got: String,
    },
    /// An image that cannot be brought to the size the model wants.
    #[error("an image of {height} x {width} pixels (height x width): {what}")]
    ImageSize {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
        /// What becomes of it.
        what: String,
    },
    /// A model that computed what is no number. In f16 large scores overflow; otherwise its weights are damaged.
    #[error("{what} are not finite: f16 overflows where bf16 and f32 do not, or the weights are damaged")]
    NotFinite {
        /// What it computed.
        what: &'static str,
    },
    /// A text of more tokens than the model reads.
    #[error("a text of {tokens} tokens, of which the model reads {limit}: {text:?}")]
    TextLength {
        /// The text.
        text: String,
        /// Its tokens, special ones included.
        tokens: usize,
        /// As many as there may be.
        limit: usize,
    },
}
