//! What a selection costs: the same product, and TopK, BatchTopK, one threshold, or a threshold per latent.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use lmm_sae_benches::inputs::{self, seeds};
use lmm_sae_benches::{SHAPES, TOKENS};
use sae_core::kernels::{self, Encoder, Scratch, Selection};
use sae_core::{Compute, SparseCodes, WeightDtype};

fn select(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("select");
    group.sampling_mode(SamplingMode::Flat);
    for shape in &SHAPES[..3] {
        let weight = LazyCell::new(|| inputs::encoder_weight(shape, WeightDtype::F32));
        let (bias, decoder_bias) = (inputs::encoder_bias(shape), inputs::decoder_bias(shape));
        let encoder = |selection| Encoder {
            weight: weight.view(),
            bias: &bias,
            decoder_bias: &decoder_bias,
            selection,
        };
        // The threshold that keeps about k per vector: the mean of the smallest activations that TopK keeps.
        let threshold = LazyCell::new(|| {
            let x = inputs::vectors(64, shape.d_in, seeds::VECTORS, false);
            let mut codes = SparseCodes::new(shape.latents);
            let encoder = encoder(Selection::TopK(shape.k));
            kernels::encode(Compute::default(), &encoder, x.view(), &mut Scratch::new(), &mut codes)
                .expect("finite numbers");
            let smallest = codes.rows().map(|row| row.values.iter().fold(f32::INFINITY, |a, &b| a.min(b)));
            smallest.sum::<f32>() / codes.n_rows() as f32
        });
        let thresholds = LazyCell::new(|| vec![*threshold; shape.latents]);
        for tokens in TOKENS {
            let x = LazyCell::new(|| inputs::vectors(tokens, shape.d_in, seeds::VECTORS, false));
            for name in ["topk", "batch-topk", "threshold", "thresholds"] {
                group.throughput(Throughput::Elements(shape.flop(tokens)));
                group.bench_function(BenchmarkId::new(format!("{}/{name}", shape.name), tokens), |bench| {
                    let encoder = encoder(match name {
                        "topk" => Selection::TopK(shape.k),
                        "batch-topk" => Selection::BatchTopK(shape.k),
                        "threshold" => Selection::Threshold(*threshold),
                        _ => Selection::Thresholds(&thresholds),
                    });
                    let (mut scratch, mut codes) = (Scratch::new(), SparseCodes::new(shape.latents));
                    bench.iter(|| {
                        let x = black_box(x.view());
                        kernels::encode(Compute::default(), &encoder, x, &mut scratch, &mut codes)
                    });
                });
            }
        }
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
}

criterion_group!(name = benches; config = config(); targets = select);
criterion_main!(benches);
