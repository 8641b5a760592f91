//! [`Gradients`]: the backward pass, by hand and sparse.

use tch::{Kind, Tensor, no_grad};

use crate::{Bags, Parameters, TopK, TorchSae};

/// Gradients of a loss with respect to an autoencoder's parameters, summed over the calls of
/// [`Gradients::accumulate`].
///
/// With `g = ∂loss/∂x̂` `[n, d_in]` and codes `v[i, j]` at latents `l[i, j]`:
///
/// ```text
/// ∂v[i, j]   = <g[i], W_dec[l[i, j]]>            0 where the latent is off
/// ∂W_dec[l]  = Σ v[i, j] g[i]                    over all (i, j) with l[i, j] = l
/// ∂W_enc[l]  = Σ ∂v[i, j] (x[i] - b_dec)
/// ∂b_enc[l]  = Σ ∂v[i, j]
/// ∂b_dec     = Σ g[i] - W_encᵀ · ∂b_enc          the first term where x̂ includes b_dec
/// ```
///
/// The selection of the k largest is held fixed, as autograd does. Nothing of size `[n, num_latents]` or
/// `[n, k, d_in]` is made; equality with autograd on the dense formulation is tested.
#[derive(Debug)]
pub struct Gradients {
    /// `[num_latents, d_in]`.
    pub encoder_weight: Tensor,
    /// `[num_latents]`.
    pub encoder_bias: Tensor,
    /// `[num_latents, d_in]`.
    pub decoder_weight: Tensor,
    /// `[d_in]`.
    pub decoder_bias: Tensor,
}

/// Whether the reconstruction that a loss looks at has the decoder bias in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecoderBias {
    /// `x̂ = b_dec + Σ …`, as [`TorchSae::decode`] computes.
    Included,
    /// `Σ …` alone, as AuxK predicts a residual.
    Excluded,
}

impl Gradients {
    /// Zeros.
    pub fn zeros(sae: &TorchSae) -> Self {
        Self {
            encoder_weight: sae.encoder_weight().zeros_like(),
            encoder_bias: sae.encoder_bias().zeros_like(),
            decoder_weight: sae.decoder_weight().zeros_like(),
            decoder_bias: sae.decoder_bias().zeros_like(),
        }
    }

    /// Back to zeros.
    pub fn reset(&mut self) {
        for tensor in self.tensors_mut() {
            let _ = tensor.zero_();
        }
    }

    /// Encoder weight and bias, decoder weight and bias.
    pub fn tensors(&self) -> [&Tensor; 4] {
        [&self.encoder_weight, &self.encoder_bias, &self.decoder_weight, &self.decoder_bias]
    }

    /// As [`Gradients::tensors`].
    pub fn tensors_mut(&mut self) -> [&mut Tensor; 4] {
        [&mut self.encoder_weight, &mut self.encoder_bias, &mut self.decoder_weight, &mut self.decoder_bias]
    }

    /// Adds the gradients of a loss whose derivative with respect to the reconstruction is `upstream` `[n, d_in]`, where the
    /// reconstruction is decoded from `codes`, and these are encoded from `centred` `[n, d_in]` =
    /// [`TorchSae::centre`]`(x)`.
    ///
    /// # Panics
    /// When shapes or devices disagree.
    pub fn accumulate(
        &mut self,
        sae: &TorchSae,
        centred: &Tensor,
        codes: &TopK,
        upstream: &Tensor,
        decoder_bias: DecoderBias,
    ) {
        if codes.indices.numel() == 0 {
            return;
        }
        no_grad(|| {
            let bags = Bags::new(codes);
            let num_latents = sae.num_latents() as i64;
            let on = bags.values().gt(0.0);
            let d_pre = bags.dot_rows(upstream, sae.decoder_weight()) * on;
            let _ = self.decoder_weight.g_add_(&bags.gather_into_rows(upstream, bags.values(), num_latents));
            let _ = self.encoder_weight.g_add_(&bags.gather_into_rows(centred, &d_pre, num_latents));
            let d_bias = self.encoder_bias.zeros_like().scatter_add_(0, bags.indices(), &d_pre);
            let mut d_decoder_bias = -sae.encoder_weight().tr().mv(&d_bias);
            if decoder_bias == DecoderBias::Included {
                d_decoder_bias += upstream.sum_dim_intlist([0_i64].as_slice(), false, None::<Kind>);
            }
            self.encoder_bias += d_bias;
            self.decoder_bias += d_decoder_bias;
        });
    }
}

/// Adds to `gradients` (with respect to `W_enc`, `b_enc` and `W_dec`, in this order) those of a loss that looks at several sums of
/// decoder rows, one for each of `sets`, and whose gradients with respect to these sums are `upstream` `[n, d_in]` each. The
/// codes are encoded from `input` `[n, d_in]`, what the encoder multiplies.
///
/// # Panics
/// When shapes or devices disagree.
pub fn accumulate_gradients(
    parameters: &Parameters,
    input: &Tensor,
    sets: &[Bags],
    upstream: &[Tensor],
    gradients: &mut [Tensor],
) {
    let [encoder_weight, encoder_bias, decoder_weight, ..] = gradients else {
        panic!("{} gradients, expected those of W_enc, b_enc and W_dec", gradients.len());
    };
    no_grad(|| {
        let n = input.size()[0] as usize;
        let bags = Bags::join(n, sets);
        if bags.is_empty() {
            return;
        }
        let upstream = Tensor::cat(upstream, 0);
        let num_latents = parameters.encoder_bias.size()[0];
        let on = bags.values().gt(0.0);
        let d_pre = bags.dot_rows(&upstream, &parameters.decoder_weight) * on;
        let _ = decoder_weight.g_add_(&bags.gather_into_rows(&upstream, bags.values(), num_latents));
        let rows = bags.modulo(n);
        let _ = encoder_weight.g_add_(&rows.gather_into_rows(input, &d_pre, num_latents));
        let _ = encoder_bias.scatter_add_(0, bags.indices(), &d_pre);
    });
}
