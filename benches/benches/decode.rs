//! Decoding: gathering rows of `W_dec`, of codes that share few rows and of codes that share many.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lmm_sae_benches::inputs::{self, Draw};
use lmm_sae_benches::{SHAPES, Shape, TOKENS};
use ndarray::{Array2, Array3};
use sae_core::kernels::{self, Decoder, Scratch};
use sae_core::{Compute, Kernel, SparseCodes, WeightDtype};

/// Where every kernel runs.
const EVERY_KERNEL: (&Shape, usize) = (&SHAPES[1], 256);
/// Where the reference runs, which is slow on purpose.
const REFERENCE: (&Shape, usize) = (&SHAPES[0], 16);

/// Bytes of rows that are read, a row as often as codes name it.
fn gathered(shape: &Shape, codes: &SparseCodes, dtype: WeightDtype) -> Throughput {
    Throughput::Bytes((codes.n_codes() * shape.d_in * dtype.size()) as u64)
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for shape in &SHAPES {
        let bias = inputs::decoder_bias(shape);
        for (dtype, dtype_name) in [(WeightDtype::F32, "f32"), (WeightDtype::Bf16, "bf16")] {
            // Only made if the filter lets one of its benches through.
            let weight = LazyCell::new(|| inputs::decoder_weight(shape, dtype));
            let mut bench = |name: &str, tokens: usize, draw: Draw, kernel: Kernel| {
                let codes = inputs::codes(shape, tokens, draw);
                group.throughput(gathered(shape, &codes, dtype));
                group.bench_function(
                    BenchmarkId::new(format!("{}/{dtype_name}-{name}", shape.name), tokens),
                    |bench| {
                        let decoder = Decoder { weight: weight.view(), bias: &bias };
                        let (mut out, mut scratch) = (Array2::zeros((tokens, shape.d_in)), Scratch::new());
                        let compute = Compute { kernel, ..Compute::default() };
                        bench.iter(|| {
                            kernels::decode(
                                compute,
                                &decoder,
                                black_box(&codes),
                                &mut scratch,
                                out.view_mut(),
                            );
                        });
                    },
                );
            };
            for tokens in TOKENS {
                bench("uniform", tokens, Draw::Uniform, Kernel::best());
                bench("zipf", tokens, Draw::Zipf, Kernel::best());
            }
            if EVERY_KERNEL.0 == shape {
                for &kernel in &Kernel::available()[1..] {
                    bench(&format!("zipf-{kernel:?}"), EVERY_KERNEL.1, Draw::Zipf, kernel);
                }
            }
            if REFERENCE.0 == shape {
                bench("zipf-Reference", REFERENCE.1, Draw::Zipf, Kernel::Reference);
            }
        }
    }
    group.finish();
}

/// Nested dictionaries: a quarter, a half and all of the latents.
fn prefixes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode-prefixes");
    for shape in &SHAPES[..3] {
        let tokens = 256;
        let (bias, codes) = (inputs::decoder_bias(shape), inputs::codes(shape, tokens, Draw::Zipf));
        let prefixes = [shape.latents / 4, shape.latents / 2, shape.latents];
        let dtype = WeightDtype::F32;
        group.throughput(gathered(shape, &codes, dtype));
        group.bench_function(BenchmarkId::new(format!("{}/f32", shape.name), tokens), |bench| {
            let weight = inputs::decoder_weight(shape, dtype);
            let decoder = Decoder { weight: weight.view(), bias: &bias };
            let mut scratch = Scratch::new();
            let mut out = Array3::zeros((prefixes.len(), tokens, shape.d_in));
            let compute = Compute::default();
            bench.iter(|| {
                let codes = black_box(&codes);
                kernels::decode_prefixes(compute, &decoder, codes, &prefixes, &mut scratch, out.view_mut());
            });
        });
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
}

criterion_group!(name = benches; config = config(); targets = decode, prefixes);
criterion_main!(benches);
