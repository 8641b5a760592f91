//! `sae-data`: makes data sets.

mod shapes;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stage_kit::{CommonArgs, UsageError};

/// Make data sets for the other stages.
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
    /// Write the embedded data set: seeded scenes of coloured shapes with captions, questions and masks.
    Shapes(shapes::ShapesArgs),
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    args.common.init_logging();
    if args.common.world()?.size > 1 {
        return Err(UsageError::new("sae-data works alone: run one, without --rank and --world-size").into());
    }
    match args.command {
        Command::Shapes(options) => shapes::write(&options, args.common.seed),
    }
}

fn main() -> ExitCode {
    stage_kit::main_with(run)
}
