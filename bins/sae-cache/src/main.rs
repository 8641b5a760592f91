//! Cache a sparse autoencoder's activations over a data set, sorted by feature.

mod args;
mod compute;
mod images;
mod inspect;
mod merge;
mod plan;
mod record;
mod saes;
mod stage;
mod text;
mod writing;

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
    #[command(after_help = images::EXAMPLE)]
    Images(Box<images::ImagesArgs>),
    /// Run token files or conversations through the model and store which features fire on which token
    #[command(after_help = text::EXAMPLE)]
    Text(Box<text::TextArgs>),
    /// Join the parts that workers wrote, if the last of them could not
    Merge(merge::MergeArgs),
    /// Print what a cache holds: its features, their top samples, what fires together, and what is wrong with it
    Inspect(inspect::InspectArgs),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.command {
            Command::Images(images) => images::run(images, args.torch, &args.common),
            Command::Text(text) => text::run(text, args.torch, &args.common),
            Command::Merge(merge) => merge::run(merge, &args.common),
            Command::Inspect(inspect) => inspect::run(inspect, &args.common),
        }
    })
}
