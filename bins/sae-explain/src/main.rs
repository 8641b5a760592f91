//! Let a larger multimodal model explain a sparse autoencoder's features, through any OpenAI-compatible server.

mod consistency;
mod follow;
mod images;
mod publish;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stage_kit::CommonArgs;

/// Let a larger multimodal model explain a sparse autoencoder's features
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
    /// Show the images a feature fires on most, lit where it fires, and ask what the lit parts share
    #[command(after_help = images::EXAMPLE)]
    Images(Box<images::ImagesArgs>),
    /// Show the pieces of text a feature fires on most, its tokens marked, and ask what they share
    #[command(after_help = text::EXAMPLE)]
    Text(Box<text::TextArgs>),
    /// Shorten each explanation to the thing it is about
    Refine(Box<follow::FollowArgs>),
    /// Sort each explanation into scene, object, part, material, texture or color
    Label(Box<follow::FollowArgs>),
    /// Ask a judge whether each explanation fits the images, and give the share with its confidence interval
    #[command(after_help = consistency::EXAMPLE)]
    Consistency(Box<consistency::ConsistencyArgs>),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.command {
            Command::Images(images) => images::run(images, &args.common),
            Command::Text(text) => text::run(text, &args.common),
            Command::Refine(refine) => follow::run(refine, &follow::REFINE, &args.common),
            Command::Label(label) => follow::run(label, &follow::LABEL, &args.common),
            Command::Consistency(consistency) => consistency::run(consistency, &args.common),
        }
    })
}
