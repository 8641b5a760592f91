//! Encode and decode of `sae-core` over real autoencoders' shapes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sae_core::{Compute, Kernel, Par, Sae, SaeConfig, SaeTensors};

/// Name, width of the vectors, latents, codes per row.
const SHAPES: [(&str, usize, usize, usize); 3] =
    [("shapes-lmm-s", 128, 2_048, 16), ("gpt2-small", 768, 24_576, 32), ("gemma-2-2b", 2_304, 16_384, 64)];
const TOKENS: [usize; 2] = [1, 64];

fn autoencoder(d_in: usize, latents: usize, k: usize) -> Sae {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let scale = 1.0 / (d_in as f32).sqrt();
    let mut uniform =
        |n: usize, scale: f32| (0..n).map(|_| rng.random_range(-scale..scale)).collect::<Vec<f32>>();
    let tensors = SaeTensors {
        encoder_weight: uniform(d_in * latents, scale),
        encoder_bias: uniform(latents, 0.01),
        decoder_weight: uniform(d_in * latents, scale),
        decoder_bias: uniform(d_in, 0.1),
    };
    Sae::from_parts(SaeConfig::new(d_in, latents, k), tensors).expect("tensors of the config's shapes")
}

fn kernels(criterion: &mut Criterion) {
    for (name, d_in, latents, k) in SHAPES {
        let sae = autoencoder(d_in, latents, k);
        for tokens in TOKENS {
            let mut rng = ChaCha8Rng::seed_from_u64(11);
            let x = Array2::from_shape_fn((tokens, d_in), |_| rng.random_range(-1.0f32..1.0));
            let compute = Compute { kernel: Kernel::Portable, par: Par::Rayon };
            let codes = sae.encode_with(x.view(), compute).expect("finite vectors");

            let mut group = criterion.benchmark_group("encode");
            // One multiplication and one addition per weight and token.
            group.throughput(Throughput::Elements((2 * tokens * d_in * latents) as u64)).sample_size(10);
            group.bench_function(BenchmarkId::new(name, tokens), |bench| {
                bench.iter(|| sae.encode_with(black_box(x.view()), compute));
            });
            group.finish();

            let mut group = criterion.benchmark_group("decode");
            group.throughput(Throughput::Elements((2 * codes.n_codes() * d_in) as u64)).sample_size(10);
            group.bench_function(BenchmarkId::new(name, tokens), |bench| {
                bench.iter(|| sae.decode_with(black_box(&codes), compute));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
