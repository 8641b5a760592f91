//! `sae-explain refine` and `label`: explanations made shorter, and sorted.

use std::path::{Path, PathBuf};

use anyhow::Result;
use explain::parse::Answer;
use explain::{FeatureKey, parse, prompt};
use explain_kit::{
    EXPLANATIONS, Explanations, FeatureArgs, Instruction, Job, Once, Plan, Prepared, Question, RunArgs,
    ServerArgs, Stage, Texts,
};
use serde::Serialize;
use stage_kit::{CommonArgs, RunManifest, UsageError};

use crate::publish::{publish, stage};

#[derive(Debug, clap::Args)]
pub(crate) struct FollowArgs {
    /// What to read: a folder of sae-explain, a ledger (.jsonl), or a file that multimodal-sae published (.json)
    #[arg(long)]
    explanations: PathBuf,
    /// Folder to write; default: the one that is read
    #[arg(long)]
    explanation_dir: Option<PathBuf>,
    #[command(flatten)]
    features: FeatureArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// A stage that asks about texts alone.
pub(crate) struct Follow {
    label: &'static str,
    stage: Stage,
    instruction: fn() -> String,
    read: fn(&str, bool) -> Answer,
}

pub(crate) const REFINE: Follow = Follow {
    label: "refining",
    stage: stage("refined", Some("_refined")),
    instruction: prompt::refine_instruction,
    read: parse::entity,
};

pub(crate) const LABEL: Follow =
    Follow { label: "labelling", stage: LABELS, instruction: prompt::label_instruction, read: parse::label };

pub(crate) const LABELS: Stage = stage("labels", Some("_labels"));

/// What was passed over, for the summary.
#[derive(Serialize)]
pub(crate) struct PassedOver {
    pub(crate) unable_before: u64,
    pub(crate) without_explanation: u64,
}

pub(crate) fn run(args: &FollowArgs, follow: &Follow, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let instruction = Instruction::of(&args.server, (follow.instruction)())?;
    let explanations = Explanations::open(&args.explanations, EXPLANATIONS)?;
    let path = output(args.explanation_dir.as_deref(), &args.explanations)?;
    let selection = args.features.wanted()?.among(explanations.features().into_iter(), world)?;
    let Explanations { texts, unable, without, .. } = explanations;
    let texts = Texts::new(texts);
    let plan = Plan {
        label: follow.label,
        stage: follow.stage,
        path: &path,
        run: &args.run,
        server: &args.server,
        instruction: &instruction,
        common,
    };
    let job = Job::open(plan, Once(follow.read), selection, texts.clone(), &mut manifest)?;
    let prompt = instruction.short_hash();
    let prepare = move |key: &FeatureKey| {
        let messages = prompt::about_explanation(texts.get(key).unwrap_or_default(), &instruction.text);
        Ok(Prepared::Ask(Question::one(key, messages, Vec::new(), prompt.clone())))
    };
    let (summary, ()) = explain_kit::run(job, manifest, prepare, publish)?;
    Ok(summary.print(&PassedOver { unable_before: unable.len() as u64, without_explanation: without })?)
}

/// The folder to write: the one asked for, or else the one that is read.
pub(crate) fn output(asked: Option<&Path>, explanations: &Path) -> Result<PathBuf> {
    match asked {
        Some(asked) => Ok(asked.to_owned()),
        None if explanations.is_dir() => Ok(explanations.to_owned()),
        None => {
            let problem = format!(
                "{} is a file: name the folder to write with --explanation-dir",
                explanations.display()
            );
            Err(UsageError::new(problem).into())
        }
    }
}
