//! NEON registers of 4 f32, on every 64-bit Arm.
#![expect(unsafe_code, reason = "intrinsics; a value of Neon is the proof that the CPU has them")]

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vaddvq_f32, vcleq_f32, vdupq_n_f32, vfmaq_f32, vget_lane_u64, vld1_u8, vld1q_f32,
    vld1q_u8, vmaxq_f32, vmovn_u32, vmvnq_u32, vreinterpret_u16_u8, vreinterpret_u64_u16,
    vreinterpretq_f32_u8, vreinterpretq_f32_u32, vshll_n_u16, vst1q_f32,
};

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Simd, Work};
use crate::kernels::encode::tiles::{Element, Product};

const LANES: usize = 4;

/// Proof that the CPU has NEON.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Neon(());

impl Neon {
    pub(in super::super) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

#[target_feature(enable = "neon")]
fn with_neon<W: Work<Neon>>(simd: Neon, work: W) -> W::Output {
    work.run(simd)
}

impl Simd for Neon {
    type Register = float32x4_t;
    type Lanes = [f32; LANES];
    type Bytes4 = [u8; 4 * LANES];
    type Bytes2 = [u8; 2 * LANES];

    const LANES: usize = LANES;
    // 24 of 32 registers hold sums.
    const TILE: (usize, usize) = (4, 6);

    #[inline(always)]
    fn run<W: Work<Self>>(self, work: W) -> W::Output {
        // SAFETY: Neon::new, the only constructor, saw neon.
        unsafe { with_neon(self, work) }
    }

    #[inline(always)]
    fn multiply_tile<E: Element>(self, product: Product<'_, Self>) {
        match product.width {
            1 => product.run::<E, 1, 6>(self),
            2 => product.run::<E, 2, 6>(self),
            3 => product.run::<E, 3, 6>(self),
            _ => product.run::<E, 4, 6>(self),
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        // SAFETY: `self` proves neon.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> float32x4_t {
        // SAFETY: `self` proves neon; `lanes` is 4 f32.
        unsafe { vld1q_f32(lanes.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, register: float32x4_t, lanes: &mut [f32; LANES]) {
        // SAFETY: `self` proves neon; `lanes` is 4 f32.
        unsafe { vst1q_f32(lanes.as_mut_ptr(), register) }
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> float32x4_t {
        // SAFETY: `self` proves neon; `bytes` is 16 bytes, loaded as bytes and so at any alignment.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(bytes.as_ptr())) }
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> float32x4_t {
        // The conversion intrinsic is not stable; `half` picks the instruction at run time.
        let (halves, _) = bytes.as_chunks::<2>();
        let halves: [f16; LANES] = std::array::from_fn(|lane| f16::from_le_bytes(halves[lane]));
        let mut lanes = [0.0; LANES];
        halves.convert_to_f32_slice(&mut lanes);
        self.load(&lanes)
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> float32x4_t {
        // SAFETY: `self` proves neon; `bytes` is 8 bytes, loaded as bytes and so at any alignment.
        unsafe {
            let halves = vreinterpret_u16_u8(vld1_u8(bytes.as_ptr()));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
        }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves neon.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves neon.
        unsafe { vmaxq_f32(a, b) }
    }

    #[inline(always)]
    fn multiply_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves neon.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: `self` proves neon.
        unsafe { vaddvq_f32(a) }
    }

    #[inline(always)]
    fn above(self, a: float32x4_t, b: float32x4_t) -> u32 {
        // SAFETY: `self` proves neon.
        let lanes =
            unsafe { vget_lane_u64::<0>(vreinterpret_u64_u16(vmovn_u32(vmvnq_u32(vcleq_f32(a, b))))) };
        // One bit of each 16-bit lane, gathered into the lowest four.
        let bits = lanes & 0x0008_0004_0002_0001;
        ((bits | bits >> 16 | bits >> 32 | bits >> 48) & 0xf) as u32
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {
        // The intrinsic is not stable; the hardware follows the streams of these kernels by itself.
    }
}
