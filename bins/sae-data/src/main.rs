//! `sae-data`: makes data sets.

mod ade20k;
mod annotated;
mod cache_set;
mod coco;
mod llava;
mod shapes;
mod shards;
mod text;

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
    #[command(after_help = shapes::EXAMPLE)]
    Shapes(shapes::ShapesArgs),
    /// Pack LLaVA's JSON and its image files into parquet files.
    #[command(after_help = llava::EXAMPLE)]
    Llava(llava::LlavaArgs),
    /// Pack images and the masks of their COCO annotations into parquet files.
    #[command(after_help = coco::EXAMPLE)]
    Coco(coco::CocoArgs),
    /// Pack ADE20K's images and the masks of its scene parsing benchmark into parquet files.
    #[command(name = "ade20k", after_help = ade20k::EXAMPLE)]
    Ade20k(ade20k::Ade20kArgs),
    /// Join data sets, or shares of them, into the set of images a cache is made of.
    #[command(after_help = cache_set::EXAMPLE)]
    CacheSet(cache_set::CacheSetArgs),
    /// Turn texts into a file of token ids in pieces of one length.
    #[command(after_help = text::EXAMPLE)]
    Text(text::TextArgs),
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    args.common.init_logging();
    if args.common.world()?.size > 1 {
        return Err(UsageError::new("sae-data works alone: run one, without --rank and --world-size").into());
    }
    let seed = args.common.seed;
    match args.command {
        Command::Shapes(options) => shapes::write(&options, seed),
        Command::Llava(options) => llava::write(&options, seed),
        Command::Coco(options) => coco::write(&options, seed),
        Command::Ade20k(options) => ade20k::write(&options, seed),
        Command::CacheSet(options) => cache_set::write(&options, seed),
        Command::Text(options) => text::write(&options, seed),
    }
}

fn main() -> ExitCode {
    stage_kit::main_with(run)
}
