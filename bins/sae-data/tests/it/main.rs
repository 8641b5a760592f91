//! The subcommands of `sae-data` from outside: what they write, and what wrong use and bad places get.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod annotated;
mod cache_set;
mod llava;
mod shapes;
mod support;
mod text;
