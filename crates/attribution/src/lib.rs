//! Which features of a sparse autoencoder a live model's answer rests on.
//!
//! A [`Question`] names a prompt, answer tokens and baseline tokens; its score is `mean logit of the answers - mean logit of the
//! baselines` at the last position. The state at a hook point is `x_t = Σ_j z[t, j] D[j] + b_dec + error_t`, and every part
//! of it has an effect on the score, positive where it supports the answer. The reconstruction error is one of
//! the parts, so that the pass is the model's own.
//!
//! | method | effect of feature j on token t | passes |
//! |---|---|---|
//! | [`one_pass`] | `z[t, j] · <D[j], g_t>`, `g` the gradient at `x` | none: all features of all hook points |
//! | [`integrated_each`] | the same with `g` the mean of the gradients at N points on the way from `x` without the feature to `x` | N - 1 of both per feature |
//! | [`integrated`] | the same on the way from `x` without any feature, `x - Σ z D`, to `x` | N - 1 of both per hook point |
//! | [`Ablation`] | `score - score without it`, on all tokens or on one | 1 forward per feature, or per code |
//! | [`msae`] | multimodal-sae's: masked before TopK, the error dropped | 1 of both per feature |
//!
//! Passes beyond one forward and one backward, which [`Clean`] makes and all methods share.
//!
//! [`Ablation::check`] says how far the fast ones can be trusted: rank correlation and slope against what is exact.
//!
//! Passes begin where the first hook point is, and later ones where theirs is: tower, projector and earlier layers run once
//! per question. Gradients are taken with respect to states alone; a model with matrices in 8 bits is run backwards a layer at
//! a time ([`lmm_hooks::LlavaNext::gradients`]).
//!
//! The methods are written over [`Downstream`], a score that depends on states; [`Asked`] is a model's. This crate knows no
//! files and no flags.

mod agreement;
mod clean;
mod downstream;
mod effects;
mod error;
mod exact;
mod gradient;
mod msae;
mod parts;
mod question;

pub use agreement::Agreement;
pub use clean::Clean;
pub use downstream::{Downstream, Observed, Site};
pub use effects::{Effect, Effects, Pool, Tokens};
pub use error::AttributionError;
pub use exact::{Ablation, Check};
pub use gradient::{integrated, integrated_each, one_pass};
pub use msae::msae;
pub use question::{Asked, Combine, Place, Question};
