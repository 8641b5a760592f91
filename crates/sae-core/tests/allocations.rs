//! What the kernels allocate: nothing once buffers have grown, and little before.
//!
//! Allocations are counted on the thread that tests and, where there is a pool, on its threads, never on those of the test
//! harness. The tests take turns, because threads count into one place.
#![expect(unsafe_code, reason = "a global allocator that counts")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{Array2, Array3};
use rayon::ThreadPoolBuilder;
use sae_core::kernels::{self, Decoder, Encoder, GradientSums, Gradients, Scratch, Selection};
use sae_core::{Compute, Kernel, Par, Precision, SparseCodes, Weights};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);
/// The test whose turn it is. Threads of a pool outlive it by a moment, and must not count for the next.
static TURN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The turn a thread belongs to.
    static MEMBER_OF: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread works for the test whose turn it is.
fn counted() -> bool {
    MEMBER_OF.get() != 0 && MEMBER_OF.get() == TURN.load(Relaxed)
}

fn grow(bytes: usize) {
    if counted() {
        COUNT.fetch_add(1, Relaxed);
        let bytes = bytes as isize;
        PEAK.fetch_max(BYTES.fetch_add(bytes, Relaxed) + bytes, Relaxed);
    }
}

fn shrink(bytes: usize) {
    if counted() {
        BYTES.fetch_sub(bytes as isize, Relaxed);
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
    static LOCK: Mutex<()> = Mutex::new(());
    let turn = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    MEMBER_OF.set(TURN.fetch_add(1, Relaxed) + 1);
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
    usize::try_from(PEAK.load(Relaxed) - before).unwrap()
}

/// A pool whose threads are counted.
fn pool(threads: usize) -> rayon::ThreadPool {
    let turn = TURN.load(Relaxed);
    ThreadPoolBuilder::new().num_threads(threads).start_handler(move |_| MEMBER_OF.set(turn)).build().unwrap()
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
    sums: GradientSums,
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
            sums: GradientSums::new(latents, d_in),
        }
    }

    fn encode(&mut self, compute: Compute, selection: Selection<'_>) {
        let Shape { d_in, latents, .. } = self.shape;
        let weight = Weights::from_f32(latents, d_in, &self.weight);
        let encoder = Encoder { weight, bias: &self.bias, decoder_bias: &self.decoder_bias, selection };
        kernels::encode(compute, &encoder, self.x.view(), &mut self.scratch, &mut self.codes).unwrap();
    }

    /// Decodes into an output that is not row-major, decodes two prefixes, and differentiates, also from a gradient that is
    /// not row-major.
    fn decode(&mut self, compute: Compute) {
        let Shape { d_in, latents, .. } = self.shape;
        let weight = Weights::from_f32(latents, d_in, &self.weight);
        let selection = Selection::Threshold(0.0);
        let encoder = Encoder { weight, bias: &self.bias, decoder_bias: &self.decoder_bias, selection };
        let decoder = Decoder { weight, bias: &self.decoder_bias };
        let (x, scratch) = (self.x.view(), &mut self.scratch);
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
        for d_out in [self.x.view(), self.decoded.t()] {
            kernels::gradients(
                compute,
                &encoder,
                &decoder,
                x,
                &self.codes,
                d_out,
                scratch,
                &mut self.gradients,
            );
            kernels::accumulate_gradients(
                compute,
                &encoder,
                &decoder,
                x,
                &self.codes,
                d_out,
                scratch,
                &mut self.sums,
            );
        }
    }

    fn run(&mut self, compute: Compute, selection: Selection<'_>) {
        self.encode(compute, selection);
        self.decode(compute);
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
            other.sums = case.sums;
            assert_eq!(allocations(|| other.run(compute, selection)), 0, "{kernel:?} {selection:?}");
        }
    }
}

/// Rayon itself allocates where a thread meets a queue for the first time or a queue grows, not by what is computed.
const RAYON: usize = 4;

#[test]
fn later_calls_on_a_pool_allocate_no_more_than_rayon_does() {
    let _turn = turn();
    for threads in [1, 2, 3] {
        let pool = pool(threads);
        for kernel in fast_kernels() {
            let compute = Compute { kernel, par: Par::Rayon, precision: Precision::F32 };
            for shape in SHAPES {
                for selection in selections(shape) {
                    let mut case = Case::new(shape);
                    // Within the pool, so that entering it is not counted.
                    let [encode, decode] = pool.install(|| {
                        case.run(compute, selection);
                        let most = |mut run: Box<dyn FnMut() + Send + '_>| {
                            (0..6).map(|_| allocations(&mut run)).max().unwrap_or_default()
                        };
                        let encode = most(Box::new(|| case.encode(compute, selection)));
                        [encode, most(Box::new(|| case.decode(compute)))]
                    });
                    let what = format!("{threads} threads, {kernel:?} {shape:?} {selection:?}");
                    assert!(decode <= RAYON, "decoding and gradients on {what}: {decode} allocations");
                    // Which worker finds which candidates is chance, so only what has a limit per row has a
                    // size that a first call can know.
                    if threads == 1 || matches!(selection, Selection::TopK(_)) {
                        assert!(encode <= RAYON, "encoding on {what}: {encode} allocations");
                    }
                }
            }
        }
    }
}

/// The bytes that encoding may hold on so many threads.
fn most_bytes(shape: Shape, selection: Selection<'_>, workers: usize) -> usize {
    let Shape { n, d_in, latents, k } = shape;
    let block = 256 * d_in * 4;
    // Up to 12 latents of 272 weights, and their sums with a block.
    let tile = 12 * (272 + 256) * 4;
    let (all, worker) = match selection {
        // Twice what is kept of a block's rows, and as much again where workers are merged; of 8 bytes.
        Selection::TopK(_) => (0, 256 * (2 * 2 * k.max(48) * 8 + 24)),
        // Twice what is kept of the whole batch, but no more than a block has; of 12 bytes, in vectors that double and
        // are copied.
        Selection::BatchTopK(_) => {
            let of_worker = (2 * n * k).min(256 * latents);
            let bytes = |codes: usize| codes.next_power_of_two() * 12 * 3 / 2;
            (bytes(2 * n * k + of_worker), bytes(of_worker))
        }
        _ => unreachable!("how many codes exceed a threshold is the caller's affair"),
    };
    // Latents, values and ends of rows, in vectors that double and are copied.
    let codes = (n * k * 8 + n * 8) * 3;
    block + all + codes + workers * (tile + worker) + (64 << 10)
}

/// Encoding holds one block of 256 rows, what may be selected from it, and the codes; never `[rows, latents]`.
///
/// The second shape is the largest of `benches` but for the length of the vectors, of which a block is all that is held.
#[test]
fn peak_memory_is_that_of_a_block_and_the_codes() {
    let _turn = turn();
    let workers = 2;
    let pool = pool(workers);
    let shapes = [
        Shape { n: 2048, d_in: 512, latents: 4096, k: 32 },
        Shape { n: 2048, d_in: 16, latents: 131_072, k: 256 },
    ];
    for shape in shapes {
        for selection in [Selection::TopK(shape.k), Selection::BatchTopK(shape.k)] {
            let case = Case::new(shape);
            let weight = Weights::from_f32(shape.latents, shape.d_in, &case.weight);
            let encoder = Encoder { weight, bias: &case.bias, decoder_bias: &case.decoder_bias, selection };
            let held = peak(|| {
                let mut codes = SparseCodes::new(shape.latents);
                let mut scratch = Scratch::new();
                pool.install(|| {
                    let x = case.x.view();
                    kernels::encode(Compute::default(), &encoder, x, &mut scratch, &mut codes).unwrap();
                });
                assert_eq!(codes.n_codes(), shape.n * shape.k);
            });
            let most = most_bytes(shape, selection, workers);
            let at_4096 = held + 256 * (4096 - shape.d_in) * 4;
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            println!(
                "{selection:?} of {shape:?}: {:.2} MiB held, {:.2} allowed; {:.2} with vectors of 4096",
                mib(held),
                mib(most),
                mib(at_4096),
            );
            assert!(held <= most, "{selection:?} of {shape:?} held {held} bytes, more than {most}");
            // A bound far above what is held would hold back nothing.
            assert!(held > most / 4, "{selection:?} of {shape:?} held {held} bytes, far below {most}");
            if matches!(selection, Selection::TopK(_)) {
                assert!(at_4096 <= 64 << 20, "{shape:?} with vectors of 4096 would hold {at_4096} bytes");
            }
        }
    }
}
