//! [`Normalisation`]: what activations are shifted and scaled by in training, and how that is folded into the weights.
//!
//! Training sees `x' = s (x - μ)` (and `y' = s_y (y - μ_y)` of a transcoder's targets). What is saved takes raw `x` and gives raw `x̂`:
//!
//! ```text
//! autoencoder  c = μ + b_dec' / s        W_enc, W_dec, W_skip as they are     b_dec = c - W_skip μ
//!              b_enc = b_enc' / s - W_enc W_skip μ                             activations z = z' / s
//! transcoder   W_enc = s_x W_enc'        b_enc = b_enc' - W_enc μ_x            z = z'
//!              W_dec = W_dec' / s_y      W_skip = (s_x / s_y) W_skip'          b_dec = μ_y + b_dec' / s_y - W_skip μ_x
//! ```

use sae_core::SaeTensors;
use tch::{Kind, Tensor, no_grad};

use crate::backend::dot;

/// `x' = scale (x - mean)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Affine {
    /// `[d_in]`.
    pub(crate) mean: Vec<f32>,
    pub(crate) scale: f32,
}

impl Affine {
    pub(crate) fn identity(d_in: usize) -> Self {
        Self { mean: vec![0.0; d_in], scale: 1.0 }
    }

    pub(crate) fn is_identity(&self) -> bool {
        self.scale == 1.0 && self.mean.iter().all(|&mean| mean == 0.0)
    }

    /// The mean of the rows of `x` `[n, d_in]` if `centre`, and `sqrt(d_in)` over their mean distance from it if `scale`.
    pub(crate) fn fit(x: &Tensor, centre: bool, scale: bool) -> Self {
        let d_in = x.size()[1];
        no_grad(|| {
            let x = x.to_kind(Kind::Double);
            let mean = x.mean_dim([0_i64].as_slice(), false, Kind::Double);
            let distance = (&x - &mean).norm_scalaropt_dim(2, [1_i64].as_slice(), false).mean(Kind::Double);
            let distance = distance.double_value(&[]);
            let mut fitted = Self::identity(d_in as usize);
            if centre {
                let mean = mean.to_kind(Kind::Float).to_device(tch::Device::Cpu);
                mean.copy_data(&mut fitted.mean, d_in as usize);
            }
            if scale && distance > 0.0 {
                fitted.scale = ((d_in as f64).sqrt() / distance) as f32;
            }
            fitted
        })
    }

    /// Rows `[n, d_in]` of f32, normalised.
    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        if self.is_identity() {
            return x.shallow_clone();
        }
        let mean = Tensor::from_slice(&self.mean).to_device(x.device());
        no_grad(|| (x - mean).g_mul_scalar_(f64::from(self.scale)))
    }
}

/// Of inputs and targets, which are the same for an autoencoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Normalisation {
    pub(crate) input: Affine,
    pub(crate) target: Affine,
    pub(crate) transcode: bool,
}

impl Normalisation {
    pub(crate) fn identity(d_in: usize, transcode: bool) -> Self {
        Self { input: Affine::identity(d_in), target: Affine::identity(d_in), transcode }
    }

    fn is_identity(&self) -> bool {
        self.input.is_identity() && self.target.is_identity()
    }

    /// What activations in training are to be multiplied by.
    pub(crate) fn activation_scale(&self) -> f64 {
        if self.transcode { 1.0 } else { 1.0 / f64::from(self.input.scale) }
    }

    /// Turns what is trained into what is saved.
    pub(crate) fn fold(&self, tensors: &mut SaeTensors) {
        if self.is_identity() {
            return;
        }
        let (s_x, s_y) = (f64::from(self.input.scale), f64::from(self.target.scale));
        if self.transcode {
            scale(&mut tensors.encoder_weight, s_x);
            scale(&mut tensors.decoder_weight, 1.0 / s_y);
            if let Some(skip) = &mut tensors.skip_weight {
                scale(skip, s_x / s_y);
            }
            let through_encoder = product(&tensors.encoder_weight, &self.input.mean);
            change(&mut tensors.encoder_bias, |latent, bias| bias - through_encoder[latent]);
            let through_skip = self.through_skip(tensors);
            let means = &self.target.mean;
            change(&mut tensors.decoder_bias, |column, bias| {
                f64::from(means[column]) + bias / s_y - through_skip[column]
            });
        } else {
            let through_skip = self.through_skip(tensors);
            let through_both = product_f64(&tensors.encoder_weight, &through_skip);
            change(&mut tensors.encoder_bias, |latent, bias| bias / s_x - through_both[latent]);
            let means = &self.input.mean;
            change(&mut tensors.decoder_bias, |column, bias| {
                f64::from(means[column]) + bias / s_x - through_skip[column]
            });
        }
    }

    /// Turns what was saved into what is trained.
    pub(crate) fn unfold(&self, tensors: &mut SaeTensors) {
        if self.is_identity() {
            return;
        }
        let (s_x, s_y) = (f64::from(self.input.scale), f64::from(self.target.scale));
        let through_skip = self.through_skip(tensors);
        let means = &self.target.mean;
        if self.transcode {
            let through_encoder = product(&tensors.encoder_weight, &self.input.mean);
            change(&mut tensors.encoder_bias, |latent, bias| bias + through_encoder[latent]);
            change(&mut tensors.decoder_bias, |column, bias| {
                s_y * (bias - f64::from(means[column]) + through_skip[column])
            });
            scale(&mut tensors.encoder_weight, 1.0 / s_x);
            scale(&mut tensors.decoder_weight, s_y);
            if let Some(skip) = &mut tensors.skip_weight {
                scale(skip, s_y / s_x);
            }
        } else {
            let through_both = product_f64(&tensors.encoder_weight, &through_skip);
            change(&mut tensors.encoder_bias, |latent, bias| s_x * (bias + through_both[latent]));
            change(&mut tensors.decoder_bias, |column, bias| {
                s_x * (bias + through_skip[column] - f64::from(means[column]))
            });
        }
    }

    /// `W_skip μ_x`, zeros without a skip connection.
    fn through_skip(&self, tensors: &SaeTensors) -> Vec<f64> {
        let mean = &self.input.mean;
        tensors.skip_weight.as_ref().map_or_else(|| vec![0.0; mean.len()], |skip| product(skip, mean))
    }
}

fn scale(numbers: &mut [f32], factor: f64) {
    change(numbers, |_, number| factor * number);
}

fn change(numbers: &mut [f32], of: impl Fn(usize, f64) -> f64) {
    for (index, number) in numbers.iter_mut().enumerate() {
        *number = of(index, f64::from(*number)) as f32;
    }
}

/// The product of a matrix, row-major, and a vector.
fn product(matrix: &[f32], vector: &[f32]) -> Vec<f64> {
    matrix.chunks(vector.len()).map(|row| dot(row, vector)).collect()
}

fn product_f64(matrix: &[f32], vector: &[f64]) -> Vec<f64> {
    let rows = matrix.chunks(vector.len());
    rows.map(|row| row.iter().zip(vector).map(|(a, b)| f64::from(*a) * b).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfold_undoes_fold() {
        let mut state = 3_u64;
        let mut draw = |len: usize| -> Vec<f32> {
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..len).map(|_| number()).collect()
        };
        for (transcode, skip) in [(false, false), (false, true), (true, false), (true, true)] {
            let tensors = SaeTensors {
                encoder_weight: draw(5 * 3),
                encoder_bias: draw(5),
                decoder_weight: draw(5 * 3),
                decoder_bias: draw(3),
                skip_weight: skip.then(|| draw(9)),
            };
            let input = Affine { mean: draw(3), scale: 2.5 };
            let target = if transcode { Affine { mean: draw(3), scale: 0.3 } } else { input.clone() };
            let normalisation = Normalisation { input, target, transcode };
            let mut there_and_back = tensors.clone();
            normalisation.fold(&mut there_and_back);
            assert_ne!(there_and_back, tensors);
            normalisation.unfold(&mut there_and_back);
            let flat = |tensors: &SaeTensors| {
                let skip = tensors.skip_weight.clone().unwrap_or_default();
                [
                    &tensors.encoder_weight,
                    &tensors.encoder_bias,
                    &tensors.decoder_weight,
                    &tensors.decoder_bias,
                ]
                .into_iter()
                .flatten()
                .copied()
                .chain(skip)
                .collect::<Vec<f32>>()
            };
            for (got, want) in flat(&there_and_back).iter().zip(flat(&tensors)) {
                assert!((got - want).abs() < 1e-5, "{transcode} {skip}: {got} {want}");
            }
        }
    }
}
