//! Train a sparse autoencoder on a layer of a large multimodal model.

mod stage;

use std::process::ExitCode;

use clap::Parser;
use model_kit::TorchArgs;
use stage_kit::CommonArgs;

/// Train TopK sparse autoencoders on the hidden states of a LLaVA-NeXT model
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    stage: stage::StageArgs,
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
