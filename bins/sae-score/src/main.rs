//! Score sparse autoencoders and what is said of their features.

mod reconstruction;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use model_kit::TorchArgs;
use stage_kit::CommonArgs;

/// Score sparse autoencoders
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    score: Score,
    #[command(flatten)]
    torch: TorchArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Score {
    /// How well autoencoders stand in for the activations of the model they were trained on
    Reconstruction(reconstruction::ReconstructionArgs),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.score {
            Score::Reconstruction(score) => reconstruction::run(score, args.torch, &args.common),
        }
    })
}
