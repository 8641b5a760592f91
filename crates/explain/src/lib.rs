//! From cached activations to examples that a model or a person can look at.
//!
//! An [`Example`] is one sample with the [`HeatMap`] of one feature on its base tile, the tile that shows the
//! whole image. [`HeatMap::mask`] turns it into a [`Mask`] of the image's own size, under a stated [`Cut`];
//! [`HeatMap::overlay`] paints it over the image. [`top_examples`] picks the samples a feature fires on most.
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

mod error;
mod example;
mod heat;

pub use error::ExplainError;
pub use example::{Example, top_examples};
pub use heat::{Cut, HeatMap, Mask};
