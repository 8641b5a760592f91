//! [`Simd`]: the few register operations the kernels are written in, once per instruction set.
//!
//! A value of a type that implements [`Simd`] is the proof that this CPU has the instructions: it can only be made by a
//! constructor that asked. The kernels are generic over it and safe; what is `unsafe` is inside the implementations.
//!
//! A kernel is a [`Work`]. [`Simd::run`] calls it inside a function compiled for the instruction set, so everything on the
//! way from there to a register operation must be `#[inline(always)]`.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod portable;

use super::encode::tiles::{Element, Product};
use crate::WeightDtype;
use bytemuck::Pod;

/// Something to compute with the registers of `S`.
pub(super) trait Work<S: Simd> {
    type Output;

    /// Implementations are `#[inline(always)]`.
    fn run(self, simd: S) -> Self::Output;
}

/// Registers of `LANES` f32, and the proof that they exist.
pub(super) trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    type Register: Copy;
    /// `[f32; LANES]` in memory.
    type Lanes: Pod + AsRef<[f32]> + AsMut<[f32]>;
    /// The bytes of `LANES` numbers of 4 bytes, at any alignment.
    type Bytes4: Pod + AsMut<[u8]>;
    /// The bytes of `LANES` numbers of 2 bytes, at any alignment.
    type Bytes2: Pod + AsMut<[u8]>;

    const LANES: usize;
    /// Registers of tokens and number of latents whose products [`super::encode::tiles`] keeps in registers.
    const TILE: (usize, usize);
    /// Whether [`Simd::multiply_add_pairs`] exists.
    const PAIRS: bool = false;

    /// Calls `work` in a function compiled for these instructions.
    fn run<W: Work<Self>>(self, work: W) -> W::Output;

    /// Calls [`Product::run`] with [`Simd::TILE`], or with fewer registers where the panel has fewer.
    fn multiply_tile<E: Element>(self, product: Product<'_, Self>);

    fn splat(self, value: f32) -> Self::Register;
    fn load(self, lanes: &Self::Lanes) -> Self::Register;
    fn store(self, register: Self::Register, lanes: &mut Self::Lanes);
    fn load_f32(self, bytes: &Self::Bytes4) -> Self::Register;
    fn load_f16(self, bytes: &Self::Bytes2) -> Self::Register;
    fn load_bf16(self, bytes: &Self::Bytes2) -> Self::Register;
    fn add(self, a: Self::Register, b: Self::Register) -> Self::Register;
    fn max(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// `a * b + c`, rounded once where the CPU can.
    fn multiply_add(self, a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register;
    /// `a[2i] * b[2i] + a[2i + 1] * b[2i + 1] + c[i]` of registers `a` and `b` of bf16 pairs, the sum in f32.
    ///
    /// # Panics
    /// Unless [`Simd::PAIRS`].
    #[inline(always)]
    fn multiply_add_pairs(
        self,
        _a: Self::Register,
        _b: Self::Register,
        _c: Self::Register,
    ) -> Self::Register {
        unreachable!("no instruction for pairs of bf16")
    }
    /// The sum of all lanes, in one fixed order.
    fn sum(self, a: Self::Register) -> f32;
    /// Bit `i` is set unless `a[i] <= b[i]`: where it is larger, and where one of them is NaN.
    fn above(self, a: Self::Register, b: Self::Register) -> u32;
    /// Asks for the cache line at `address`, which need not be one's own.
    fn prefetch(self, address: *const u8);

    #[inline(always)]
    fn zero(self) -> Self::Register {
        self.splat(0.0)
    }
}

/// How a row of weights becomes registers: one type per dtype, so that the choice is made outside the loops.
pub(super) trait Stored {
    const DTYPE: WeightDtype;
    /// The bytes of one register.
    type Bytes<S: Simd>: Pod + AsMut<[u8]>;

    fn load<S: Simd>(simd: S, bytes: &Self::Bytes<S>) -> S::Register;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Stored for F32 {
    const DTYPE: WeightDtype = WeightDtype::F32;
    type Bytes<S: Simd> = S::Bytes4;

    #[inline(always)]
    fn load<S: Simd>(simd: S, bytes: &S::Bytes4) -> S::Register {
        simd.load_f32(bytes)
    }
}

impl Stored for F16 {
    const DTYPE: WeightDtype = WeightDtype::F16;
    type Bytes<S: Simd> = S::Bytes2;

    #[inline(always)]
    fn load<S: Simd>(simd: S, bytes: &S::Bytes2) -> S::Register {
        simd.load_f16(bytes)
    }
}

impl Stored for Bf16 {
    const DTYPE: WeightDtype = WeightDtype::Bf16;
    type Bytes<S: Simd> = S::Bytes2;

    #[inline(always)]
    fn load<S: Simd>(simd: S, bytes: &S::Bytes2) -> S::Register {
        simd.load_bf16(bytes)
    }
}
