//! Every kernel this machine has against f64, over shapes with tails, ties, nothing at all, and numbers that are none.
//!
//! * [`encode`]: a grid of shapes, dtypes, precisions, selections and threads.
//! * [`exact`]: integers, whose sums are exact, so that ties are real and results equal to the bit.
//! * [`special`]: zeros, infinities, denormals, the largest numbers, thresholds; what is refused and how it is named.
//! * [`decode`] and [`gradients`]: against f64, in every layout.
//! * [`properties`]: random shapes, and buffers that serve them all.
//!
//! Under Miri and valgrind the grids shrink (`support::small`). Miri sees the portable kernel alone, valgrind also AVX2:
//!
//! ```text
//! MIRIFLAGS="-Zmiri-tree-borrows -Zmiri-ignore-leaks -Zmiri-disable-isolation" \
//!     cargo +nightly miri test -p sae-core --test kernels
//! SAE_CORE_SMALL_GRIDS=1 valgrind --error-exitcode=1 --fair-sched=yes target/debug/deps/kernels-<hash>
//! ```
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::needless_pass_by_value, reason = "array views are passed by value, as ndarray does")]

mod decode;
mod encode;
mod exact;
mod gradients;
mod properties;
mod special;
mod support;
