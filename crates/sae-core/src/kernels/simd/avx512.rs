//! AVX-512 registers of 16 f32, with AVX512-BF16 also products of bf16 pairs.
#![expect(unsafe_code, reason = "intrinsics; a value of Avx512 is the proof that the CPU has them")]

use std::arch::x86_64::{
    __m512, __m512bh, _CMP_NLE_UQ, _MM_HINT_T1, _mm_prefetch, _mm256_loadu_si256, _mm512_add_ps,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_slli_epi32,
    _mm512_storeu_ps,
};

use super::{Simd, Work};
use crate::kernels::encode::tiles::{Element, Product};

const LANES: usize = 16;

/// Proof that the CPU has AVX-512F, and AVX512-BF16 where `PAIRS`.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx512<const PAIRS: bool>(());

impl Avx512<false> {
    pub(in super::super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Self(()))
    }
}

impl Avx512<true> {
    pub(in super::super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f")]
fn with_avx512<S: Simd, W: Work<S>>(simd: S, work: W) -> W::Output {
    work.run(simd)
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn with_avx512_bf16<S: Simd, W: Work<S>>(simd: S, work: W) -> W::Output {
    work.run(simd)
}

impl<const PAIRS: bool> Simd for Avx512<PAIRS> {
    type Register = __m512;
    type Lanes = [f32; LANES];
    type Bytes4 = [u8; 4 * LANES];
    type Bytes2 = [u8; 2 * LANES];

    const LANES: usize = LANES;
    // 24 of 32 registers hold sums; two hold tokens, the rest broadcast weights.
    const TILE: (usize, usize) = (2, 12);
    const PAIRS: bool = PAIRS;

    #[inline(always)]
    fn run<W: Work<Self>>(self, work: W) -> W::Output {
        if PAIRS {
            // SAFETY: Avx512<true>::new, the only constructor, saw avx512f and avx512bf16.
            unsafe { with_avx512_bf16(self, work) }
        } else {
            // SAFETY: Avx512<false>::new, the only constructor, saw avx512f.
            unsafe { with_avx512(self, work) }
        }
    }

    #[inline(always)]
    fn multiply_tile<E: Element>(self, product: Product<'_, Self>) {
        match product.width {
            1 => product.run::<E, 1, 12>(self),
            _ => product.run::<E, 2, 12>(self),
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves avx512f.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves avx512f; `lanes` is 16 f32, and the load asks for no alignment.
        unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, register: __m512, lanes: &mut [f32; LANES]) {
        // SAFETY: `self` proves avx512f; `lanes` is 16 f32, and the store asks for no alignment.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), register) }
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> __m512 {
        // SAFETY: `self` proves avx512f; `bytes` is 64 bytes, and the load asks for no alignment.
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: `self` proves avx512f, hence avx; `bytes` is 32 bytes, and the load asks for no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: `self` proves avx512f, hence avx; `bytes` is 32 bytes, and the load asks for no alignment.
        unsafe {
            let halves = _mm256_loadu_si256(bytes.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves avx512f.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves avx512f.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves avx512f.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn multiply_add_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        assert!(PAIRS, "no instruction for pairs of bf16");
        // SAFETY: `self` with PAIRS proves avx512bf16; __m512 and __m512bh are 64 bytes without invalid values.
        unsafe {
            let [a, b] = [a, b].map(|pairs| std::mem::transmute::<__m512, __m512bh>(pairs));
            _mm512_dpbf16_ps(c, a, b)
        }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: `self` proves avx512f.
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn above(self, a: __m512, b: __m512) -> u32 {
        // SAFETY: `self` proves avx512f.
        u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(a, b) })
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch reads nothing and faults nowhere, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
