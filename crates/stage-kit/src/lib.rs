//! What every lmm-sae binary shares: logging, progress, run manifest, atomic output folders, checkpoints, TensorBoard
//! events, ranks, exit codes.
//!
//! It knows nothing of models, SAEs or data. A binary is a `main` of this shape:
//!
//! ```no_run
//! use clap::Parser;
//! use stage_kit::{CommonArgs, Existing, OutputFolder, Progress, RunManifest};
//!
//! #[derive(Parser)]
//! #[command(version)]
//! struct Args {
//!     /// Where to write.
//!     #[arg(long)]
//!     save_dir: std::path::PathBuf,
//!     #[command(flatten)]
//!     common: CommonArgs,
//! }
//!
//! fn run() -> anyhow::Result<()> {
//!     let args = Args::parse();
//!     args.common.init_logging();
//!     let mut manifest = RunManifest::start("hello", env!("CARGO_PKG_VERSION"));
//!     manifest.seed = Some(args.common.seed);
//!     let output = OutputFolder::create(&args.save_dir, Existing::Refuse)?;
//!     let progress = Progress::new("hello", "lines", Some(1));
//!     std::fs::write(output.path().join("hello.txt"), "hello\n")?;
//!     progress.inc(1);
//!     progress.finish();
//!     manifest.count("lines", 1);
//!     Ok(output.commit(manifest)?)
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     stage_kit::main_with(run)
//! }
//! ```
//!
//! Exit codes: 0 done (also when the reader of stdout went away), 1 failed, 2 wrong usage, 128 + the
//! signal's number when interrupted. stdout carries data and is written through [`stdout`]; the log,
//! the bars and the errors are stderr's.
//!
//! The flags and the opening of a model are `model-kit`'s, so that binaries without one do without libtorch.

mod args;
mod checkpoint;
mod error;
mod hash;
mod interrupt;
mod logging;
mod manifest;
mod output;
mod prefetch;
mod progress;
mod resources;
mod run;
mod tensorboard;
mod world;

pub use args::CommonArgs;
pub use checkpoint::{Checkpoint, Checkpoints, LOCK_FILE};
pub use error::{Interrupted, KitError, UsageError};
pub use hash::{hash_bytes, hash_file, hash_files};
pub use interrupt::Interrupt;
pub use manifest::{Input, RunManifest, write_whole};
pub use output::{Existing, OutputFolder};
pub use prefetch::{Prefetched, prefetch};
pub use progress::Progress;
pub use resources::{HostMemory, cores, format_bytes, free_disk, host_name};
pub use run::{Stdout, main_with, stdout};
pub use tensorboard::EventWriter;
pub use world::{World, WorldArgs};
