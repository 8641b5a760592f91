//! What the tests share: repeatable numbers, autoencoders in every dtype and alignment, thread pools, tolerances.

use std::fmt::Debug;
use std::ops::{Add, Mul};
use std::sync::LazyLock;

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2};
use rayon::{ThreadPool, ThreadPoolBuilder};
use sae_core::kernels::{self, Decoder, Encoder, Scratch, Selection};
use sae_core::{Compute, FeatureId, Kernel, Par, Precision, SaeError, SparseCodes, WeightDtype, Weights};

/// Whether an interpreter or emulator runs the tests, some hundred times slower than the machine.
pub(crate) fn small() -> bool {
    cfg!(miri) || std::env::var_os("SAE_CORE_SMALL_GRIDS").is_some()
}

/// The kernels under test; the reference is one of them.
pub(crate) fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::available().iter().copied()
}

pub(crate) const DTYPES: [WeightDtype; 3] = [WeightDtype::F32, WeightDtype::F16, WeightDtype::Bf16];

/// Dtypes and precisions that differ in how they compute.
pub(crate) const NUMERICS: [(WeightDtype, Precision); 4] = [
    (WeightDtype::F32, Precision::F32),
    (WeightDtype::F16, Precision::F32),
    (WeightDtype::Bf16, Precision::F32),
    (WeightDtype::Bf16, Precision::Bf16),
];

/// A repeatable stream of numbers.
#[derive(Clone)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 40
    }

    /// In [-1, 1).
    pub(crate) fn number(&mut self) -> f32 {
        self.bits() as f32 / (1 << 23) as f32 - 1.0
    }

    /// From -3 to 3.
    pub(crate) fn integer(&mut self) -> f32 {
        (self.number() * 3.0).round()
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.bits() as usize % end
    }
}

pub(crate) fn matrix(rows: usize, cols: usize, number: impl FnMut() -> f32) -> Array2<f32> {
    Array2::from_shape_simple_fn((rows, cols), number)
}

/// A matrix as a file holds it.
pub(crate) struct Stored {
    dtype: WeightDtype,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    start: usize,
    /// What is stored, as f32.
    pub(crate) numbers: Vec<f32>,
}

impl Stored {
    /// Rounds `numbers` to `dtype` and lays them `shift` bytes after the start of a cache line.
    pub(crate) fn new(dtype: WeightDtype, rows: usize, cols: usize, shift: usize, numbers: &[f32]) -> Self {
        assert_eq!(numbers.len(), rows * cols);
        let mut bytes = vec![0xff; numbers.len() * dtype.size() + 128];
        let start = (64 - bytes.as_ptr() as usize % 64) % 64 + shift;
        let mut stored = Vec::with_capacity(numbers.len());
        for (number, bytes) in numbers.iter().zip(bytes[start..].chunks_mut(dtype.size())) {
            match dtype {
                WeightDtype::F32 => {
                    bytes.copy_from_slice(&number.to_le_bytes());
                    stored.push(*number);
                }
                WeightDtype::F16 => {
                    let half = f16::from_f32(*number);
                    bytes.copy_from_slice(&half.to_le_bytes());
                    stored.push(half.to_f32());
                }
                WeightDtype::Bf16 => {
                    let half = bf16::from_f32(*number);
                    bytes.copy_from_slice(&half.to_le_bytes());
                    stored.push(half.to_f32());
                }
            }
        }
        Self { dtype, rows, cols, bytes, start, numbers: stored }
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        let len = self.numbers.len() * self.dtype.size();
        Weights::new(self.dtype, self.rows, self.cols, &self.bytes[self.start..][..len])
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.cols..][..self.cols]
    }
}

/// The tensors of an autoencoder.
pub(crate) struct Dictionary {
    pub(crate) encoder: Stored,
    pub(crate) decoder: Stored,
    pub(crate) bias: Vec<f32>,
    pub(crate) decoder_bias: Vec<f32>,
}

impl Dictionary {
    /// Matrices that start `shift` bytes after a cache line. Every seventh bias is 0.
    pub(crate) fn new(
        [latents, d_in]: [usize; 2],
        dtype: WeightDtype,
        shift: usize,
        mut number: impl FnMut() -> f32,
    ) -> Self {
        let mut draw = |n: usize| (0..n).map(|_| number()).collect::<Vec<_>>();
        let encoder = Stored::new(dtype, latents, d_in, shift, &draw(latents * d_in));
        let decoder = Stored::new(dtype, latents, d_in, shift, &draw(latents * d_in));
        let mut bias = draw(latents);
        bias.iter_mut().step_by(7).for_each(|bias| *bias = 0.0);
        Self { encoder, decoder, bias, decoder_bias: draw(d_in) }
    }

    /// One encoder for tests that write their weights down; the decoder is its copy.
    pub(crate) fn of(dtype: WeightDtype, d_in: usize, weight: &[f32], bias: Vec<f32>) -> Self {
        let stored = || Stored::new(dtype, bias.len(), d_in, 0, weight);
        Self { encoder: stored(), decoder: stored(), decoder_bias: vec![0.0; d_in], bias }
    }

    pub(crate) fn encoder<'a>(&'a self, selection: Selection<'a>) -> Encoder<'a> {
        let weight = self.encoder.weights();
        Encoder { weight, bias: &self.bias, decoder_bias: &self.decoder_bias, selection }
    }

    pub(crate) fn decoder(&self) -> Decoder<'_> {
        Decoder { weight: self.decoder.weights(), bias: &self.decoder_bias }
    }
}

pub(crate) fn serial(kernel: Kernel, precision: Precision) -> Compute {
    Compute { kernel, par: Par::Serial, precision }
}

/// Encodes with buffers of its own.
pub(crate) fn encode(
    compute: Compute,
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
) -> Result<SparseCodes, SaeError> {
    let mut codes = SparseCodes::new(1);
    kernels::encode(compute, encoder, x, &mut Scratch::new(), &mut codes)?;
    Ok(codes)
}

/// As [`encode`], on the calling thread and on pools of several sizes, which must agree to the bit.
pub(crate) fn encode_on_all_threads(
    compute: Compute,
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
) -> SparseCodes {
    on_all_threads(compute.kernel, |par| encode(Compute { par, ..compute }, encoder, x).unwrap())
}

/// What `run` gives on the calling thread, after asserting that pools of several sizes give the same. The
/// reference has no threads.
pub(crate) fn on_all_threads<T: PartialEq + Debug + Send>(
    kernel: Kernel,
    run: impl Fn(Par) -> T + Sync,
) -> T {
    static POOLS: LazyLock<Vec<ThreadPool>> = LazyLock::new(|| {
        let sizes: &[usize] = if small() { &[2] } else { &[1, 2, 3, 5] };
        sizes.iter().map(|&threads| ThreadPoolBuilder::new().num_threads(threads).build().unwrap()).collect()
    });
    let serial = run(Par::Serial);
    if kernel != Kernel::Reference {
        for pool in &*POOLS {
            let pooled = pool.install(|| run(Par::Rayon));
            assert!(pooled == serial, "{kernel:?} on {} threads differs", pool.current_num_threads());
        }
    }
    serial
}

/// To compare to the bit, the sign of zeros included.
pub(crate) fn bits<'a>(numbers: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    numbers.into_iter().map(|number| number.to_bits()).collect()
}

/// Codes of up to `most` random latents per row, of any sign.
pub(crate) fn random_codes(noise: &mut Noise, rows: usize, latents: usize, most: usize) -> SparseCodes {
    let mut codes = SparseCodes::new(latents);
    for _ in 0..rows {
        let mut wanted = noise.below(most.min(latents) + 1);
        let mut row = Vec::new();
        for latent in 0..latents {
            if noise.below(latents - latent) < wanted {
                row.push((FeatureId(latent as u32), noise.number() + 1.5e-7));
                wanted -= 1;
            }
        }
        codes.push_row(row).unwrap();
    }
    codes
}

/// A number in f64, and the same formula of the magnitudes of its operands, by which rounding is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounded {
    pub(crate) value: f64,
    pub(crate) scale: f64,
}

impl Bounded {
    pub(crate) const ZERO: Self = Self { value: 0.0, scale: 0.0 };

    pub(crate) fn new(number: f32) -> Self {
        Self { value: f64::from(number), scale: f64::from(number.abs()) }
    }

    pub(crate) fn negative(self) -> Self {
        Self { value: -self.value, ..self }
    }
}

impl Add for Bounded {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, scale: self.scale + other.scale }
    }
}

impl Mul for Bounded {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self { value: self.value * other.value, scale: self.scale * other.scale }
    }
}

/// How far a number computed in f32 may be from the one in f64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    /// In f32 epsilons of [`Bounded::scale`].
    epsilons: f64,
    absolute: f64,
}

impl Tolerance {
    /// A number of f64, rounded once.
    pub(crate) const ROUNDED: Self = Self { epsilons: 0.51, absolute: 0.0 };
    /// A sum in f32. Those of these tests are seen to be off by up to 2.3.
    pub(crate) const SUM: Self = Self { epsilons: 4.0, absolute: 0.0 };

    pub(crate) fn of_kernel(kernel: Kernel) -> Self {
        if kernel == Kernel::Reference { Self::ROUNDED } else { Self::SUM }
    }

    pub(crate) fn of(self, expected: Bounded) -> f64 {
        self.absolute + self.epsilons * f64::from(f32::EPSILON) * expected.scale
    }

    /// Panics with the worst number unless all are within tolerance.
    #[track_caller]
    pub(crate) fn check<'a, I: Debug>(
        self,
        what: impl Debug,
        numbers: impl IntoIterator<Item = (I, f32, &'a Bounded)>,
    ) {
        let error = |got: f32, want: &Bounded| (f64::from(got) - want.value).abs();
        // Whatever is no number counts as infinitely wrong.
        let excess = |got: f32, want: &Bounded| {
            let excess = error(got, want) / (self.of(*want) + f64::MIN_POSITIVE);
            if excess.is_nan() { f64::INFINITY } else { excess }
        };
        let worst = numbers.into_iter().max_by(|a, b| excess(a.1, a.2).total_cmp(&excess(b.1, b.2)));
        let Some((index, got, want)) = worst else { return };
        assert!(
            excess(got, want) <= 1.0,
            "{what:?}: worst at {index:?}: got {got:e}, want {:e}, off by {:e} where {:e} is tolerated",
            want.value,
            error(got, want),
            self.of(*want),
        );
    }
}
