//! What the caller chooses: [`Kernel`], [`Par`] and [`Precision`], and how a kernel is dispatched.

use std::sync::OnceLock;

use super::simd::Simd;
#[cfg(target_arch = "aarch64")]
use super::simd::neon::Neon;
use super::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};

/// A kernel and its operands, still to be compiled for some registers.
pub(super) trait Call {
    type Output;

    fn call<S: Simd>(self, simd: S) -> Self::Output;
}

/// Which implementation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Plain f64, one row after the other: the [`reference`](mod@super::reference). Slow, and allocates.
    Reference,
    /// Whatever registers the target was compiled for.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512F.
    Avx512,
    /// x86-64 with AVX-512F and AVX512-BF16, which multiplies pairs of bf16 where [`Precision::Bf16`] allows it; else as
    /// [`Kernel::Avx512`].
    Avx512Bf16,
    /// 64-bit Arm.
    Neon,
}

impl Kernel {
    /// Every implementation this machine can run, from the slowest to the fastest.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Kernel>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let all =
                [Self::Reference, Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Neon];
            all.into_iter().filter(|kernel| kernel.is_available()).collect()
        })
    }

    /// The fastest implementation this machine can run.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    fn is_available(self) -> bool {
        match self {
            Self::Reference | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::<false>::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Avx512::<true>::new().is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::new().is_some(),
            _ => false,
        }
    }

    /// Runs `call` with the registers of this implementation, or gives it back for the reference.
    #[track_caller]
    pub(super) fn dispatch<C: Call>(self, call: C) -> Result<C::Output, C> {
        let output = match self {
            Self::Reference => return Err(call),
            Self::Portable => Some(call.call(Portable)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::new().map(|simd| call.call(simd)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::<false>::new().map(|simd| call.call(simd)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Avx512::<true>::new().map(|simd| call.call(simd)),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::new().map(|simd| call.call(simd)),
            _ => None,
        };
        Ok(output.unwrap_or_else(|| {
            panic!("{self:?} does not run on this machine; it has {:?}", Self::available())
        }))
    }
}

/// How many threads work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Par {
    /// The calling thread alone.
    Serial,
    /// The threads of the current rayon pool, unless a call is over before they would start.
    Rayon,
}

impl Par {
    pub(super) fn workers(self) -> usize {
        match self {
            Self::Serial => 1,
            Self::Rayon => rayon::current_num_threads(),
        }
    }
}

/// In which precision `x - b_dec` meets the encoder's weights. Sums are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As it is given.
    #[default]
    F32,
    /// Rounded to bf16 if the weights are stored in bf16, else as given: what PyTorch does to an autoencoder and
    /// activations in bf16, and several times as fast where the CPU multiplies bf16. Activations change by about 0.2 %,
    /// and near the k-th value other latents may win.
    Bf16,
}

/// Kernel, threads and precision of a call; the best kernel on the current rayon pool in f32 unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// Which implementation runs.
    pub kernel: Kernel,
    /// How many threads work.
    pub par: Par,
    /// How the encoder's input is rounded.
    pub precision: Precision,
}

impl Default for Compute {
    fn default() -> Self {
        Self { kernel: Kernel::best(), par: Par::Rayon, precision: Precision::F32 }
    }
}
