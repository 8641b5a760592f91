//! What the pipeline tests share: a scratch folder in which built binaries run as a user would run them, and made-up
//! inputs, sound and broken, that cost no training.
//!
//! [`chat`] is a server that answers as a test tells it to, for the binaries that ask one; [`caches`] writes caches whose features are
//! known, for those that read one.
//!
//! Nothing here links libtorch; the binaries under test do. They are looked for beside the test executable, so they have
//! to be built first, with the same profile: `cargo build --workspace --bins`.

pub mod caches;
pub mod chat;
mod inputs;
mod results;
mod run;
mod scratch;

pub use run::Run;
pub use scratch::Scratch;
