//! What the kernels allocate: nothing once buffers have grown, and little before.
//!
//! Allocations are counted on the thread that tests and, where there is a pool, on its threads, never on those of the test
//! harness. The tests take turns, because threads count into one place.
#![expect(unsafe_code, reason = "a global allocator that counts")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{Array2, Array3};
use rayon::ThreadPoolBuilder;
use sae_core::kernels::{self, Decoder, Encoder, Gradients, Scratch, Selection};
use sae_core::{Compute, Kernel, Par, Precision, SparseCodes, Weights};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn grow(bytes: usize) {
    if COUNTED.get() {
        COUNT.fetch_add(1, Relaxed);
        PEAK.fetch_max(BYTES.fetch_add(bytes, Relaxed) + bytes, Relaxed);
    }
}

fn shrink(bytes: usize) {
    if COUNTED.get() {
        BYTES.fetch_sub(bytes, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of the heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks exist while one is copied to the other.
        grow(size);
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The right to count; others wait.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    COUNTED.set(true);
    turn
}

/// Allocations during `run`.
fn allocations(run: impl FnOnce()) -> usize {
    let before = COUNT.load(Relaxed);
    run();
    COUNT.load(Relaxed) - before
}

/// The most bytes held at once during `run` beyond those held before.
fn peak(run: impl FnOnce()) -> usize {
    let before = BYTES.load(Relaxed);
    PEAK.store(before, Relaxed);
    run();
    PEAK.load(Relaxed) - before
}

/// A pool whose threads are counted.
fn pool(threads: usize) -> rayon::ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).start_handler(|_| COUNTED.set(true)).build().unwrap()
}

/// Repeatable numbers in [-1, 1).
fn noise(len: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| number()).collect()
}

/// Rows of `x`, length of the vectors, latents, codes per row.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n: usize,
    d_in: usize,
    latents: usize,
    k: usize,
}

const SHAPES: [Shape; 5] = [
    Shape { n: 1, d_in: 33, latents: 640, k: 20 },
    Shape { n: 8, d_in: 33, latents: 640, k: 20 },
    Shape { n: 40, d_in: 600, latents: 500, k: 31 },
    Shape { n: 300, d_in: 20, latents: 257, k: 9 },
    Shape { n: 600, d_in: 16, latents: 1000, k: 1 },
];

/// Operands of one shape and the buffers of its calls.
struct Case {
    shape: Shape,
    x: Array2<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    decoder_bias: Vec<f32>,
    scratch: Scratch,
    codes: SparseCodes,
    decoded: Array2<f32>,
    prefixes: Array3<f32>,
    gradients: Gradients,
}

impl Case {
    fn new(shape: Shape) -> Self {
        let Shape { n, d_in, latents, .. } = shape;
        Self {
            shape,
            x: Array2::from_shape_vec((n, d_in), noise(n * d_in)).unwrap(),
            weight: noise(latents * d_in + 7).split_off(7),
            bias: noise(latents),
            decoder_bias: noise(d_in),
            scratch: Scratch::new(),
            codes: SparseCodes::new(latents),
            decoded: Array2::zeros((d_in, n)),
            prefixes: Array3::zeros((2, n, d_in)),
            gradients: Gradients::new(),
        }
    }

    /// Encodes, decodes into an output that is not row-major, decodes two prefixes, and differentiates.
    fn run(&mut self, compute: Compute, selection: Selection<'_>) {
        let Shape { d_in, latents, .. } = self.shape;
        let weight = Weights::from_f32(latents, d_in, &self.weight);
        let encoder = Encoder { weight, bias: &self.bias, decoder_bias: &self.decoder_bias, selection };
        let decoder = Decoder { weight, bias: &self.decoder_bias };
        let (x, scratch) = (self.x.view(), &mut self.scratch);
        kernels::encode(compute, &encoder, x, scratch, &mut self.codes).unwrap();
        kernels::decode(compute, &decoder, &self.codes, scratch, self.decoded.view_mut().reversed_axes());
        let prefixes = [latents / 2, latents];
        kernels::decode_prefixes(
            compute,
            &decoder,
            &self.codes,
            &prefixes,
            scratch,
            self.prefixes.view_mut(),
        );
        let d_out = self.decoded.t();
        kernels::gradients(compute, &encoder, &decoder, x, &self.codes, d_out, scratch, &mut self.gradients);
    }
}

fn selections(shape: Shape) -> [Selection<'static>; 3] {
    [Selection::TopK(shape.k), Selection::BatchTopK(shape.k), Selection::Threshold(1.0)]
}

fn fast_kernels() -> impl Iterator<Item = Kernel> {
    // The reference allocates all it likes.
    Kernel::available().iter().copied().filter(|&kernel| kernel != Kernel::Reference)
}

#[test]
fn a_second_call_on_one_thread_allocates_nothing() {
    let _turn = turn();
    for kernel in fast_kernels() {
        let compute = Compute { kernel, par: Par::Serial, precision: Precision::F32 };
        for shape in SHAPES {
            for selection in selections(shape) {
                let mut case = Case::new(shape);
                let first = allocations(|| case.run(compute, selection));
                assert!(first > 0, "the first call of {shape:?} was not counted");
                let second = allocations(|| case.run(compute, selection));
                assert_eq!(second, 0, "{kernel:?} {shape:?} {selection:?}");
            }
        }
    }
}

#[test]
fn smaller_calls_after_a_large_one_allocate_nothing() {
    let _turn = turn();
    for kernel in fast_kernels() {
        let compute = Compute { kernel, par: Par::Serial, precision: Precision::F32 };
        let [large, small] =
            [Shape { n: 300, d_in: 64, latents: 300, k: 9 }, Shape { n: 20, d_in: 64, latents: 300, k: 9 }];
        for selection in selections(large) {
            let (mut case, mut other) = (Case::new(large), Case::new(small));
            case.run(compute, selection);
            other.scratch = case.scratch;
            other.codes = case.codes;
            other.gradients = case.gradients;
            assert_eq!(allocations(|| other.run(compute, selection)), 0, "{kernel:?} {selection:?}");
        }
    }
}

/// Which worker finds which candidates is chance, so a later call may need a little more room than all before it.
/// Rayon itself allocates where a thread meets a queue for the first time, and then no more.
#[test]
fn later_calls_on_a_pool_allocate_next_to_nothing() {
    let _turn = turn();
    for threads in [1, 2, 3] {
        let pool = pool(threads);
        for kernel in fast_kernels() {
            let compute = Compute { kernel, par: Par::Rayon, precision: Precision::F32 };
            for shape in SHAPES {
                for selection in selections(shape) {
                    let mut case = Case::new(shape);
                    // Within the pool, so that entering it is not counted.
                    let later: Vec<usize> = pool.install(|| {
                        case.run(compute, selection);
                        (0..6).map(|_| allocations(|| case.run(compute, selection))).collect()
                    });
                    println!("{threads} threads, {kernel:?} {shape:?} {selection:?}: {later:?}");
                }
            }
        }
    }
}

/// Encoding 2,048 rows holds one block of 256, what may be selected from it, and the codes.
#[test]
fn peak_memory_is_that_of_a_block_and_the_codes() {
    let _turn = turn();
    let workers = 2;
    let pool = pool(workers);
    let shape = Shape { n: 2048, d_in: 512, latents: 4096, k: 32 };
    for selection in [Selection::TopK(shape.k), Selection::BatchTopK(shape.k)] {
        let case = Case::new(shape);
        let weight = Weights::from_f32(shape.latents, shape.d_in, &case.weight);
        let encoder = Encoder { weight, bias: &case.bias, decoder_bias: &case.decoder_bias, selection };
        let held = peak(|| {
            let mut codes = SparseCodes::new(shape.latents);
            let mut scratch = Scratch::new();
            pool.install(|| {
                kernels::encode(Compute::default(), &encoder, case.x.view(), &mut scratch, &mut codes)
                    .unwrap();
            });
            assert_eq!(codes.n_codes(), shape.n * shape.k);
        });
        println!("{selection:?}: {held}");
    }
}
