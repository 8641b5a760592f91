//! The training loss and its gradients for one batch.
//!
//! With `V = Σ ||x - mean(x)||²` over the batch, `e = x - x̂` and everything summed over the batch:
//!
//! ```text
//! FVU      = Σ ||e||² / V                                                  k latents
//! FVU_4k   = Σ ||x - x̂_4k||² / V                                           4k latents
//! AuxK     = s · Σ ||e - Σ z_aux W_dec||² / V                              e held fixed, no decoder bias
//! loss     = FVU  [+ FVU_4k / 8]  [+ alpha · AuxK]
//! ```
//!
//! `z_aux` are the `min(d_in / 2, #dead)` largest activations among the dead latents and `s = min(1, #dead / (d_in / 2))`. AuxK thus
//! teaches dead latents what the living ones leave over; msae's teaches them its negative.

use sae_torch::{DecoderBias, Gradients, TopK, TorchSae};
use tch::{Kind, Tensor};

use crate::TrainerError;

/// Which terms the loss has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Objective {
    pub(crate) multi_topk: bool,
    pub(crate) auxk_alpha: f64,
}

#[derive(Debug)]
pub(crate) struct Losses {
    pub(crate) loss: f64,
    pub(crate) fvu: f64,
    pub(crate) multi_topk_fvu: Option<f64>,
    pub(crate) auxk: Option<f64>,
    pub(crate) codes: TopK,
}

/// Latents of the Multi-TopK term, as a multiple of k, and the weight of its FVU.
const MULTI: usize = 4;
const MULTI_WEIGHT: f64 = 1.0 / 8.0;

/// Adds `scale` times the loss's gradients for `x` `[n, d_in]` to `gradients`; `dead` `[m]` are the dead latents.
pub(crate) fn forward_backward(
    sae: &TorchSae,
    x: &Tensor,
    dead: &Tensor,
    objective: Objective,
    gradients: &mut Gradients,
    scale: f64,
) -> Result<Losses, TrainerError> {
    let x = &x.to_kind(sae.kind());
    let variance = variance(x)?;
    let centred = sae.centre(x);
    let count = if objective.multi_topk { (MULTI * sae.k()).min(sae.num_latents()) } else { sae.k() };
    let widest = sae.encode_centred(&centred, count);
    let codes = widest.first(sae.k());

    let mut term = |codes: &TopK, target: &Tensor, bias: DecoderBias, weight: f64| {
        let reconstruction = match bias {
            DecoderBias::Included => sae.decode(codes),
            DecoderBias::Excluded => sae.decode_without_bias(codes),
        };
        let error = reconstruction - target;
        let fraction = error.square().sum(Kind::Double).double_value(&[]) / variance;
        let upstream = &error * (2.0 * weight * scale / variance);
        gradients.accumulate(sae, &centred, codes, &upstream, bias);
        (fraction, error)
    };

    let (fvu, error) = term(&codes, x, DecoderBias::Included, 1.0);
    let multi_topk_fvu =
        objective.multi_topk.then(|| term(&widest, x, DecoderBias::Included, MULTI_WEIGHT).0);
    let n_dead = dead.size()[0] as usize;
    let auxk = (objective.auxk_alpha > 0.0 && n_dead > 0).then(|| {
        let wanted = (sae.d_in() / 2).max(1);
        let share = (n_dead as f64 / wanted as f64).min(1.0);
        let codes = sae.encode_among(&centred, dead, wanted.min(n_dead));
        let residual = -error;
        share * term(&codes, &residual, DecoderBias::Excluded, objective.auxk_alpha * share).0
    });
    let loss = fvu
        + multi_topk_fvu.map_or(0.0, |fvu| MULTI_WEIGHT * fvu)
        + auxk.map_or(0.0, |auxk| objective.auxk_alpha * auxk);
    Ok(Losses { loss, fvu, multi_topk_fvu, auxk, codes })
}

/// `Σ ||x - mean||²` over the batch.
fn variance(x: &Tensor) -> Result<f64, TrainerError> {
    let mean = x.mean_dim([0_i64].as_slice(), true, x.kind());
    let variance = (x - mean).square().sum(Kind::Double).double_value(&[]);
    if variance.is_finite() && variance > 0.0 {
        return Ok(variance);
    }
    let sound = x.isfinite().all_dim(1, false);
    let bad = sound.logical_not().nonzero();
    if bad.size()[0] > 0 {
        return Err(TrainerError::ActivationsNotFinite { row: bad.int64_value(&[0, 0]) as usize });
    }
    Err(TrainerError::Variance { rows: x.size()[0] as usize, variance })
}

#[cfg(test)]
mod tests {
    use sae_core::SaeConfig;
    use sae_torch::Parameters;
    use tch::Device;

    use super::*;

    const D_IN: i64 = 12;
    const LATENTS: i64 = 40;
    const K: i64 = 3;

    fn toy() -> (TorchSae, Tensor) {
        tch::set_num_threads(1);
        tch::manual_seed(3);
        let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        let parameters = Parameters {
            encoder_weight: draw(&[LATENTS, D_IN]),
            encoder_bias: draw(&[LATENTS]),
            decoder_weight: draw(&[LATENTS, D_IN]),
            decoder_bias: draw(&[D_IN]),
        };
        let config = SaeConfig::new(D_IN as usize, LATENTS as usize, K as usize);
        (TorchSae::from_parameters(config, parameters).unwrap(), draw(&[50, D_IN]))
    }

    /// The loss as the module's documentation writes it, dense, for autograd.
    fn dense_loss(leaves: &[Tensor; 4], x: &Tensor, dead: &Tensor, alpha: f64) -> Tensor {
        let [w_enc, b_enc, w_dec, b_dec] = leaves;
        let variance = (x - x.mean_dim([0_i64].as_slice(), true, Kind::Double)).square().sum(Kind::Double);
        let pre = ((x - b_dec).matmul(&w_enc.tr()) + b_enc).relu();
        let decode = |pre: &Tensor, k: i64| {
            let (values, indices) = pre.topk(k, 1, true, true);
            pre.zeros_like().scatter(1, &indices, &values).matmul(w_dec)
        };
        let error = x - (decode(&pre, K) + b_dec);
        let error_4k = x - (decode(&pre, 4 * K) + b_dec);
        let mask = pre.zeros_like().index_fill(1, dead, 1.0);
        let n_dead = dead.size()[0];
        let share = (n_dead as f64 / (D_IN / 2) as f64).min(1.0);
        let aux = (error.detach() - decode(&(pre * mask), n_dead.min(D_IN / 2))).square().sum(Kind::Double);
        (error.square().sum(Kind::Double) + error_4k.square().sum(Kind::Double) / 8.0 + aux * (alpha * share))
            / variance
    }

    #[test]
    fn loss_and_gradients_equal_autograd_on_the_dense_formulation() {
        let (sae, x) = toy();
        for dead in [vec![], vec![4_i64, 9], (20..40).collect()] {
            let dead = Tensor::from_slice(&dead);
            let objective = Objective { multi_topk: true, auxk_alpha: 0.5 };
            let mut gradients = Gradients::zeros(&sae);
            let losses = forward_backward(&sae, &x, &dead, objective, &mut gradients, 0.25).unwrap();
            let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
            let leaves = [
                leaf(sae.encoder_weight()),
                leaf(sae.encoder_bias()),
                leaf(sae.decoder_weight()),
                leaf(sae.decoder_bias()),
            ];
            let want = dense_loss(&leaves, &x, &dead, 0.5);
            want.backward();
            assert!((losses.loss - want.double_value(&[])).abs() < 1e-12);
            assert_eq!(losses.auxk.is_some(), dead.size()[0] > 0);
            for (got, leaf) in gradients.tensors().into_iter().zip(&leaves) {
                let want = leaf.grad() * 0.25;
                assert!(((got - &want).norm() / want.norm()).double_value(&[]) < 1e-10);
            }
        }
    }

    /// The share of the variance that the living latents and the dead ones together leave unexplained.
    fn unexplained_with_dead(sae: &TorchSae, x: &Tensor, dead: &Tensor) -> f64 {
        let centred = sae.centre(x);
        let living = sae.decode(&sae.encode(x));
        let dead = sae.encode_among(&centred, dead, (D_IN / 2) as usize);
        let error = x - living - sae.decode_without_bias(&dead);
        error.square().sum(Kind::Double).double_value(&[]) / variance(x).unwrap()
    }

    #[test]
    fn a_step_on_auxk_helps_and_a_step_the_wrong_way_harms() {
        for (sign, helps) in [(1.0, true), (-1.0, false)] {
            let (mut sae, x) = toy();
            let dead = Tensor::arange_start(20, 40, (Kind::Int64, Device::Cpu));
            let before = unexplained_with_dead(&sae, &x, &dead);
            // AuxK's gradient alone: with it less without it.
            let mut gradients = Gradients::zeros(&sae);
            let with = Objective { multi_topk: false, auxk_alpha: 1.0 };
            let without = Objective { auxk_alpha: 0.0, ..with };
            forward_backward(&sae, &x, &dead, with, &mut gradients, 1.0).unwrap();
            forward_backward(&sae, &x, &dead, without, &mut gradients, -1.0).unwrap();
            let parameters = sae.parameters_mut();
            // The dead latents' rows only, so that the living reconstruct as before.
            for (parameter, gradient) in [
                (&mut parameters.decoder_weight, &gradients.decoder_weight),
                (&mut parameters.encoder_weight, &gradients.encoder_weight),
            ] {
                let step = gradient.index_select(0, &dead) * (-0.01 * sign);
                let _ = parameter.index_add_(0, &dead, &step);
            }
            let after = unexplained_with_dead(&sae, &x, &dead);
            assert_eq!(after < before, helps, "sign {sign}: {before} -> {after}");
        }
    }

    #[test]
    fn batches_without_variance_or_with_nan_are_refused() {
        let (sae, x) = toy();
        let dead = Tensor::from_slice::<i64>(&[]);
        let objective = Objective { multi_topk: false, auxk_alpha: 0.0 };
        let mut gradients = Gradients::zeros(&sae);
        let mut run =
            |x: &Tensor| forward_backward(&sae, x, &dead, objective, &mut gradients, 1.0).unwrap_err();
        let error = run(&Tensor::ones([3, D_IN], (Kind::Float, Device::Cpu)));
        assert!(matches!(error, TrainerError::Variance { rows: 3, .. }), "{error}");
        let _ = x.get(7).fill_(f64::INFINITY);
        let error = run(&x);
        assert!(matches!(error, TrainerError::ActivationsNotFinite { row: 7 }), "{error}");
    }
}
