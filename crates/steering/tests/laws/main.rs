//! What steering must do, on a small random model.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod by_hand;
mod effects;
mod fixture;
mod laws;
mod masks;
mod reference;
