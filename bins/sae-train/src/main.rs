//! Train sparse autoencoders on the hidden states of a large multimodal model.

mod args;
mod data;
mod metrics;
mod order;
mod plan;
mod preflight;
mod rows;
mod saving;
mod stage;
mod state;
mod team;
mod training;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use model_kit::TorchArgs;
use stage_kit::{CommonArgs, Interrupted};

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

/// Between a process's error and the end of all, so that others that failed too may say so.
const LAST_WORDS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let mut team = None;
    let mut stopped = false;
    let code = stage_kit::main_with(|| {
        let Args { stage, torch, mut common } = Args::parse();
        // One process tells how far the run is; of the others, warnings.
        if common.verbose == 0 && common.world().is_ok_and(|world| world.rank > 0) {
            common.quiet = common.quiet.max(1);
        }
        common.init_logging();
        let result = stage::run(&stage, torch, &common, &mut team);
        stopped = result.as_ref().is_err_and(anyhow::Error::is::<Interrupted>);
        result
    });
    if let Some(team) = team
        && code != ExitCode::SUCCESS
        && !stopped
    {
        // The others would wait.
        std::thread::sleep(LAST_WORDS);
        team.abort();
    }
    code
}
