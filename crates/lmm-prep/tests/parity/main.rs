//! Parity with PIL and transformers, stage by stage, against the fixtures in `tests/fixtures`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

mod chat;
mod configs;
mod decode;
mod geometry;
mod models;
mod pixels;
mod resize;
mod support;
mod turns;
