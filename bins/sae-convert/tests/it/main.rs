//! `sae-convert` from outside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod caches;
mod saes;
mod support;
