//! The words every lmm-sae crate shares, and nothing else.
//!
//! * [`HookPoint`]: the dotted path of a module whose output is read or replaced, `model.layers.24`.
//! * [`FeatureId`]: one latent of a sparse autoencoder.
//! * [`SampleId`] and [`TokenIndex`]: one record of a data set, one position of its token sequence.
//! * [`SparseCodes`]: what a sparse autoencoder makes of a batch of vectors, a few latents per row.
//! * [`Filters`]: which features of which hook points a run is about, as in msae's filters file.
//!
//! This crate refuses every dependency beyond `serde` and `thiserror`, so that any crate can afford it.
//!
//! ```
//! use sae_types::{FeatureId, HookPoint, SparseCodes};
//!
//! let hook: HookPoint = "model.layers.24".parse()?;
//! assert_eq!(hook.file_stem(), "model_layers_24");
//!
//! let mut codes = SparseCodes::new(8);
//! codes.push_row([(FeatureId(2), 0.5), (FeatureId(7), 1.25)])?;
//! codes.push_row([])?;
//! assert_eq!(codes.row(0).values, &[0.5, 1.25]);
//! assert!(codes.row(1).is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod codes;
mod filters;
mod hook;
mod index;

pub use codes::{CodeRow, CodesError, SparseCodes};
pub use filters::{FilterError, Filters};
pub use hook::{HookPoint, HookPointError};
pub use index::{FeatureId, SampleId, TokenIndex};
