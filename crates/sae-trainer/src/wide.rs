//! Loops compiled for wider registers than the target's least, where the CPU has them.
//!
//! The build is for any x86-64, whose registers hold 4 numbers; AVX2's hold 8. Neither fuses a product with a sum here, and
//! all else is rounded as IEEE 754 says, so the bits are the same.
#![expect(unsafe_code, reason = "calls functions compiled for instructions after asking the CPU")]

/// A loop. Everything on the way from [`Work::run`] to its numbers must be `#[inline(always)]`.
pub(crate) trait Work {
    type Output;

    fn run(self) -> Self::Output;
}

/// Runs `work` with the widest registers there are.
#[inline]
pub(crate) fn wide<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<W: Work>(work: W) -> W::Output {
            work.run()
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2.
            return unsafe { with_avx2(work) };
        }
    }
    work.run()
}
