//! A sparse autoencoder or transcoder on a libtorch device: encode, decode, sparse gradients.
//!
//! [`TorchSae`] holds the parameters of a [`sae_core::Sae`] on a device, in any float dtype. Encoding needs dense pre-activations
//! `[tokens, num_latents]` for libtorch's `topk`, and for BatchTopK's threshold; it makes them for as many tokens at a time as a
//! byte budget allows. [`Encoder`] is the way to codes alone: on a CPU it takes `sae-core`'s kernels, which never make them.
//! Decoding and [`accumulate_gradients`] never do: codes are embedding bags over the decoder's rows.
//!
//! On a CPU in f32 the codes equal `sae-core`'s outside ties. libtorch does not promise the same bits for
//! different numbers of threads.
//!
//! This crate knows no optimiser, and no files beyond `sae-core`'s.
//!
//! ```
//! use sae_core::{Sae, SaeConfig, SaeTensors};
//! use sae_torch::TorchSae;
//! use tch::{Device, Kind, Tensor};
//!
//! let directions = vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0];
//! let tensors = SaeTensors {
//!     encoder_weight: directions.clone(),
//!     encoder_bias: vec![0.0; 4],
//!     decoder_weight: directions,
//!     decoder_bias: vec![0.0; 2],
//!     skip_weight: None,
//! };
//! let sae = Sae::from_parts(SaeConfig::new(2, 4, 1), tensors)?;
//! let sae = TorchSae::from_sae(&sae, Device::Cpu, Kind::Float)?;
//!
//! let x = Tensor::from_slice(&[3.0_f32, -1.0, 0.0, 2.0]).reshape([2, 2]);
//! let codes = sae.encode(&x);
//! assert_eq!(codes.to_codes(4)?.row(0).latents, [0]);
//! assert_eq!(sae.decode(&codes), Tensor::from_slice(&[3.0_f32, 0.0, 0.0, 2.0]).reshape([2, 2]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bags;
mod encoder;
mod error;
mod gradients;
mod kept;
mod sae;
mod topk;

pub use bags::Bags;
pub use encoder::Encoder;
pub use error::TorchSaeError;
pub use gradients::accumulate_gradients;
pub use sae::{Parameters, TorchSae};
pub use topk::TopK;
