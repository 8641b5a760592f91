//! Find the features that a model's answer rests on.

mod asking;
mod check;
mod data;
mod filters;
mod parts;
mod run;
mod store;
mod views;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use model_kit::TorchArgs;
use stage_kit::CommonArgs;

/// Find the features of a sparse autoencoder that a model's answer rests on
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
    /// What each feature adds, on each token, to the logit of an answer over that of a baseline
    #[command(after_help = run::EXAMPLE)]
    Run(Box<run::RunArgs>),
    /// How far a fast method can be trusted: its rank correlation and slope against switching features off one by one
    Check(Box<check::CheckArgs>),
    /// The features that support the answer most, over image and text tokens apart: a filters file and heat maps
    Filters(filters::FiltersArgs),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.command {
            Command::Run(run) => run::run(run, args.torch, &args.common),
            Command::Check(check) => check::run(check, args.torch, &args.common),
            Command::Filters(filters) => filters::run(filters, &args.common),
        }
    })
}
