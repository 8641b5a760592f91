//! The built binaries, one after the other and one against bad input: `cargo build --workspace --bins` comes first.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod attributing;
mod bad_data;
mod bad_model;
mod bad_sae;
mod browser;
mod caching;
mod determinism;
mod distributed;
mod explaining;
mod flags;
mod formats;
mod imperfect;
mod inspect;
mod interruption;
mod judge;
mod launching;
mod resume;
mod scores;
mod training;
mod whole_way;
