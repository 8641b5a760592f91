//! The server from outside: its binary, a small model, and HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod answers;
mod http;
mod limits;
mod server;
mod steering;
