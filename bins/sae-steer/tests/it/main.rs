//! The binary from outside: a small model, made-up features, scenes, and a judge on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod judging;
mod running;
mod support;
mod sweeping;
