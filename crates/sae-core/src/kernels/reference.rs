//! Plain f64, one row after the other: what the other kernels are measured against. Never tuned.

use ndarray::{ArrayView2, ArrayViewMut2};
use sae_types::SparseCodes;

use super::{Code, Decoder, Encoder, TopKRows};
use crate::SaeError;

pub(super) fn encode(
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
    out: &mut TopKRows,
) -> Result<(), SaeError> {
    let weight = encoder.weight.to_f32();
    let [num_latents, d_in] = encoder.weight.shape();
    out.reset(x.nrows(), encoder.k);
    for (row, x) in x.rows().into_iter().enumerate() {
        let mut codes = Vec::new();
        for latent in 0..num_latents {
            let mut pre = f64::from(encoder.bias[latent]);
            for column in 0..d_in {
                let centred = f64::from(x[column]) - f64::from(encoder.decoder_bias[column]);
                pre += centred * f64::from(weight[latent * d_in + column]);
            }
            let value = pre as f32;
            if value.is_nan() || value == f32::INFINITY {
                return Err(SaeError::PreActivationNotFinite { row, latent, value });
            }
            if value > 0.0 {
                codes.push(Code { value, latent: latent as u32 });
            }
        }
        codes.sort_by(Code::rank);
        codes.truncate(encoder.k);
        codes.sort_by_key(|code| code.latent);
        out.counts[row] = codes.len();
        out.codes[row * encoder.k..][..codes.len()].copy_from_slice(&codes);
    }
    Ok(())
}

pub(super) fn decode(decoder: &Decoder<'_>, codes: &SparseCodes, mut out: ArrayViewMut2<'_, f32>) {
    let weight = decoder.weight.to_f32();
    for (mut out, row) in out.rows_mut().into_iter().zip(codes.rows()) {
        for (column, out) in out.iter_mut().enumerate() {
            let mut sum = f64::from(decoder.bias[column]);
            for (feature, value) in row.iter() {
                let at = feature.index() * decoder.bias.len() + column;
                sum += f64::from(value) * f64::from(weight[at]);
            }
            *out = sum as f32;
        }
    }
}
