//! How long the monosemanticity of many features takes, in one pass and pair by pair.
//!
//! `cargo run --release -p scoring --example monosemanticity_speed -- [IMAGES DIMENSION FEATURES ON]`

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::time::Instant;

use scoring::{Embeddings, Random, ScoringError};

/// multimodal-sae's cache and CLIP ViT-B/32's width; a feature of 131,072 with 1,000 on in an image is on in 356 of them.
const DEFAULTS: [usize; 4] = [46_684, 512, 2_000, 356];
/// Features that are also scored pair by pair.
const COMPARED: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut sizes = DEFAULTS;
    for (size, argument) in sizes.iter_mut().zip(std::env::args().skip(1)) {
        *size = argument.parse()?;
    }
    let [n_images, dimension, n_features, n_on] = sizes;
    let mut random = Random::new(1, 0);
    let mut number = || random.below(2_000_001) as f32 / 1e6 - 1.0;
    let values: Vec<f32> = (0..n_images * dimension).map(|_| number()).collect();
    let embeddings = Embeddings::new(&values, dimension)?;
    let on = |feature: usize| -> Result<Vec<(u32, f32)>, ScoringError> {
        let mut random = Random::new(2, feature as u64);
        let images = random.choose(n_on, n_images);
        Ok(images.into_iter().map(|image| (image as u32, 0.1 + random.below(1000) as f32)).collect())
    };
    let features = (0..n_features).map(on).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let scores =
        embeddings.monosemanticity_of(n_features, |at| Ok::<_, ScoringError>(features[at].clone()))?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{n_features} features on in {n_on} of {n_images} images, {dimension} numbers each: {seconds:.3} s, {:.1} million activations per second",
        (n_features * n_on) as f64 / seconds / 1e6
    );

    let row = |image: u32| &values[image as usize * dimension..][..dimension];
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let start = Instant::now();
    let mut most = 0.0f64;
    let compared = COMPARED.min(n_features);
    for (on, score) in features.iter().zip(&scores).take(compared) {
        let lengths: Vec<f64> = on.iter().map(|&(image, _)| dot(row(image), row(image)).sqrt()).collect();
        let (mut alike, mut pairs) = (0.0, 0.0);
        for a in 0..on.len() {
            for b in a + 1..on.len() {
                let weight = f64::from(on[a].1) * f64::from(on[b].1);
                alike += weight * dot(row(on[a].0), row(on[b].0)) / (lengths[a] * lengths[b]);
                pairs += weight;
            }
        }
        most = most.max((score.unwrap_or(f64::NAN) - alike / pairs).abs());
    }
    let seconds = start.elapsed().as_secs_f64() / compared as f64;
    println!("pair by pair, one thread: {seconds:.3} s per feature; largest difference {most:.1e}");
    Ok(())
}
