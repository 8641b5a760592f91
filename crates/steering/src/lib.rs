//! A large multimodal model steered by the features of sparse autoencoders, and what that moves.
//!
//! A [`Plan`] says which features change how ([`Mode`]), on which tokens ([`Where`], [`When`]), before or after the autoencoder
//! chooses what it keeps ([`Stage`]), and whether what it does not reconstruct stays ([`ErrorTerm`]). A [`Steerer`] holds the
//! autoencoders on the model's device and makes [`Steering`] of plans, one for each row of a batch, whose hooks go into a forward
//! pass or a generation of `lmm-hooks`. [`Effects`] measures what that moves.
//!
//! With the error kept and changes after TopK, the default, the hidden state `x` becomes `x + Σ (z' - z) d` over the changed
//! features: activations `z`, decoder rows `d`. Nothing is decoded, a plan that changes nothing gives `x` back bit for bit, and
//! nothing is encoded on tokens where no feature concerned has a positive pre-activation, which one row of the encoder tells.
//!
//! This crate knows no flag, no file but an autoencoder's, and asks no judge.
//!
//! ```
//! use steering::{Change, FeatureId, HookPoint, Mode, Plan, Where};
//!
//! let clamp = |value| Change { mode: Mode::Clamp, value };
//! let plan = Plan { place: Where::Image, ..Plan::default() }
//!     .with(HookPoint::layer(2), FeatureId(17), clamp(20.0))
//!     .with(HookPoint::layer(2), FeatureId(3), Change { mode: Mode::Ablate, value: 0.0 });
//! assert_eq!(plan.all().count(), 2);
//! ```
//!
//! A model is then steered so:
//!
//! ```no_run
//! # use lmm_hooks::{Batch, GenerationOptions, LlavaNext};
//! # use steering::{Plan, Steerer};
//! # fn example(model: &LlavaNext, batch: &Batch, steerer: &Steerer, plans: &[Plan]) -> Result<(), Box<dyn std::error::Error>> {
//! let steering = steerer.steering(plans)?; // as many as the batch has rows
//! let tokens = model.generate(batch, &GenerationOptions::greedy(64, vec![2]), &mut steering.hooks())?;
//! # Ok(())
//! # }
//! ```

mod effects;
mod error;
mod plan;
mod slots;
mod steerer;
mod steering;
mod tokens;

pub use effects::{Effect, Effects, divergences, perplexity, repetition};
pub use error::SteeringError;
pub use plan::{Change, ErrorTerm, Mode, NameError, Plan, Stage, Target, TargetError, When, Where};
pub use sae_types::{FeatureId, HookPoint};
pub use steerer::{Steerable, Steerer};
pub use steering::Steering;
