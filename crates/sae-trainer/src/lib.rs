//! The training step of sparse autoencoders and transcoders.
//!
//! ```text
//! start   W_enc uniform in ±1/sqrt(d_in); W_dec = W_enc with rows of length 1; b_enc = 0; b_dec = geometric median of a batch
//!         transcoder: W_dec = 0; b_enc = -W_enc mean(x); b_dec of its targets; W_skip = 0 in any case
//! codes   the k largest of each row (TopK), or the n·k largest of n rows (BatchTopK)
//! loss    FVU, or its mean over nested dictionaries (Matryoshka) [+ FVU at 4k latents / 8] [+ auxk_alpha · AuxK],
//!         rows weighted, each over the batch's own variance
//! step    gradients averaged over grad_acc_steps batches -> part along unit decoder rows removed -> clipped together, once
//!         -> Adam, 8-bit Adam or Signum -> decoder rows back to length 1
//! lr      2e-4 / sqrt(num_latents / 2^14), linear warm-up, linear or cosine decay to 0, both over optimizer steps
//! dead    not fired for dead_feature_threshold tokens; what counts is every row of every batch
//! ```
//!
//! The objective is written once, over two engines. On the CPU `sae-core`'s kernels encode, decode and differentiate, and no
//! matrix `[tokens, num_latents]` exists; on CUDA libtorch does, where only the encoder's forward product is dense, in
//! chunks under a byte budget. Gradients are written by hand and sparse in tokens. Tests hold them against autograd on the
//! dense formulation, and the engines against each other.
//!
//! Same seed, same batches, same device and engine: same result, on the CPU to the bit, for any number of threads.
//! [`Trainer::save_state`] and [`Trainer::load_state`] go on with the same bits at any call.
//!
//! This crate trains on activations it is given. Where they come from, files and flags are its callers' business.
//!
//! ```
//! use sae_trainer::{Rows, Trainer, TrainerConfig};
//! use tch::{Device, Kind, Tensor};
//!
//! let mut config = TrainerConfig::new(8, 32, 4, 20);
//! config.lr = Some(1e-2);
//! let mut trainer = Trainer::new(config, Device::Cpu)?;
//! let activations = Tensor::randn([256, 8], (Kind::Float, Device::Cpu));
//! let rows = Rows::new(&activations);
//! trainer.init(&rows)?;
//! let first = trainer.step(&rows)?;
//! let mut last = first;
//! for _ in 1..20 {
//!     last = trainer.step(&rows)?;
//! }
//! assert!(last.fvu < first.fvu && last.optimizer_steps == 20);
//! let sae = trainer.to_sae()?; // a sae_core::Sae, ready to be saved
//! assert_eq!(sae.k(), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into a function compiled for wider registers, misses them"
)]

mod backend;
mod config;
mod distributed;
mod error;
mod init;
mod median;
mod memory;
mod normalisation;
mod objective;
mod optimizer;
mod progress;
mod rows;
mod save;
mod state;
mod trainer;
mod wide;

pub use config::{BiasInit, Optimizer, Schedule, Selection, TrainerConfig};
pub use distributed::{Distribution, DistributionKind, Exchange, StepTraffic};
pub use error::TrainerError;
pub use median::geometric_median;
pub use memory::MemoryEstimate;
pub use rows::{Rows, high_norm_rows};
pub use trainer::{Engine, StepReport, Trainer};
