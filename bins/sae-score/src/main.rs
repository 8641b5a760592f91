//! Score sparse autoencoders and what is said of their features.

mod chance;
mod clip;
mod distinct;
mod explained;
mod features;
mod images;
mod iou;
mod judge;
mod models;
mod monosemanticity;
mod other_texts;
mod pictures;
mod reconstruction;
mod record;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use model_kit::TorchArgs;
use stage_kit::CommonArgs;

/// Score sparse autoencoders and what is said of their features
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    score: Score,
    #[command(flatten)]
    torch: TorchArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Score {
    /// How well autoencoders stand in for the activations of the model they were trained on
    Reconstruction(Box<reconstruction::ReconstructionArgs>),
    /// Whether a feature is on where its explanation says: overlap with what the explanation names
    #[command(after_help = iou::EXAMPLE)]
    Iou(Box<iou::IouArgs>),
    /// How near an explanation is to the images in which its feature is strong, as CLIP sees them
    #[command(after_help = clip::EXAMPLE)]
    Clip(Box<clip::ClipArgs>),
    /// Whether a judge tells by the explanation samples in which the feature is on from others in which it is off
    #[command(after_help = judge::DETECTION_EXAMPLE)]
    Detection(Box<judge::DetectionArgs>),
    /// Whether a judge tells by the explanation where in a sample the feature is on
    #[command(after_help = judge::FUZZ_EXAMPLE)]
    Fuzz(Box<judge::FuzzArgs>),
    /// How alike the images are in which a feature is strong; needs no explanation
    #[command(after_help = monosemanticity::EXAMPLE)]
    Monosemanticity(Box<monosemanticity::MonosemanticityArgs>),
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        match &args.score {
            Score::Reconstruction(score) => reconstruction::run(score, args.torch, &args.common),
            Score::Iou(score) => iou::run(score, args.torch, &args.common),
            Score::Clip(score) => clip::run(score, args.torch, &args.common),
            Score::Monosemanticity(score) => monosemanticity::run(score, args.torch, &args.common),
            Score::Detection(score) => judge::detection(score, &args.common),
            Score::Fuzz(score) => judge::fuzz(score, &args.common),
        }
    })
}
