//! What the pipeline tests share: a scratch folder in which built binaries run as a user would run them, and made-up
//! inputs, sound and broken, that cost no training.
//!
//! Nothing here links libtorch; the binaries under test do. They are looked for beside the test executable, so they have
//! to be built first, with the same profile: `cargo build --workspace --bins`.

mod inputs;
mod run;
mod scratch;

pub use run::Run;
pub use scratch::Scratch;
