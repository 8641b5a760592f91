//! Gradients through the codes: with respect to codes, rows of both matrices, and biases.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lmm_sae_benches::inputs::{self, Draw, seeds};
use lmm_sae_benches::{SHAPES, Shape, TOKENS};
use sae_core::kernels::{self, Decoder, Encoder, Gradients, Scratch, Selection};
use sae_core::{Compute, Kernel, WeightDtype};

/// Where every kernel runs.
const EVERY_KERNEL: (&Shape, usize) = (&SHAPES[1], 256);
/// Where the reference runs, which is slow on purpose.
const REFERENCE: (&Shape, usize) = (&SHAPES[0], 16);

fn gradients(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gradients");
    // The largest shape is left to `compare.py`: its gradients are as large as its matrices.
    for shape in &SHAPES[..3] {
        let (bias, decoder_bias) = (inputs::encoder_bias(shape), inputs::decoder_bias(shape));
        let mut bench = |name: &str, tokens: usize, kernel: Kernel| {
            let codes = inputs::codes(shape, tokens, Draw::Zipf);
            // Per code and number of the vector, a multiplication and an addition for each of dz, dW_dec and dW_enc.
            group.throughput(Throughput::Elements((6 * codes.n_codes() * shape.d_in) as u64));
            group.bench_function(BenchmarkId::new(format!("{}/{name}", shape.name), tokens), |bench| {
                let x = inputs::vectors(tokens, shape.d_in, seeds::VECTORS, false);
                let d_out = inputs::vectors(tokens, shape.d_in, seeds::GRADIENTS, false);
                let encoder_weight = inputs::encoder_weight(shape, WeightDtype::F32);
                let decoder_weight = inputs::decoder_weight(shape, WeightDtype::F32);
                let encoder = Encoder {
                    weight: encoder_weight.view(),
                    bias: &bias,
                    decoder_bias: &decoder_bias,
                    selection: Selection::TopK(shape.k),
                };
                let decoder = Decoder { weight: decoder_weight.view(), bias: &decoder_bias };
                let (mut scratch, mut out) = (Scratch::new(), Gradients::new());
                let compute = Compute { kernel, ..Compute::default() };
                bench.iter(|| {
                    let (x, d_out) = (black_box(x.view()), d_out.view());
                    kernels::gradients(compute, &encoder, &decoder, x, &codes, d_out, &mut scratch, &mut out);
                });
            });
        };
        for tokens in TOKENS {
            bench("f32", tokens, Kernel::best());
        }
        if EVERY_KERNEL.0 == shape {
            Kernel::available()[1..]
                .iter()
                .for_each(|&kernel| bench(&format!("f32-{kernel:?}"), EVERY_KERNEL.1, kernel));
        }
        if REFERENCE.0 == shape {
            bench("f32-Reference", REFERENCE.1, Kernel::Reference);
        }
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
}

criterion_group!(name = benches; config = config(); targets = gradients);
criterion_main!(benches);
