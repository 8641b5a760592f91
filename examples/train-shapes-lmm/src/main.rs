//! The recipes that train the small models in `assets/`, the two shapes-lmm and shapes-clip, and the measure of how well they see.
#![expect(clippy::print_stderr, reason = "a recipe talks to the person running it")]

mod clip_folder;
mod clip_pictures;
mod clip_texts;
mod course;
mod descriptions;
mod evaluate;
mod evaluate_clip;
mod evaluate_explainer;
mod lessons;
mod lit;
mod lit_lessons;
mod model_folder;
mod packing;
mod parameters;
mod patch_words;
mod scenes;
mod train;
mod train_clip;

use clap::{Parser, Subcommand};

/// Train and measure the two shapes-lmm, LLaVA-NeXT models small enough for two CPU cores, and shapes-clip
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train shapes-lmm-s from random parameters and write a Hugging Face model folder
    Train(train::TrainArgs),
    /// Ask shapes-lmm-s about unseen scenes and count exact answers
    Evaluate(evaluate::EvaluateArgs),
    /// Train shapes-lmm-l, which says what the lit parts of several pictures share
    TrainExplainer(train::TrainExplainerArgs),
    /// Ask shapes-lmm-l about unseen sets of pictures and count exact answers
    EvaluateExplainer(evaluate_explainer::EvaluateExplainerArgs),
    /// Train shapes-clip, which tells how well a text fits a picture
    TrainClip(train_clip::TrainClipArgs),
    /// Hold all descriptions against unseen pictures and count where the cosines are right
    EvaluateClip(evaluate_clip::EvaluateClipArgs),
}

fn main() -> anyhow::Result<()> {
    torch_nn::keep_freed_memory();
    match Args::parse().command {
        Command::Train(args) => train::train(&args),
        Command::Evaluate(args) => evaluate::evaluate(&args),
        Command::TrainExplainer(args) => train::train_explainer(&args),
        Command::EvaluateExplainer(args) => evaluate_explainer::evaluate(&args),
        Command::TrainClip(args) => train_clip::train(&args),
        Command::EvaluateClip(args) => evaluate_clip::evaluate(&args),
    }
}
