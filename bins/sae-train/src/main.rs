//! Train sparse autoencoders on the hidden states of a large multimodal model.

mod args;
mod data;
mod metrics;
mod order;
mod plan;
mod preflight;
mod rows;
mod stage;
mod state;

use std::process::ExitCode;

use clap::Parser;
use model_kit::TorchArgs;
use stage_kit::CommonArgs;

/// Train sparse autoencoders and transcoders on the hidden states of a LLaVA-NeXT model
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    stage: args::StageArgs,
    #[command(flatten)]
    torch: TorchArgs,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        stage::run(&args.stage, args.torch, &args.common)
    })
}
