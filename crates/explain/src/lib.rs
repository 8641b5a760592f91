//! From cached activations to examples that a model or a person can look at.
//!
//! An [`Example`] is one sample with the [`HeatMap`] of one feature on its base tile, the tile that shows the
//! whole image. [`HeatMap::mask`] turns it into a [`Mask`] of the image's own size, under a stated [`Cut`];
//! [`Masking`] lights and dims the image by it, for an explainer; [`HeatMap::overlay`] paints it over the image, for people. [`top_examples`] picks the samples a feature fires on most.
//!
//! [`examples`] picks by other rules, [`counterexamples`] finds samples that look alike and are not.
//!
//! [`text_examples`] cuts windows of tokens for caches of text, and [`Unembedding`] tells which tokens a feature makes likelier.
//! [`prompt`] puts either into a question, [`parse`] reads the answer, [`Record`] is what a ledger keeps of it, and
//! [`read_published`] and [`write_published`] know the files that multimodal-sae publishes.
//!
//! The crate owns no model, sends nothing anywhere and reads no image file.
//!
//! ```
//! use explain::{Cut, HeatMap};
//!
//! let heat = HeatMap::new(2, 2, vec![0.0, 1.0, 0.4, 3.0])?;
//! let mask = heat.mask(4, 4, Cut::HalfMaximum);
//! assert_eq!(mask.area(), 4); // only the lower right patch reaches half of 3.0
//! assert_eq!(heat.mask(4, 4, Cut::Positive).area(), 12);
//! # Ok::<(), explain::ExplainError>(())
//! ```

mod contrast;
mod error;
mod example;
mod heat;
mod logits;
mod masking;
pub mod parse;
mod picture;
pub mod prompt;
mod published;
mod record;
mod text;

pub use contrast::{Counterexample, counterexamples, counterexamples_by};
pub use error::ExplainError;
pub use example::{Example, count_up_to, example_in, examples, heat_map, top_examples};
pub use heat::{Cut, HeatMap, Mask};
pub use logits::Unembedding;
pub use masking::{Edges, Masking};
pub use picture::{Encoding, Fit};
pub use published::{Published, read_published, write_published};
pub use record::{Asked, FeatureKey, FeatureKeyError, Outcome, Record, Shown};
pub use text::{
    MARKS, Piece, TextExample, TextStyle, count_text_up_to, is_on_in_text, text_example, text_examples,
    text_window, write_examples,
};
