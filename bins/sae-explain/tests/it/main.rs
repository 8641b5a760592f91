//! `sae-explain` from outside: its binary, real HTTP servers on loopback, small caches on disk.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "tests and their helpers")]

mod disk;
mod follow;
mod images;
mod kills;
mod refusals;
mod support;
mod text;
mod throughput;
