//! [`accumulate_gradients`]: the backward pass, by hand and sparse.

use tch::{Tensor, no_grad};

use crate::{Bags, Parameters};

/// Adds to `gradients` (with respect to `W_enc`, `b_enc` and `W_dec`, in this order) those of a loss that looks at several sums of
/// decoder rows, one for each of `sets`, and whose gradients with respect to these sums are `upstream` `[n, d_in]` each. The
/// codes are encoded from `input` `[n, d_in]`, what the encoder multiplies: `x - b_dec`, or a transcoder's `x`.
///
/// With `g` the gradient of a set's sum and codes `v[i, j]` at latents `l[i, j]`, over all sets:
///
/// ```text
/// ∂v[i, j]   = <g[i], W_dec[l[i, j]]>            0 where the latent is off
/// ∂W_dec[l]  = Σ v[i, j] g[i]                    over all (i, j) with l[i, j] = l
/// ∂W_enc[l]  = Σ ∂v[i, j] input[i]
/// ∂b_enc[l]  = Σ ∂v[i, j]
/// ```
///
/// The gradient with respect to `b_dec` is the caller's: `-W_encᵀ · ∂b_enc` where the encoder subtracts it, which is needed once
/// of a finished sum, and the sum of what each reconstruction that adds it has.
///
/// The selection of the codes is held fixed, as autograd does. Nothing of size `[n, num_latents]` or `[n, k, d_in]` is made;
/// equality with autograd on the dense formulation is tested.
///
/// # Panics
/// When shapes or devices disagree, or there are fewer than three gradients.
#[track_caller]
pub fn accumulate_gradients(
    parameters: &Parameters,
    input: &Tensor,
    sets: &[Bags],
    upstream: &[Tensor],
    gradients: &mut [Tensor],
) {
    assert_eq!(sets.len(), upstream.len(), "sets of codes against gradients of their sums");
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
        // By the same kernel, which sums in order: `scatter_add_` on CUDA does not, and ranks are to find the same bits.
        let ones = Tensor::ones([n as i64, 1], (d_pre.kind(), d_pre.device()));
        let _ = encoder_bias.g_add_(&rows.gather_into_rows(&ones, &d_pre, num_latents).squeeze_dim(1));
    });
}
