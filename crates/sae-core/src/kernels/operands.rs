//! What the kernels work on: [`Encoder`] with its [`Selection`], and [`Decoder`].

use ndarray::ArrayView2;
use sae_types::SparseCodes;

use crate::Weights;

/// Which pre-activations become codes. None keeps a pre-activation that is not above zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Selection<'a> {
    /// The k largest of each row.
    TopK(usize),
    /// The `n * k` largest of a call's `n` rows together, ties to the lower row, then to the lower latent (Bussmann et al.
    /// 2024, arXiv 2412.06410). What training uses; a row's codes depend on its neighbours.
    BatchTopK(usize),
    /// All above one threshold: BatchTopK at inference.
    Threshold(f32),
    /// All above the threshold of their latent `[num_latents]`: JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435).
    Thresholds(&'a [f32]),
}

/// What encoding needs.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// `W_enc` `[num_latents, d_in]`.
    pub weight: Weights<'a>,
    /// `b_enc` `[num_latents]`.
    pub bias: &'a [f32],
    /// `b_dec` `[d_in]`.
    pub decoder_bias: &'a [f32],
    /// Which pre-activations become codes.
    pub selection: Selection<'a>,
}

impl Encoder<'_> {
    #[track_caller]
    pub(super) fn check(&self, x: ArrayView2<'_, f32>) {
        let [num_latents, d_in] = self.weight.shape();
        assert_eq!(self.bias.len(), num_latents, "b_enc against rows of W_enc");
        assert_eq!(self.decoder_bias.len(), d_in, "b_dec against columns of W_enc");
        assert_eq!(x.ncols(), d_in, "columns of x against columns of W_enc");
        match self.selection {
            Selection::TopK(k) | Selection::BatchTopK(k) => {
                assert!((1..=num_latents).contains(&k), "k is {k}, expected 1 to {num_latents}");
            }
            Selection::Threshold(threshold) => assert!(!threshold.is_nan(), "the threshold is not a number"),
            Selection::Thresholds(thresholds) => {
                assert_eq!(thresholds.len(), num_latents, "thresholds against rows of W_enc");
                let nan = thresholds.iter().position(|threshold| threshold.is_nan());
                assert_eq!(nan, None, "latent whose threshold is not a number");
            }
        }
    }

    /// What a pre-activation of `latent` must exceed, in any row. Never infinite: infinity itself must be noticed.
    #[inline(always)]
    pub(super) fn floor(&self, latent: usize) -> f32 {
        match self.selection {
            Selection::TopK(_) | Selection::BatchTopK(_) => 0.0,
            Selection::Threshold(threshold) => threshold.clamp(0.0, f32::MAX),
            Selection::Thresholds(thresholds) => thresholds[latent].clamp(0.0, f32::MAX),
        }
    }
}

/// What decoding needs.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    /// `W_dec` `[num_latents, d_in]`, one row per latent.
    pub weight: Weights<'a>,
    /// `b_dec` `[d_in]`.
    pub bias: &'a [f32],
}

impl Decoder<'_> {
    #[track_caller]
    pub(super) fn check(&self, codes: &SparseCodes, dense: (usize, usize)) {
        let [num_latents, d_in] = self.weight.shape();
        assert_eq!(self.bias.len(), d_in, "b_dec against columns of W_dec");
        assert_eq!(codes.num_latents(), num_latents, "width of the codes against rows of W_dec");
        assert_eq!(dense, (codes.n_rows(), d_in), "shape of the decoded vectors");
    }
}
