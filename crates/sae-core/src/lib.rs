//! TopK and BatchTopK sparse autoencoders and transcoders on a CPU: read them, run them, measure them, write them.
//!
//! A sparse autoencoder takes an activation vector of a neural network apart into a few of many latents, and puts it together again:
//!
//! ```text
//! pre = relu((x - b_dec) · W_encᵀ + b_enc)     keep the k largest, ties to the lower latent; zeros are not codes
//! x̂   = b_dec + Σ pre[latent] · W_dec[latent]
//! ```
//!
//! BatchTopK keeps what exceeds one threshold instead of the k largest. A *transcoder* predicts a module's output from the
//! module's input, and does not subtract `b_dec`. A *skip connection* adds `x · W_skipᵀ`, in either.
//!
//! Checkpoints are those of EleutherAI's sparsify and of multimodal-sae: a folder with `cfg.json` and `sae.safetensors`
//! (`encoder.weight [num_latents, d_in]`, `encoder.bias [num_latents]`, `W_dec [num_latents, d_in]`, `b_dec [d_in]`, and with a skip
//! connection `W_skip [d_in, d_in]`), in f32, f16 or bf16. BatchTopK adds `"activation": "batch_topk"` and `"threshold"` to
//! `cfg.json`, a nested dictionary (Matryoshka) `"matryoshka"`, the lengths of its prefixes. Weights are memory-mapped and converted a tile at a time, so that an autoencoder of a billion parameters opens
//! at once and takes no memory beyond the file's own pages.
//!
//! [`saelens`] reads and writes the folders of SAELens.
//!
//! [`Sae::encode`], [`Sae::decode`] and [`Sae::reconstruct`] are the short way. The [`kernels`] below them take buffers, threads, instruction set
//! and precision from the caller, select by TopK, BatchTopK or thresholds (JumpReLU), decode nested dictionaries, and give sparse
//! gradients. They run on AVX-512 (with bf16 products where the CPU has them), AVX2, NEON, or whatever there is.
//!
//! ```
//! use ndarray::array;
//! use sae_core::{FeatureId, Sae, SaeConfig, SaeTensors, WeightDtype, metrics::Reconstruction};
//!
//! // Four latents that look in the four directions of a plane; each vector keeps two.
//! let directions = vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0];
//! let tensors = SaeTensors {
//!     encoder_weight: directions.clone(),
//!     encoder_bias: vec![0.0; 4],
//!     decoder_weight: directions,
//!     decoder_bias: vec![0.0; 2],
//!     skip_weight: None,
//! };
//! let sae = Sae::from_parts(SaeConfig::new(2, 4, 2), tensors)?;
//!
//! let x = array![[3.0, -1.0], [0.0, 2.0]];
//! let codes = sae.encode(x.view())?;
//! assert_eq!(codes.row(0).latents, [0, 3]);
//! assert_eq!(codes.row(1).value(FeatureId(1)), 2.0);
//! let decoded = sae.decode(&codes);
//! assert_eq!(decoded, x);
//!
//! let mut reconstruction = Reconstruction::new();
//! reconstruction.push(x.view(), decoded.view());
//! assert_eq!(reconstruction.fvu(), Some(0.0));
//!
//! # let root = tempfile::tempdir()?;
//! # let root = root.path();
//! sae.save(&root.join("model.layers.24"), WeightDtype::F32)?;
//! for (hook, folder) in Sae::find(root)? {
//!     assert_eq!(hook.as_str(), "model.layers.24");
//!     assert_eq!(Sae::load(&folder)?.encode(x.view())?, codes);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it promises
//!
//! * Sums are f32 or wider whatever the storage; the [`kernels`] module says in which order, and holds an f64 reference.
//! * Results do not depend on the number of threads.
//! * The matrix `[tokens, latents]` never exists, and weights are never converted whole (except by [`Weights::to_f32`] and the
//!   reference kernel). Once buffers have grown to a shape, the kernels allocate nothing.
//! * A NaN or an infinity, in the input or out of the weights, is an error that names where, never a silently missing code.
//! * A damaged or hostile file is an error that names file, tensor, expected and got.
//!
//! # What it refuses
//!
//! libtorch, async, the network, a command line. Checkpoints whose numbers it would get wrong are refused by the name of the
//! field: GroupMax, and the TopK without ReLU of early 2024 (`signed: true`).

#![expect(clippy::needless_pass_by_value, reason = "array views are passed by value, as ndarray does")]

#[cfg(target_endian = "big")]
compile_error!("sae-core uses the little-endian numbers of safetensors files in place");

mod config;
mod error;
mod file;
pub mod kernels;
pub mod metrics;
mod sae;
pub mod saelens;
mod weights;

pub use config::{Activation, SaeConfig};
pub use error::SaeError;
pub use kernels::{Compute, Kernel, Par, Precision};
pub use sae::{Sae, SaeTensors};
pub use sae_types::{CodeRow, FeatureId, HookPoint, SparseCodes};
pub use weights::{WeightDtype, Weights};
