//! Steer a large multimodal model by the features of a sparse autoencoder, and measure what that moves.

mod answering;
mod args;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stage_kit::CommonArgs;

/// Steer a large multimodal model by the features of a sparse autoencoder
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer one prompt as the model is and steered, and show both
    #[command(after_help = run::EXAMPLE)]
    Run(Box<run::SteerArgs>),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.command {
            Command::Run(run) => run::run(run, &args.common),
        }
    })
}
