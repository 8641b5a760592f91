//! libtorch building blocks for transformer models: strict safetensors loading, device and dtype choice, shared layers.
//!
//! * [`DeviceChoice`], [`DtypeChoice`]: what `--device` and `--dtype` say. Asking for CUDA without a usable GPU is an
//!   error, never a silent run on the CPU.
//! * [`Weights`]: the tensors of a model folder (one or many safetensors files, memory-mapped) or of a map. Every
//!   tensor a model asks for and does not find, finds in another shape, or does not ask for at all is reported by name.
//! * [`Linear`], [`Embedding`], [`Conv2d`], [`ConvTranspose2d`], [`LayerNorm`], [`RmsNorm`], [`GroupNorm`], [`Activation`], [`Rope`],
//!   [`attention`]: layers whose only state is their tensors, so that gradients flow to whatever these were made from.
//! * [`WeightPrecision`], [`QuantisedMatrix`], [`Quantisation`]: matrices in 8 bits for models that are only read, and what
//!   that costs in accuracy.
//!
//! Each layer computes in the dtype of its own weights and casts its input to it. Weights of one dtype thus give an
//! ordinary forward pass, and f32 embeddings and norms beside bf16 matrices give what PyTorch calls autocast: matrix
//! products in bf16, the residual stream in f32.
//!
//! This crate knows no model family and holds no global state. Layers panic where libtorch fails (shapes that do not
//! fit, memory running out); everything read from disk is checked before and comes back as [`NnError`].
//!
//! ```
//! use std::collections::BTreeMap;
//! use torch_nn::{Linear, Weights};
//! use torch_nn::tch::{Device, Kind, Tensor};
//!
//! let options = (Kind::Float, Device::Cpu);
//! let weights = Weights::from_tensors(BTreeMap::from([
//!     ("proj.weight".to_owned(), Tensor::ones([2, 3], options)),
//!     ("proj.bias".to_owned(), Tensor::zeros([2], options)),
//! ]));
//! let proj = Linear::load(&weights.root().sub("proj"), 3, 2, true);
//! weights.finish()?; // names whatever is missing, mis-shaped or unused
//! assert_eq!(proj.forward(&Tensor::ones([1, 3], options)).double_value(&[0, 0]), 3.0);
//! # Ok::<(), torch_nn::NnError>(())
//! ```

mod activation;
mod allocator;
mod attention;
mod conv;
mod device;
mod error;
mod linear;
mod norm;
mod quantised;
mod rope;
mod weights;

pub use activation::Activation;
pub use allocator::keep_freed_memory;
pub use attention::{AttentionMask, attention, merge_heads, split_heads};
pub use conv::{Conv2d, ConvTranspose2d, GroupNorm};
pub use device::{DeviceChoice, DtypeChoice, device_memory};
pub use error::{Mismatch, NnError};
pub use linear::{Embedding, Linear};
pub use norm::{LayerNorm, RmsNorm};
pub use quantised::{MatrixError, Quantisation, QuantisedMatrix, WeightPrecision};
pub use rope::{Rope, RopeScaling, RotaryTable};
pub use tch;
pub use weights::{LoadReport, Scope, Weights};

#[cfg(test)]
mod layer_tests;
