//! `sae-convert`: sparse autoencoders and activation caches from one file format to another.

mod cache;
mod check;
mod sae;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stage_kit::{CommonArgs, UsageError};

/// Convert sparse autoencoders and activation caches between file formats, and check the result.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Convert autoencoders between sparsify (and msae) and SAELens.
    #[command(after_help = sae::EXAMPLE)]
    Sae(sae::SaeArgs),
    /// Convert an activation cache from or to the native format.
    #[command(after_help = cache::EXAMPLE)]
    Cache(cache::CacheArgs),
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    args.common.init_logging();
    if args.common.world()?.size > 1 {
        return Err(
            UsageError::new("sae-convert works alone: run one, without --rank and --world-size").into()
        );
    }
    match args.command {
        Command::Sae(options) => sae::convert(&options, args.common.seed),
        Command::Cache(options) => cache::convert(&options),
    }
}

fn main() -> ExitCode {
    stage_kit::main_with(run)
}
