//! Steer a large multimodal model by the features of a sparse autoencoder, and measure what that moves.

mod answering;
mod args;
mod judge;
mod prompts;
mod published;
mod record;
mod run;
mod store;
mod sweep;
mod table;
mod verdict;

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
    /// Change features one by one, at several strengths and on several prompts, and measure what that moves
    #[command(after_help = sweep::EXAMPLE)]
    Sweep(Box<sweep::SweepArgs>),
    /// Let a model sort what each change of a sweep did: none, mention, reasoning, unrelated
    #[command(after_help = judge::EXAMPLE)]
    Judge(Box<judge::JudgeArgs>),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.command {
            Command::Run(run) => run::run(run, &args.common),
            Command::Sweep(sweep) => sweep::run(sweep, &args.common),
            Command::Judge(judge) => judge::run(judge, &args.common),
        }
    })
}
