//! Plain f64, one row after the other: what the other kernels are measured against. Never tuned.

use half::bf16;
use ndarray::{ArrayView2, ArrayViewMut2};
use sae_types::{FeatureId, SparseCodes};

use super::gradients::{Gradients, Operands};
use super::{Decoder, Encoder, Precision, Selection};
use crate::{SaeError, WeightDtype};

/// A code of row `row`.
#[derive(Clone, Copy)]
struct Code {
    row: usize,
    latent: usize,
    value: f32,
}

pub(super) fn encode(
    precision: Precision,
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
    out: &mut SparseCodes,
) -> Result<(), SaeError> {
    let weight = encoder.weight.to_f32();
    let [num_latents, d_in] = encoder.weight.shape();
    let rounded = precision == Precision::Bf16 && encoder.weight.dtype() == WeightDtype::Bf16;
    let mut codes = Vec::new();
    for (row, x) in x.rows().into_iter().enumerate() {
        let centred: Vec<f64> =
            x.iter()
                .zip(encoder.decoder_bias)
                .map(|(x, bias)| {
                    if rounded { bf16::from_f32(x - bias).to_f64() } else { f64::from(*x) - f64::from(*bias) }
                })
                .collect();
        for latent in 0..num_latents {
            let weights = &weight[latent * d_in..][..d_in];
            let dot: f64 = centred.iter().zip(weights).map(|(x, weight)| x * f64::from(*weight)).sum();
            let value = (dot + f64::from(encoder.bias[latent])) as f32;
            if value.is_nan() || value == f32::INFINITY {
                return Err(SaeError::PreActivationNotFinite { row, latent, value });
            }
            if value > 0.0 {
                codes.push(Code { row, latent, value });
            }
        }
    }
    // A stable sort: ties stay in the order of rows and latents.
    let descending = |a: &Code, b: &Code| b.value.total_cmp(&a.value);
    match encoder.selection {
        Selection::TopK(k) => {
            let mut rows: Vec<Vec<Code>> = vec![Vec::new(); x.nrows()];
            for code in codes {
                rows[code.row].push(code);
            }
            for row in &mut rows {
                row.sort_by(descending);
                row.truncate(k);
            }
            codes = rows.concat();
        }
        Selection::BatchTopK(k) => {
            codes.sort_by(descending);
            codes.truncate(x.nrows() * k);
        }
        Selection::Threshold(threshold) => codes.retain(|code| code.value > threshold),
        Selection::Thresholds(thresholds) => codes.retain(|code| code.value > thresholds[code.latent]),
    }
    codes.sort_by_key(|code| (code.row, code.latent));
    out.reset(num_latents);
    for row in 0..x.nrows() {
        let codes = codes.iter().filter(|code| code.row == row);
        let pushed = out.push_row(codes.map(|code| (FeatureId(code.latent as u32), code.value)));
        assert!(pushed.is_ok(), "not a row of codes: {pushed:?}");
    }
    Ok(())
}

pub(super) fn decode(
    decoder: &Decoder<'_>,
    codes: &SparseCodes,
    prefix: usize,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let weight = decoder.weight.to_f32();
    for (mut out, row) in out.rows_mut().into_iter().zip(codes.rows()) {
        for (column, out) in out.iter_mut().enumerate() {
            let mut sum = f64::from(decoder.bias[column]);
            for (feature, value) in row.iter().filter(|(feature, _)| feature.index() < prefix) {
                let at = feature.index() * decoder.bias.len() + column;
                sum += f64::from(value) * f64::from(weight[at]);
            }
            *out = sum as f32;
        }
    }
}

pub(super) fn gradients(operands: &Operands<'_>, out: &mut Gradients) {
    let Operands { encoder, decoder, x, codes, d_out } = *operands;
    let [num_latents, d_in] = encoder.weight.shape();
    let (encoder_weight, decoder_weight) = (encoder.weight.to_f32(), decoder.weight.to_f32());
    // Dense, in f64; what no code touches is left out at the end.
    let mut d_encoder_weight = vec![0.0; num_latents * d_in];
    let mut d_decoder_weight = vec![0.0; num_latents * d_in];
    let mut d_encoder_bias = vec![0.0; num_latents];
    let mut d_decoder_bias = vec![0.0; d_in];
    let mut on = vec![false; num_latents];
    out.codes.clear();
    for (row, codes) in codes.rows().enumerate() {
        for column in 0..d_in {
            d_decoder_bias[column] += f64::from(d_out[(row, column)]);
        }
        for (feature, value) in codes.iter() {
            let latent = feature.index();
            let weights = latent * d_in..(latent + 1) * d_in;
            let columns = d_out.row(row).into_iter().zip(&decoder_weight[weights.clone()]);
            let d_value: f64 = columns.map(|(d_out, weight)| f64::from(*d_out) * f64::from(*weight)).sum();
            out.codes.push(d_value as f32);
            on[latent] = true;
            d_encoder_bias[latent] += d_value;
            for (column, weight) in weights.enumerate() {
                let centred = f64::from(x[(row, column)]) - f64::from(encoder.decoder_bias[column]);
                d_encoder_weight[weight] += d_value * centred;
                d_decoder_weight[weight] += f64::from(value) * f64::from(d_out[(row, column)]);
                d_decoder_bias[column] -= d_value * f64::from(encoder_weight[weight]);
            }
        }
    }
    let touched = || (0..num_latents).filter(|&latent| on[latent]);
    let rows = |dense: &[f64]| {
        touched()
            .flat_map(|latent| dense[latent * d_in..][..d_in].to_vec())
            .map(|number| number as f32)
            .collect()
    };
    out.latents = touched().map(|latent| latent as u32).collect();
    out.encoder_weight = rows(&d_encoder_weight);
    out.decoder_weight = rows(&d_decoder_weight);
    out.encoder_bias = touched().map(|latent| d_encoder_bias[latent] as f32).collect();
    out.decoder_bias = d_decoder_bias.into_iter().map(|number| number as f32).collect();
}
