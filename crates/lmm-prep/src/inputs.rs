//! What a model is given: normalised tiles, token ids, and where in the sequence the tiles' patches lie.

use ndarray::Array4;

use crate::anyres::TileGrid;
use crate::config::Size;
use crate::layout::TokenLayout;
use crate::turns::TurnSpan;

/// One image as the vision tower takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTiles {
    /// `[n_tiles, 3, S, S]`, f32, standard layout (contiguous, channels before rows). Tile 0 is the whole image resized
    /// to the square; the others are the canvas cut up row by row.
    pub pixels: Array4<f32>,
    /// Size of the image before anything was done to it.
    pub original: Size,
    /// Where the tiles lie and what is kept of them.
    pub grid: TileGrid,
}

/// One prompt with its images, ready for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// Token ids, special tokens included, every `<image>` repeated once per image feature.
    pub input_ids: Vec<u32>,
    /// The images, in the order of their placeholders.
    pub images: Vec<ImageTiles>,
    /// Which position is what. `layout.n_tokens == input_ids.len()`.
    pub layout: TokenLayout,
    /// Where the turns of a conversation lie, in order; empty for what is no conversation.
    pub turns: Vec<TurnSpan>,
}
