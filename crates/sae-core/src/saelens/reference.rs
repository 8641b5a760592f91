//! What SAELens computes, in f64, written after its Python and apart from the reading of it as one of ours.

use std::path::Path;

use ndarray::{Array2, ArrayView2, Axis};

use super::open;
use crate::SaeError;

/// Activations `[n, d_sae]`, zero where off, and reconstructions `[n, d_in]` of the rows of `x` `[n, d_in]`, as SAELens'
/// `encode` and `forward` give them for the files in `folder`, in f64 and dense: to check a conversion with, never tuned. Of equal
/// pre-activations the lower latent is kept. A scaling factor of activations is applied as SAELens folds it.
///
/// # Errors
/// As [`load`](super::load).
///
/// # Panics
/// When `x` does not have `d_in` columns.
#[track_caller]
pub fn reference(folder: &Path, x: ArrayView2<'_, f32>) -> Result<(Array2<f64>, Array2<f64>), SaeError> {
    let (config, files) = open(folder)?;
    let (d_in, d_sae, scale) = (config.d_in, config.d_sae, config.scale);
    assert_eq!(x.ncols(), d_in, "columns of the input");
    let row = |tensor, rows: usize, cols: usize, row: usize| {
        let mut scratch = Vec::new();
        let numbers = files.tensor(tensor, rows, cols).rows_f32(row..row + 1, &mut scratch).to_vec();
        numbers.into_iter().map(f64::from)
    };
    let decoder_bias: Vec<f64> = row(3, 1, d_in, 0).map(|bias| bias / scale).collect();
    let centred = Array2::from_shape_fn(x.dim(), |(n, i)| {
        let bias = if config.apply_b_dec_to_input { decoder_bias[i] } else { 0.0 };
        (f64::from(x[[n, i]]) - bias) * scale
    });
    let mut pre = Array2::zeros((x.nrows(), d_sae));
    for (mut pre, bias) in pre.axis_iter_mut(Axis(1)).zip(row(1, 1, d_sae, 0)) {
        pre.fill(bias);
    }
    for i in 0..d_in {
        let weights: Vec<f64> = row(0, d_in, d_sae, i).collect();
        for (mut pre, centred) in pre.rows_mut().into_iter().zip(centred.rows()) {
            for (pre, weight) in pre.iter_mut().zip(&weights) {
                *pre += centred[i] * weight;
            }
        }
    }
    let length =
        |latent| row(2, d_sae, d_in, latent).map(|weight| (weight / scale).powi(2)).sum::<f64>().sqrt();
    let lengths: Vec<f64> =
        (0..d_sae).map(|latent| if config.rescale { length(latent) } else { 1.0 }).collect();
    for mut pre in pre.rows_mut() {
        pre.iter_mut().zip(&lengths).for_each(|(pre, length)| *pre *= length);
    }
    let thresholds: Option<Vec<f64>> =
        config.jumprelu.then(|| row(config.index("threshold"), 1, d_sae, 0).collect());
    let mut acts = pre;
    for mut acts in acts.rows_mut() {
        if let Some(thresholds) = &thresholds {
            for (act, threshold) in acts.iter_mut().zip(thresholds) {
                *act = if *act > *threshold { act.max(0.0) } else { 0.0 };
            }
            continue;
        }
        let k = config.k.map_or(0, |k| k as usize);
        let mut order: Vec<usize> = (0..d_sae).collect();
        order.sort_by(|&a, &b| acts[b].total_cmp(&acts[a]).then(a.cmp(&b)));
        order.iter().skip(k).for_each(|&latent| acts[latent] = 0.0);
        acts.mapv_inplace(|act| act.max(0.0));
    }
    let mut out = Array2::zeros(x.dim());
    for latent in 0..d_sae {
        if acts.column(latent).iter().all(|&act| act == 0.0) {
            continue;
        }
        let weights: Vec<f64> = row(2, d_sae, d_in, latent).collect();
        for (mut out, acts) in out.rows_mut().into_iter().zip(acts.rows()) {
            let act = acts[latent] / lengths[latent] / scale;
            if act != 0.0 {
                out.iter_mut().zip(&weights).for_each(|(out, weight)| *out += act * weight);
            }
        }
    }
    for mut out in out.rows_mut() {
        out.iter_mut().zip(&decoder_bias).for_each(|(out, bias)| *out += bias);
    }
    if config.skip {
        let tensor = config.index("W_skip");
        for i in 0..d_in {
            let weights: Vec<f64> = row(tensor, d_in, d_in, i).collect();
            for (mut out, x) in out.rows_mut().into_iter().zip(x.rows()) {
                out[i] += x.iter().zip(&weights).map(|(&x, weight)| f64::from(x) * weight).sum::<f64>();
            }
        }
    }
    Ok((acts, out))
}
