//! What the parity tests share: fixtures read from `fixtures`, and comparison by stage.
//!
//! A test computes the stages of one case in order and hands each to [`Stages`]; at the end the first stage that left the
//! [`Tolerance`] is named, with its worst index and both values. Nothing here knows libtorch.

mod fixture;
mod stages;
mod tensors;

pub use fixture::{Batch, Case, Chat, Fixture};
pub use stages::{Stages, Tolerance, relative_error};
pub use tensors::{Array, Tensors};
