//! The TopK sparse autoencoder training step.
//!
//! ```text
//! start   W_enc uniform in ±1/sqrt(d_in); W_dec = W_enc with rows of length 1; b_enc = 0; b_dec = geometric median of a batch
//! loss    FVU [+ FVU at 4k latents / 8] [+ auxk_alpha · AuxK], each over the batch's own variance
//! step    gradients averaged over grad_acc_steps batches -> part along the decoder's rows removed -> clipped together, once
//!         -> Adam (0.9, 0.999, 1e-8) -> decoder rows back to length 1
//! lr      2e-4 / sqrt(num_latents / 2^14), linear warm-up, linear or cosine decay to 0, both over optimizer steps
//! dead    not fired for dead_feature_threshold tokens; what counts is every row of every batch
//! ```
//!
//! Gradients are written by hand and sparse: beside the encoder's forward product, which runs in chunks under a byte budget,
//! nothing of size `[tokens, num_latents]` exists. Tests hold them against autograd on the dense formulation.
//!
//! Same seed, same batches, same device and thread count: same result, to the bit on a CPU.
//!
//! This crate trains on activations it is given. Where they come from, files and flags are its callers' business.
//!
//! ```
//! use sae_trainer::{Trainer, TrainerConfig};
//! use tch::{Device, Kind, Tensor};
//!
//! let mut config = TrainerConfig::new(8, 32, 4, 20);
//! config.lr = Some(1e-2);
//! let mut trainer = Trainer::new(config, Device::Cpu)?;
//! let activations = Tensor::randn([256, 8], (Kind::Float, Device::Cpu));
//! trainer.init_bias(&activations)?;
//! let first = trainer.step(&activations)?;
//! let mut last = first;
//! for _ in 1..20 {
//!     last = trainer.step(&activations)?;
//! }
//! assert!(last.fvu < first.fvu && last.optimizer_steps == 20);
//! let sae = trainer.into_sae()?; // a sae_core::Sae, ready to be saved
//! assert_eq!(sae.k(), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adam;
mod config;
mod error;
mod loss;
mod median;
mod trainer;

pub use config::{Schedule, TrainerConfig};
pub use error::TrainerError;
pub use median::geometric_median;
pub use trainer::{StepReport, Trainer, TrainerState};
