//! Cache a sparse autoencoder's activations over a data set, sorted by feature.

mod images;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use model_kit::TorchArgs;
use stage_kit::CommonArgs;

/// Cache a sparse autoencoder's activations over a data set, sorted by feature
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    torch: TorchArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the model each image with no words and store which features fire on which patch
    Images(images::ImagesArgs),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.command {
            Command::Images(images) => images::run(images, args.torch, &args.common),
        }
    })
}
