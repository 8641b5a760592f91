//! Whether two autoencoders compute the same: both read from their files, on the same random vectors.

use std::path::Path;

use anyhow::Context;
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::{Activation, Sae, WeightDtype, saelens};
use serde::Serialize;

/// Vectors compared.
const ROWS: usize = 64;
/// Decoder rows mixed into one vector.
const MIXED: usize = 12;

/// What the comparison found.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Check {
    /// Vectors encoded.
    pub(crate) rows: usize,
    /// Those with the same active latents in both.
    pub(crate) equal_sets: usize,
    /// Those whose active latents differ only in ones closer to the cut than the tolerance.
    pub(crate) ties: usize,
    /// The largest difference of an activation, relative to the row's largest.
    pub(crate) activations: f64,
    /// The largest difference of a reconstruction, relative to the row's largest number, over rows with equal sets.
    pub(crate) reconstructions: f64,
    /// What these differences may be.
    pub(crate) tolerance: f64,
}

/// What an autoencoder makes of the vectors: its active latents, ascending, and the reconstruction.
struct Outcome {
    rows: Vec<Vec<(usize, f64)>>,
    back: Array2<f64>,
}

/// What storing weights in `dtype` may cost, relative to the largest number: f32 sums in another order, or rounding.
fn tolerance(dtype: WeightDtype) -> f64 {
    match dtype {
        WeightDtype::F32 => 1e-5,
        WeightDtype::F16 => 5e-3,
        WeightDtype::Bf16 => 4e-2,
    }
}

/// Half noise around the decoder's bias, half mixtures of decoder rows, over two orders of magnitude.
fn vectors(sae: &Sae, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let bias = sae.decoder_bias().to_f32();
    let mut x = Array2::zeros((ROWS, sae.d_in()));
    let mut scratch = Vec::new();
    for (n, mut row) in x.rows_mut().into_iter().enumerate() {
        if n % 2 == 0 {
            row.mapv_inplace(|_: f32| rng.random_range(-1.0..1.0));
        } else {
            for _ in 0..MIXED {
                let latent = rng.random_range(0..sae.num_latents());
                let weight: f32 = rng.random_range(0.0..1.0);
                let direction = sae.decoder_weight().rows_f32(latent..latent + 1, &mut scratch).to_vec();
                row.iter_mut().zip(direction).for_each(|(x, part)| *x += weight * part);
            }
        }
        let scale = 10_f32.powf(rng.random_range(-1.0..1.0));
        row.iter_mut().zip(&bias).for_each(|(x, bias)| *x = bias + scale * *x);
    }
    x
}

/// SAELens' files by SAELens' formulas, and not by way of our reading of them.
fn outcome(folder: &Path, x: &Array2<f32>) -> anyhow::Result<Outcome> {
    if saelens::is_saelens(folder) {
        let (acts, back) = saelens::reference(folder, x.view())?;
        let active = |row: ndarray::ArrayView1<'_, f64>| {
            row.iter().copied().enumerate().filter(|(_, act)| *act > 0.0).collect()
        };
        return Ok(Outcome { rows: acts.rows().into_iter().map(active).collect(), back });
    }
    let (codes, back) = Sae::load(folder)?.reconstruct(x.view())?;
    let active = |row: sae_core::CodeRow<'_>| {
        row.iter().map(|(latent, value)| (latent.index(), f64::from(value))).collect()
    };
    Ok(Outcome { rows: codes.rows().map(active).collect(), back: back.mapv(f64::from) })
}

/// Compares the autoencoder in `source` with the one in `target`, stored in `dtype`; `sae` is either, for shape and selection.
pub(crate) fn compare(
    source: &Path,
    target: &Path,
    sae: &Sae,
    dtype: WeightDtype,
    seed: u64,
) -> anyhow::Result<Check> {
    let x = vectors(sae, seed);
    let read = |folder: &Path| {
        outcome(folder, &x).with_context(|| format!("cannot check with {}", folder.display()))
    };
    let (one, other) = (read(source)?, read(target)?);
    let mut check = Check { rows: x.nrows(), tolerance: tolerance(dtype), ..Check::default() };
    let mut wrong = 0;
    for (n, (a, b)) in one.rows.iter().zip(&other.rows).enumerate() {
        let largest = a.iter().chain(b).map(|code| code.1).fold(f64::MIN_POSITIVE, f64::max);
        let margin = check.tolerance * largest;
        // Where a latent is in one only it must lie at the cut of the other.
        let beyond = |codes: &[(usize, f64)], of: &[(usize, f64)]| {
            let cut = cut(sae, of);
            codes.iter().any(|&(latent, value)| find(of, latent).is_none() && value - cut > margin)
        };
        let same = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0);
        if same {
            check.equal_sets += 1;
            let scale = one.back.row(n).iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
            let differences = one.back.row(n).into_iter().zip(other.back.row(n)).map(|(a, b)| (a - b).abs());
            check.reconstructions = differences.fold(check.reconstructions, |most, d| most.max(d / scale));
        } else if beyond(a, b) || beyond(b, a) {
            wrong += 1;
        } else {
            check.ties += 1;
        }
        for &(latent, value) in a {
            if let Some(found) = find(b, latent) {
                check.activations = check.activations.max((value - found).abs() / largest);
            }
        }
    }
    anyhow::ensure!(
        wrong == 0,
        "{} and {} choose other latents for {wrong} of {} vectors",
        source.display(),
        target.display(),
        check.rows
    );
    anyhow::ensure!(
        check.activations <= check.tolerance && check.reconstructions <= check.tolerance,
        "{} and {} differ by {:.1e} in activations and {:.1e} in reconstructions, more than {:.0e}",
        source.display(),
        target.display(),
        check.activations,
        check.reconstructions,
        check.tolerance
    );
    Ok(check)
}

/// What an activation must exceed to be among `codes`.
fn cut(sae: &Sae, codes: &[(usize, f64)]) -> f64 {
    match sae.config().activation {
        Activation::BatchTopK { threshold } => f64::from(threshold),
        _ if codes.len() < sae.k() => 0.0,
        _ => codes.iter().map(|code| code.1).fold(f64::INFINITY, f64::min),
    }
}

fn find(codes: &[(usize, f64)], latent: usize) -> Option<f64> {
    codes.binary_search_by_key(&latent, |code| code.0).ok().map(|at| codes[at].1)
}
