//! [`Backend`]: what the objective and the trainer ask of an engine.

mod cpu;
mod entries;
mod linear;
pub(crate) mod split;
mod torch;

use std::ops::Range;

use collectives::{Collective, CollectiveError};
use sae_core::{SaeTensors, SparseCodes};
use tch::{Device, Tensor};

pub(crate) use self::cpu::Cpu;
pub(crate) use self::linear::dot;
pub(crate) use self::torch::Torch;
use crate::TrainerError;
use crate::config::Selection;
use crate::objective::Chain;
use crate::state::{Array, ArrayMut};

/// What the k codes of some rows say about their latents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fired {
    /// How many are on.
    pub(crate) codes: usize,
    /// The smallest activation.
    pub(crate) smallest: Option<f32>,
}

/// The numbers of an optimizer step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) lr: f64,
    /// Which optimizer step this is, from 1.
    pub(crate) step: u64,
    /// What gradients are multiplied by, to clip them.
    pub(crate) factor: f64,
}

/// Parameters, gradients, moments and counters of one autoencoder, and what is computed with them.
///
/// Gradients are summed until [`Backend::clear_gradients`]. That of the decoder's bias has two parts: the sum of the
/// gradients of the reconstructions, which [`Backend::accumulate_start`] adds, and, where the encoder subtracts the bias,
/// `-W_encᵀ` times that of the encoder's bias, which [`Backend::complete_bias_gradient`] adds once.
pub(crate) trait Backend: Sized {
    /// A matrix `[n, d_in]`, or weights `[n, 1]`. Clones share memory.
    type Rows: Clone;
    /// Codes of some rows.
    type Codes;

    fn device(&self) -> Device;
    /// How many latents it has.
    fn latents(&self) -> usize;
    /// Takes over f32 numbers on [`Backend::device`].
    fn rows(&self, tensor: &Tensor) -> Self::Rows;
    fn part(rows: &Self::Rows, range: Range<usize>) -> Self::Rows;
    /// How many rows there are.
    fn len(rows: &Self::Rows) -> usize;
    /// Rows `[n, d_in]` of zeros.
    fn zeros(&self, n: usize) -> Self::Rows;
    /// `Σ w y` of each column, and `Σ w`.
    fn column_sums(&self, y: &Self::Rows, weights: Option<&Self::Rows>) -> (Vec<f64>, f64);
    /// `Σ w ||y - mean||²`.
    fn squares_around(&self, y: &Self::Rows, mean: &[f64], weights: Option<&Self::Rows>) -> f64;

    /// Encodes into the disjoint sets of `chain`.
    ///
    /// # Errors
    /// A pre-activation that is not finite.
    fn encode(&mut self, x: &Self::Rows, chain: &Chain) -> Result<Vec<Self::Codes>, f64>;
    /// Encodes into the `count` largest activations among the dead latents.
    ///
    /// # Errors
    /// A pre-activation that is not finite.
    fn encode_dead(&mut self, x: &Self::Rows, count: usize) -> Result<Self::Codes, f64>;
    /// The `count` largest of each row, or with BatchTopK the `n · count` largest of all, in plain memory.
    ///
    /// # Errors
    /// A pre-activation that is not finite.
    fn find(&mut self, x: &Self::Rows, selection: Selection, count: usize) -> Result<SparseCodes, f64>;
    /// The `count` largest of each row among the dead latents, in plain memory.
    ///
    /// # Errors
    /// A pre-activation that is not finite.
    fn find_dead(&mut self, x: &Self::Rows, count: usize) -> Result<SparseCodes, f64>;
    /// Takes over codes from plain memory.
    fn adopt(&self, codes: SparseCodes) -> Self::Codes;
    /// A reconstruction without codes: `b_dec`, and `x · W_skipᵀ` where there is one.
    fn start(&self, x: &Self::Rows) -> Self::Rows;
    /// Adds `Σ z W_dec` to `to`.
    fn add_decoded(&mut self, codes: &Self::Codes, to: &mut Self::Rows);
    /// `decoded - y` and `Σ w ||decoded - y||²`.
    fn error(&self, decoded: &Self::Rows, y: &Self::Rows, weights: Option<&Self::Rows>) -> (Self::Rows, f64);
    /// `Σ w ||rows||²`.
    fn squares(&self, rows: &Self::Rows, weights: Option<&Self::Rows>) -> f64;
    /// `factor · w · rows`.
    fn scaled(&self, rows: &Self::Rows, weights: Option<&Self::Rows>, factor: f64) -> Self::Rows;
    fn add(&self, to: &mut Self::Rows, rows: &Self::Rows);

    /// Adds the gradients through `sets`, each with the gradient `[n, d_in]` of the reconstruction it is part of.
    fn accumulate(&mut self, x: &Self::Rows, sets: &[Self::Codes], upstream: &[Self::Rows]);
    /// Adds the gradients through what [`Backend::start`] gives.
    fn accumulate_start(&mut self, x: &Self::Rows, upstream: &Self::Rows);

    /// Notes which latents the codes of `sets` name, until [`Backend::count_fired`].
    fn note_fired(&mut self, sets: &[Self::Codes]) -> Fired;
    /// Adds `rows` to the tokens since each latent fired, except for those noted, which start again from 0.
    fn count_fired(&mut self, rows: usize);
    /// Per latent, 1 if it was noted.
    fn fired(&self) -> Vec<u8>;
    /// Notes the latents that have 1 in `fired`, and no others.
    fn set_fired(&mut self, fired: &[u8]);
    /// Forgets what was noted.
    fn forget_fired(&mut self);
    /// How many latents have not fired for more than the configured number of tokens.
    fn dead(&self) -> usize;

    /// Whether the encoder subtracts the decoder's bias.
    fn subtracts_bias(&self) -> bool;
    /// Adds to the gradient of the decoder's bias what passes through the encoder, if it subtracts the bias. Without `direct`, what stood
    /// there before goes.
    fn complete_bias_gradient(&mut self, direct: bool);
    /// Takes from the gradients of unit decoder rows the part along the row, and returns the sum of squares of the gradients of latents, and of
    /// all others.
    fn gradient_squares(&mut self) -> [f64; 2];
    /// Changes the parameters by the finished gradients, and sets decoder rows back to length 1.
    fn update(&mut self, rates: Rates);
    fn clear_gradients(&mut self);

    /// Sums rows over all ranks.
    ///
    /// # Errors
    /// A rank that does not take part; so of the following.
    fn all_reduce(&self, team: &dyn Collective, rows: &mut Self::Rows) -> Result<(), CollectiveError>;
    /// Sums gradients over all ranks, of the latents that have any on some rank.
    fn all_reduce_gradients(&mut self, team: &dyn Collective) -> Result<(), CollectiveError>;
    /// Sums the gradient of the decoder's bias over all ranks.
    fn all_reduce_bias_gradient(&mut self, team: &dyn Collective) -> Result<(), CollectiveError>;

    /// Everything that changes in training, by name and shape, without the gradients.
    fn arrays(&self) -> Vec<(String, Vec<usize>, Array<'_>)>;
    /// As [`Backend::arrays`], in the same order.
    fn arrays_mut(&mut self) -> Vec<(String, Vec<usize>, ArrayMut<'_>)>;
    /// The gradients so far, of the latents that have any.
    ///
    /// # Errors
    /// When the device fails.
    fn gradients(&self) -> Result<SparseGradients, TrainerError>;
    /// Takes back what [`Backend::gradients`] gave.
    fn set_gradients(&mut self, gradients: &SparseGradients);

    /// A copy of the parameters.
    ///
    /// # Errors
    /// When the device fails.
    fn tensors(&self) -> Result<SaeTensors, TrainerError>;
    fn set_tensors(&mut self, tensors: &SaeTensors);
}

/// Sums of gradients of the latents that have any, as they are saved.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SparseGradients {
    /// Ascending.
    pub(crate) latents: Vec<i64>,
    /// `[latents, d_in]`.
    pub(crate) encoder_weight: Vec<f32>,
    /// `[latents]`.
    pub(crate) encoder_bias: Vec<f32>,
    /// `[latents, d_in]`.
    pub(crate) decoder_weight: Vec<f32>,
    /// `[d_in]`, without the part that passes through the encoder.
    pub(crate) decoder_bias: Vec<f32>,
    /// `[d_in, d_in]` where there is a skip connection.
    pub(crate) skip_weight: Option<Vec<f32>>,
}
