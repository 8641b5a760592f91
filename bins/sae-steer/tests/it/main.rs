//! The binary from outside: a small model, made-up features, scenes, and a judge on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod judging;
mod running;
#[expect(dead_code, reason = "the server of sae-explain's tests, of which these need less")]
#[path = "../../../sae-explain/tests/it/server.rs"]
mod server;
mod support;
mod sweeping;
