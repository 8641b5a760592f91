//! Every score of every feature in one table, beside the concept that the data set's masks say it stands for.

mod page;
mod read;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sae_types::HookPoint;
use stage_kit::{CommonArgs, write_whole};

/// Draw one HTML page: what sae-score's stages say of each feature, beside the truth
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Specific features with their concepts, as feature-page reports them
    #[arg(long)]
    report: PathBuf,
    /// Hook point of the features
    #[arg(long)]
    hook: HookPoint,
    /// Folder that sae-score iou wrote
    #[arg(long)]
    iou: PathBuf,
    /// Folder that sae-score clip wrote
    #[arg(long)]
    clip: PathBuf,
    /// Folder that sae-score fuzz wrote
    #[arg(long)]
    fuzz: PathBuf,
    /// Folder that sae-score monosemanticity wrote
    #[arg(long)]
    monosemanticity: PathBuf,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        run(&args)
    })
}

fn run(args: &Args) -> Result<()> {
    let scores = read::all(args)?;
    write_whole(&args.out, page::html(&scores).as_bytes())?;
    tracing::info!(features = scores.rows.len(), "wrote {}", args.out.display());
    Ok(())
}
