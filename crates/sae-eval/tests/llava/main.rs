//! Against a small random LLaVA-NeXT: known outcomes, a plain computation, padding and batch size.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod direct;
mod fixture;
mod outcomes;
