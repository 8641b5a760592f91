//! Encodes vectors that stand in an ndarray, batch by batch, and measures how well they are reconstructed.
//!
//! ```text
//! cargo run --release --bin ndarray_vectors -- ./my-sae
//! ```
//!
//! The vectors are made up here, as sums of three rows of the decoder, so that there is something to find. Yours come
//! out of your model.

use std::path::Path;

use anyhow::{Context, Result};
use ndarray::{Array2, Axis};
use sae_core::kernels::{self, Compute, Precision, Scratch, Selection};
use sae_core::metrics::{Firing, Reconstruction};
use sae_core::{Sae, SparseCodes};

const VECTORS: usize = 1_000;
const BATCH: usize = 256;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("usage: ndarray_vectors <SAE folder>")?;
    let sae = Sae::load(Path::new(&folder))?;
    let vectors = vectors(&sae);

    // The short way: one call each, with the best kernel of this machine on all threads.
    let codes = sae.encode(vectors.view())?;
    let decoded = sae.decode(&codes);
    let mut reconstruction = Reconstruction::new();
    reconstruction.push(vectors.view(), decoded.view());
    println!(
        "{} vectors: {:.1} codes each, FVU {:.4}",
        codes.n_rows(),
        mean_codes(&codes),
        fvu(&reconstruction)
    );
    let first = codes.row(0);
    println!("the first is {:?} with activations {:.2?}", first.latents, first.values);

    // The long way, for a loop that never ends: buffers are kept, so that after the first batch nothing is allocated;
    // bf16 weights may be multiplied as they are; and other latents than the k largest can be asked for.
    let compute = Compute { precision: Precision::Bf16, ..Compute::default() };
    let encoder = kernels::Encoder { selection: Selection::Threshold(0.5), ..sae.encoder() };
    let (mut scratch, mut codes) = (Scratch::new(), SparseCodes::new(sae.num_latents()));
    let mut decoded = Array2::zeros((BATCH, sae.d_in()));
    let (mut reconstruction, mut firing) = (Reconstruction::new(), Firing::new(sae.num_latents()));
    for batch in vectors.axis_chunks_iter(Axis(0), BATCH) {
        let mut decoded = decoded.slice_mut(ndarray::s![..batch.nrows(), ..]);
        kernels::encode(compute, &encoder, batch, &mut scratch, &mut codes)?;
        kernels::decode(compute, &sae.decoder(), &codes, &mut scratch, decoded.view_mut());
        reconstruction.push(batch, decoded.view());
        firing.push(&codes);
    }
    let share = firing.dead_share().context("no vectors")?;
    println!(
        "all above 0.5: FVU {:.4}, {:.0} % of the latents never fire",
        fvu(&reconstruction),
        100.0 * share
    );
    Ok(())
}

/// Sums of three latents' rows of `W_dec`, each with weight 1.
fn vectors(sae: &Sae) -> Array2<f32> {
    let decoder = sae.decoder_weight();
    let (bias, mut buffer) = (sae.decoder_bias().to_f32(), Vec::new());
    let mut vectors = Array2::zeros((VECTORS, sae.d_in()));
    for (index, mut vector) in vectors.rows_mut().into_iter().enumerate() {
        vector.assign(&ndarray::ArrayView1::from(&bias));
        for step in [1, 7, 31] {
            let latent = index * step % sae.num_latents();
            vector += &ndarray::ArrayView1::from(decoder.rows_f32(latent..latent + 1, &mut buffer));
        }
    }
    vectors
}

fn mean_codes(codes: &SparseCodes) -> f64 {
    codes.n_codes() as f64 / codes.n_rows() as f64
}

fn fvu(reconstruction: &Reconstruction) -> f64 {
    reconstruction.fvu().unwrap_or(f64::NAN)
}
