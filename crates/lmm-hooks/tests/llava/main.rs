//! LLaVA-NeXT against itself, on small random models: hooks, batches, generation, gradients, loading.
//! Agreement with transformers is the business of `tests/parity`.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made should fail its test")]

mod batches;
mod fixture;
mod generation;
mod gradients;
mod hooks;
mod loading;
mod midway;
mod points;
mod quantised;
mod steps;
