//! What steering and attribution do to shapes-lmm-s, held against scenes whose truth is known.

mod ask;
mod attribution;
mod judge;
mod page;
mod steering;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stage_kit::CommonArgs;

/// Ask shapes-lmm-s about scenes, steered and unsteered, and count what changes
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
    /// Choose scenes and features: writes what sae-steer sweep and sae-attribute run are given
    Ask(ask::AskArgs),
    /// Hold what both wrote against the truth
    Judge(judge::JudgeArgs),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.command {
            Command::Ask(ask) => ask::run(ask, args.common.seed),
            Command::Judge(judge) => judge::run(judge, args.common.seed),
        }
    })
}
