//! The recipe that trains shapes-lmm, the small LLaVA-NeXT in `assets/`, and the measure of how well it sees.
#![expect(clippy::print_stderr, reason = "a recipe talks to the person running it")]

mod evaluate;
mod model_folder;
mod packing;
mod parameters;
mod scenes;
mod train;

use clap::{Parser, Subcommand};

/// Train and measure shapes-lmm, a LLaVA-NeXT small enough for two CPU cores
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train from random parameters and write a Hugging Face model folder
    Train(train::TrainArgs),
    /// Ask a model about unseen scenes and count exact answers
    Evaluate(evaluate::EvaluateArgs),
}

fn main() -> anyhow::Result<()> {
    torch_nn::keep_freed_memory();
    match Args::parse().command {
        Command::Train(args) => train::train(&args),
        Command::Evaluate(args) => evaluate::evaluate(&args),
    }
}
