//! How well sparse autoencoders and transcoders stand in for a live model's activations.
//!
//! An [`Evaluator`] is given prepared batches one after another and streams, for any number of [`Subject`]s (an autoencoder at
//! its hook point) at once:
//!
//! **Reconstruction.** With `y` what the module gives at a counted token and `ŷ` what the autoencoder gives for it
//! (`ŷ = x̂` and `y = x` unless it is a transcoder), over all counted tokens of all batches, in f64:
//!
//! ```text
//! FVU        = Σ ||y - ŷ||² / Σ ||y - mean(y)||²      also of image tokens alone and of text tokens alone, each with its own mean
//! cosine     = mean of <y, ŷ> / (||y|| ||ŷ||)         norm ratio = mean of ||ŷ|| / ||y||
//! L0         = codes per token                        also of image tokens alone and of text tokens alone
//! ```
//!
//! and of latents, the share that never fires (dead), the share that fires on more than a tenth of the tokens (dense), and
//! how many fire how often.
//!
//! **The model with it spliced in.** Predicted are the tokens of the assistant's turns, which models of chats are trained on; in
//! a sample without turns all text tokens. There, with `p` the model's distribution of the next token `t`,
//!
//! ```text
//! CE(model)    = mean of -ln p(t)                     original; with ŷ for y at the counted tokens; with 0 for y there
//! CE recovered = (CE_zero - CE_spliced) / (CE_zero - CE_original)
//! KL           = mean of Σ_t p(t) ln(p(t) / q(t))     p of the original model, q of the spliced one
//! ```
//!
//! CE recovered is SAEBench's `ce_loss_score` (arXiv 2503.09532), with zeros for its ablation: 1 where nothing is lost, 0 where
//! the autoencoder is worth no more than zeros. One pass of the original model serves all
//! subjects; each of them costs a second, and each hook point one with zeros. Logits are made only where a position predicts,
//! a part of them at a time.
//!
//! **The dictionary.** The share of latents whose decoder row has a cosine above 0.9 with another's, and the mean over latents of
//! the largest such cosine ([`sae_core::metrics::DecoderCosines`]).
//!
//! What does not exist (the FVU of text tokens where there are none) is `None`, and `null` in JSON, never NaN. Which tokens
//! count is the caller's choice. On the CPU an autoencoder runs by `sae-core`'s kernels, on CUDA as a `TorchSae` in f32. This
//! crate knows no file, flag or data set.
//!
//! ```no_run
//! use lmm_hooks::{Batch, LlavaNext};
//! use lmm_prep::Inputs;
//! use sae_core::Sae;
//! use sae_eval::{Evaluator, EvalError, Subject, Table};
//!
//! fn table(model: &LlavaNext, batches: &[(Batch, Vec<Inputs>)], sae: &Sae) -> Result<String, EvalError> {
//!     let subject = Subject::autoencoder("layer 24", "model.layers.24".parse().expect("a hook point"), sae);
//!     let mut evaluator = Evaluator::new(model, vec![subject])?;
//!     for (batch, inputs) in batches {
//!         let inputs: Vec<_> = inputs.iter().collect();
//!         // All tokens but the first, BOS.
//!         let counted: Vec<Vec<usize>> = inputs.iter().map(|inputs| (1..inputs.input_ids.len()).collect()).collect();
//!         evaluator.push(model, batch, &inputs, &counted)?;
//!     }
//!     Ok(Table(&evaluator.finish()).to_string())
//! }
//! ```

mod error;
mod evaluation;
mod evaluator;
mod head;
mod places;
mod subject;

pub use error::EvalError;
pub use evaluation::{Evaluation, FrequencyHistogram, Table};
pub use evaluator::Evaluator;
pub use subject::Subject;
