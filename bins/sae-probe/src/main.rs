//! List the features that an image or a prompt turns on.

mod measure;
mod output;
mod probe;

use std::process::ExitCode;

use clap::Parser;
use model_kit::TorchArgs;
use stage_kit::CommonArgs;

/// List the features of a sparse autoencoder that an image, a prompt, or both turn on most
#[derive(Debug, Parser)]
#[command(version, after_help = probe::EXAMPLE)]
struct Args {
    #[command(flatten)]
    probe: probe::ProbeArgs,
    #[command(flatten)]
    torch: TorchArgs,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        probe::run(&args.probe, args.torch, &args.common)
    })
}
