//! Encoding: the best kernel in f32 and bf16, every kernel at one shape, and the dense way over `gemm`.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use lmm_sae_benches::dense::Dense;
use lmm_sae_benches::inputs::{self, Matrix, seeds};
use lmm_sae_benches::{SHAPES, Shape, TOKENS};
use ndarray::Array2;
use sae_core::kernels::{self, Encoder, Scratch, Selection};
use sae_core::{Compute, Kernel, Precision, SparseCodes, WeightDtype};

/// Calls of more multiplications and additions only run where `BENCH_LARGE` is set: `compare.py` times those too.
const LARGE: u64 = 300_000_000_000;
/// Where every kernel runs: beyond the caches, and not too long for the plainest registers.
const EVERY_KERNEL: (&Shape, usize) = (&SHAPES[1], 64);
/// Where the reference runs, which is slow on purpose.
const REFERENCE: (&Shape, usize) = (&SHAPES[0], 16);

/// An encoder without its large matrix, and vectors.
struct Case {
    shape: &'static Shape,
    bias: Vec<f32>,
    decoder_bias: Vec<f32>,
    x: Array2<f32>,
}

impl Case {
    fn new(shape: &'static Shape, tokens: usize) -> Self {
        let x = inputs::vectors(tokens, shape.d_in, seeds::VECTORS, false);
        Self { shape, bias: inputs::encoder_bias(shape), decoder_bias: inputs::decoder_bias(shape), x }
    }

    fn encoder<'a>(&'a self, weight: &'a Matrix) -> Encoder<'a> {
        let selection = Selection::TopK(self.shape.k);
        Encoder { weight: weight.view(), bias: &self.bias, decoder_bias: &self.decoder_bias, selection }
    }

    /// Times the kernels. The matrix is only made if the filter lets this one through.
    fn bench<F: FnOnce() -> Matrix>(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: String,
        weight: &LazyCell<Matrix, F>,
        compute: Compute,
    ) {
        group.throughput(Throughput::Elements(self.shape.flop(self.x.nrows())));
        group.bench_function(BenchmarkId::new(name, self.x.nrows()), |bench| {
            let (encoder, mut scratch) = (self.encoder(weight), Scratch::new());
            let mut codes = SparseCodes::new(self.shape.latents);
            bench.iter(|| {
                kernels::encode(compute, &encoder, black_box(self.x.view()), &mut scratch, &mut codes)
            });
        });
    }

    /// Times the dense way.
    fn bench_dense<F: FnOnce() -> Matrix>(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        weight: &LazyCell<Matrix, F>,
    ) {
        let name = format!("{}/gemm-and-sort", self.shape.name);
        group.throughput(Throughput::Elements(self.shape.flop(self.x.nrows())));
        group.bench_function(BenchmarkId::new(name, self.x.nrows()), |bench| {
            let (encoder, mut dense) = (self.encoder(weight), Dense::default());
            let mut codes = SparseCodes::new(self.shape.latents);
            bench.iter(|| dense.encode(&encoder, self.shape.k, &black_box(self.x.view()), &mut codes));
        });
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.sampling_mode(SamplingMode::Flat);
    let large = std::env::var_os("BENCH_LARGE").is_some();
    let best = Compute::default();
    for shape in &SHAPES {
        let cases = TOKENS.iter().filter(|&&tokens| large || shape.flop(tokens) <= LARGE);
        let cases: Vec<Case> = cases.map(|&tokens| Case::new(shape, tokens)).collect();
        // One matrix at a time: the largest takes 2 GiB.
        let weight = LazyCell::new(|| inputs::encoder_weight(shape, WeightDtype::F32));
        for case in &cases {
            case.bench(&mut group, format!("{}/f32", shape.name), &weight, best);
            case.bench_dense(&mut group, &weight);
        }
        for (place, kernels) in
            [(EVERY_KERNEL, &Kernel::available()[1..]), (REFERENCE, &[Kernel::Reference][..])]
        {
            if place.0 == shape {
                let case = Case::new(shape, place.1);
                for &kernel in kernels {
                    let compute = Compute { kernel, ..best };
                    case.bench(&mut group, format!("{}/f32-{kernel:?}", shape.name), &weight, compute);
                }
            }
        }
        drop(weight);
        let weight = LazyCell::new(|| inputs::encoder_weight(shape, WeightDtype::Bf16));
        for case in &cases {
            case.bench(&mut group, format!("{}/bf16-weights", shape.name), &weight, best);
            let compute = Compute { precision: Precision::Bf16, ..best };
            case.bench(&mut group, format!("{}/bf16", shape.name), &weight, compute);
        }
        if EVERY_KERNEL.0 == shape {
            let case = Case::new(shape, EVERY_KERNEL.1);
            for &kernel in &Kernel::available()[1..] {
                let compute = Compute { kernel, precision: Precision::Bf16, ..best };
                case.bench(&mut group, format!("{}/bf16-{kernel:?}", shape.name), &weight, compute);
            }
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

criterion_group!(name = benches; config = config(); targets = encode);
criterion_main!(benches);
