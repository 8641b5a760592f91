//! What the benches share: one table of shapes, seeded inputs, the dense way over `gemm`, and the machine's peaks.
//!
//! `benches/README.md` says how to run them.

pub mod checkpoint;
pub mod counting;
pub mod dense;
pub mod inputs;
pub mod roofline;
mod shapes;

pub use shapes::{SHAPES, Shape, TOKENS};
