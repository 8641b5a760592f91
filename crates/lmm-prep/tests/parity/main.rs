//! Parity with PIL and transformers, stage by stage, against the fixtures in `tests/fixtures`.

mod chat;
mod configs;
mod decode;
mod geometry;
mod models;
mod pixels;
mod resize;
mod support;
