//! Adam over an autoencoder's parameters, with the decoder's rows kept at length 1.

use sae_torch::{Gradients, Parameters, TorchSae};
use tch::{Kind, Tensor, no_grad};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// Elements that a pass works on at once, so that its temporaries stay small beside the parameters.
const BLOCK: i64 = 4 << 20;

/// Moments of each parameter, in the order of [`Gradients::tensors`].
#[derive(Debug)]
pub(crate) struct Adam {
    pub(crate) first: Gradients,
    pub(crate) second: Gradients,
    pub(crate) steps: u64,
}

impl Adam {
    pub(crate) fn new(sae: &TorchSae) -> Self {
        Self { first: Gradients::zeros(sae), second: Gradients::zeros(sae), steps: 0 }
    }

    pub(crate) fn step(&mut self, sae: &mut TorchSae, gradients: &Gradients, lr: f64) {
        self.steps += 1;
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let step_size = lr / (1.0 - BETA_1.powi(steps));
        let root_correction = (1.0 - BETA_2.powi(steps)).sqrt();
        let Parameters { encoder_weight, encoder_bias, decoder_weight, decoder_bias } = sae.parameters_mut();
        let parameters = [encoder_weight, encoder_bias, decoder_weight, decoder_bias];
        let moments = self.first.tensors().into_iter().zip(self.second.tensors());
        no_grad(|| {
            for ((parameter, gradient), (first, second)) in
                parameters.into_iter().zip(gradients.tensors()).zip(moments)
            {
                for (start, len) in blocks(parameter) {
                    let block = |tensor: &Tensor| tensor.narrow(0, start, len);
                    let gradient = block(gradient);
                    let (mut first, mut second) = (block(first), block(second));
                    let _ = first.lerp_(&gradient, 1.0 - BETA_1);
                    let _ = second.lerp_(&gradient.square(), 1.0 - BETA_2);
                    let spread = second.sqrt().g_div_scalar_(root_correction).g_add_scalar_(EPSILON);
                    let _ = block(parameter).addcdiv_(&(first * -step_size), &spread);
                }
            }
        });
    }
}

/// Takes from each row of the decoder's gradient its part along the row: what would only change the row's length.
pub(crate) fn remove_parallel(sae: &TorchSae, gradients: &mut Gradients) {
    no_grad(|| {
        for (start, len) in blocks(sae.decoder_weight()) {
            let rows = sae.decoder_weight().narrow(0, start, len);
            let mut gradient = gradients.decoder_weight.narrow(0, start, len);
            let along = (&gradient * &rows).sum_dim_intlist([1_i64].as_slice(), true, None::<Kind>);
            let _ = gradient.g_sub_(&(rows * along));
        }
    });
}

/// Scales the decoder's rows to length 1.
pub(crate) fn normalise_rows(decoder_weight: &mut Tensor) {
    no_grad(|| {
        for (start, len) in blocks(decoder_weight) {
            let mut rows = decoder_weight.narrow(0, start, len);
            let lengths = rows.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
            // A row of zeros stays one.
            let _ = rows.g_div_(&lengths.clamp_min(f64::from(f32::MIN_POSITIVE)));
        }
    });
}

/// Scales all gradients so that their common norm is at most `largest`; returns the norm before.
pub(crate) fn clip(gradients: &mut Gradients, largest: f64) -> f64 {
    no_grad(|| {
        let squares = gradients.tensors().map(|tensor| tensor.norm().to_kind(Kind::Double).square());
        let norm = squares.iter().sum::<Tensor>().sqrt().double_value(&[]);
        if norm > largest {
            for tensor in gradients.tensors_mut() {
                let _ = tensor.g_mul_scalar_(largest / norm);
            }
        }
        norm
    })
}

/// Ranges of the first dimension, as (start, length), of at most [`BLOCK`] elements or one row.
fn blocks(tensor: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let rows = tensor.size()[0];
    row_blocks(rows, tensor.numel() as i64 / rows.max(1))
}

fn row_blocks(rows: i64, row_len: i64) -> impl Iterator<Item = (i64, i64)> {
    let per_block = (BLOCK / row_len.max(1)).max(1);
    (0..rows).step_by(per_block as usize).map(move |start| (start, per_block.min(rows - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_row_once() {
        for (rows, row_len) in [(5, 1), (5, 3), (3, BLOCK), (3, 2 * BLOCK), (7, BLOCK / 2 - 1), (0, 4)] {
            let mut next = 0;
            for (start, len) in row_blocks(rows, row_len) {
                assert_eq!(start, next);
                assert!(len == 1 || (len > 1 && len * row_len <= BLOCK));
                next += len;
            }
            assert_eq!(next, rows);
        }
    }
}
