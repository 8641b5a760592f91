//! AVX2 registers of 8 f32, with FMA and F16C.
#![expect(unsafe_code, reason = "intrinsics; a value of Avx2 is the proof that the CPU has them")]

use std::arch::x86_64::{
    __m256, _CMP_NLE_UQ, _MM_HINT_T1, _mm_add_ps, _mm_cvtss_f32, _mm_hadd_ps, _mm_loadu_si128, _mm_prefetch,
    _mm256_add_ps, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps,
    _mm256_movemask_ps, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::{Simd, Work};
use crate::kernels::encode::tiles::{Element, Product};

const LANES: usize = 8;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    pub(in super::super) fn new() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        detected.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<W: Work<Avx2>>(simd: Avx2, work: W) -> W::Output {
    work.run(simd)
}

impl Simd for Avx2 {
    type Register = __m256;
    type Lanes = [f32; LANES];
    type Bytes4 = [u8; 4 * LANES];
    type Bytes2 = [u8; 2 * LANES];

    const LANES: usize = LANES;
    // 12 of 16 registers hold sums.
    const TILE: (usize, usize) = (2, 6);

    #[inline(always)]
    fn run<W: Work<Self>>(self, work: W) -> W::Output {
        // SAFETY: Avx2::new, the only constructor, saw avx2, fma and f16c.
        unsafe { with_avx2(self, work) }
    }

    #[inline(always)]
    fn multiply_tile<E: Element>(self, product: Product<'_, Self>) {
        match product.width {
            1 => product.run::<E, 1, 6>(self),
            _ => product.run::<E, 2, 6>(self),
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves avx2.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> __m256 {
        // SAFETY: `self` proves avx2; `lanes` is 8 f32, and the load asks for no alignment.
        unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, register: __m256, lanes: &mut [f32; LANES]) {
        // SAFETY: `self` proves avx2; `lanes` is 8 f32, and the store asks for no alignment.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), register) }
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> __m256 {
        // SAFETY: `self` proves avx2; `bytes` is 32 bytes, and the load asks for no alignment.
        unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> __m256 {
        // SAFETY: `self` proves f16c; `bytes` is 16 bytes, and the load asks for no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> __m256 {
        // SAFETY: `self` proves avx2; `bytes` is 16 bytes, and the load asks for no alignment.
        unsafe {
            let halves = _mm_loadu_si128(bytes.as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves avx2.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves avx2.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves fma.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: `self` proves avx2.
        unsafe {
            let halves = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pairs = _mm_hadd_ps(halves, halves);
            _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs))
        }
    }

    #[inline(always)]
    fn above(self, a: __m256, b: __m256) -> u32 {
        // SAFETY: `self` proves avx2.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLE_UQ>(a, b)) as u32 }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch reads nothing and faults nowhere, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
