//! Registers for any CPU: arrays that the compiler turns into whatever the target has.

use half::{bf16, f16};

use super::{Simd, Work};
use crate::kernels::encode::tiles::{Element, Product};

const LANES: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Portable;

impl Simd for Portable {
    type Register = [f32; LANES];
    type Lanes = [f32; LANES];
    type Bytes4 = [u8; 4 * LANES];
    type Bytes2 = [u8; 2 * LANES];

    const LANES: usize = LANES;
    // Of the shapes tried on x86-64 without extensions the fastest by 1.3.
    const TILE: (usize, usize) = (1, 6);

    #[inline(always)]
    fn run<W: Work<Self>>(self, work: W) -> W::Output {
        work.run(self)
    }

    #[inline(always)]
    fn multiply_tile<E: Element>(self, product: Product<'_, Self>) {
        product.run::<E, 1, 6>(self);
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> [f32; LANES] {
        *lanes
    }

    #[inline(always)]
    fn store(self, register: [f32; LANES], lanes: &mut [f32; LANES]) {
        *lanes = register;
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> [f32; LANES] {
        let (numbers, _) = bytes.as_chunks::<4>();
        std::array::from_fn(|lane| f32::from_le_bytes(numbers[lane]))
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> [f32; LANES] {
        let (numbers, _) = bytes.as_chunks::<2>();
        std::array::from_fn(|lane| f16::from_le_bytes(numbers[lane]).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> [f32; LANES] {
        let (numbers, _) = bytes.as_chunks::<2>();
        std::array::from_fn(|lane| bf16::from_le_bytes(numbers[lane]).to_f32())
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn max(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn multiply_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        // Not `f32::mul_add`, which is a call into libm where the target has no instruction for it.
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn sum(self, a: [f32; LANES]) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    fn above(self, a: [f32; LANES], b: [f32; LANES]) -> u32 {
        // All lanes are compared before any is looked at, which leaves the common case, none, to the registers.
        let above: [bool; LANES] =
            std::array::from_fn(|lane| a[lane] > b[lane] || a[lane].is_nan() || b[lane].is_nan());
        above.into_iter().enumerate().map(|(lane, above)| u32::from(above) << lane).sum()
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
}
