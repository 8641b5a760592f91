//! `shapes-effects judge`: what steering and attribution found, held against the truth.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ask::{FEATURES, Features, QUESTIONS, Question};
use crate::attribution::{self, Attribution};
use crate::page;
use crate::steering::{self, Steering};

#[derive(Debug, clap::Args)]
pub(crate) struct JudgeArgs {
    /// Folder that `ask` made
    #[arg(long)]
    questions: PathBuf,
    /// Data set that the questions are about
    #[arg(long)]
    dataset: String,
    /// What the questions are about
    #[arg(long, default_value = "circle")]
    object: String,
    /// Folder that sae-steer sweep wrote
    #[arg(long)]
    sweep: PathBuf,
    /// Folder that sae-attribute run wrote
    #[arg(long)]
    effects: PathBuf,
    /// File to write, JSON
    #[arg(long)]
    out: PathBuf,
    /// Also write an HTML page of scenes
    #[arg(long)]
    page: Option<PathBuf>,
}

#[derive(Serialize)]
struct Judged {
    steering: Steering,
    attribution: Attribution,
}

pub(crate) fn run(args: &JudgeArgs, seed: u64) -> Result<()> {
    let questions: Vec<Question> = read(&args.questions.join(QUESTIONS))?;
    let features: Features = read(&args.questions.join(FEATURES))?;
    let concept = &questions.first().context("there is no question")?.baseline;
    let steering = steering::judge(&args.sweep, &features, concept)?;
    let attribution =
        attribution::judge(&args.effects, &questions, &args.dataset, &features.hook, &args.object, seed)?;
    if let Some(path) = &args.page {
        let html = page::html(&questions, &features, &steering, &attribution)?;
        fs::write(path, html).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = serde_json::to_string_pretty(&Judged { steering, attribution })? + "\n";
    fs::write(&args.out, &text).with_context(|| format!("cannot write {}", args.out.display()))?;
    tracing::info!("wrote {}", args.out.display());
    Ok(())
}

fn read<T: DeserializeOwned>(path: &std::path::Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} was not written by `ask`", path.display()))
}
