//! `sae-explain consistency`: whether explanations fit what they explain, judged image by image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use explain::{FeatureKey, Outcome, parse, prompt};
use explain_kit::{
    EXPLANATIONS, Explanations, FeatureArgs, Gallery, GalleryArgs, Instruction, Job, Once, Plan, Prepared,
    Question, Records, RunArgs, ServerArgs, Stage, Texts, open_cache, stored,
};
use scoring::{Confidence, Proportion};
use serde::Serialize;
use stage_kit::{CommonArgs, RunManifest, write_whole};

use crate::follow::{self, LABELS, PassedOver};
use crate::publish::stage;

const CONSISTENCY: Stage = stage("consistency", None);

pub(crate) const EXAMPLE: &str = "\
Example:
  sae-explain consistency --explanations explained --labels explained --cache cache --dataset DATASET --explainer gpt-4o \\
    --endpoint https://api.openai.com/v1";

#[derive(Debug, clap::Args)]
pub(crate) struct ConsistencyArgs {
    /// What to judge: a folder of sae-explain, a ledger (.jsonl), or a file that multimodal-sae published (.json)
    #[arg(long)]
    explanations: PathBuf,
    /// Also give the share per label: the folder, ledger or file that sae-explain label wrote
    #[arg(long)]
    labels: Option<PathBuf>,
    /// Folder to write; default: the one of the explanations
    #[arg(long)]
    explanation_dir: Option<PathBuf>,
    #[command(flatten)]
    gallery: GalleryArgs,
    #[command(flatten)]
    features: FeatureArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// A share of explanations that fit, with Wilson's intervals.
#[derive(Serialize)]
struct Share {
    n: u64,
    consistent: u64,
    share: Option<f64>,
    interval_95: Option<[f64; 2]>,
    interval_99: Option<[f64; 2]>,
}

#[derive(Serialize)]
struct Verdicts {
    overall: Share,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    per_label: BTreeMap<String, Share>,
}

#[derive(Serialize)]
struct More<'a> {
    consistency: &'a Verdicts,
    #[serde(flatten)]
    passed_over: PassedOver,
}

/// What makes a question of a feature.
struct Asker {
    gallery: Gallery,
    texts: Texts,
    instruction: Instruction,
}

pub(crate) fn run(args: &ConsistencyArgs, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let instruction = Instruction::of(&args.server, prompt::judge_instruction())?;
    let Explanations { texts, unable, without, .. } = Explanations::open(&args.explanations, EXPLANATIONS)?;
    let texts = Texts::new(texts);
    let labels = args.labels.as_deref().map(|path| Explanations::open(path, LABELS.name)).transpose()?;
    let path = follow::output(args.explanation_dir.as_deref(), &args.explanations)?;
    let cache = open_cache(&args.gallery.source.cache)?;
    let there = texts.among(stored(cache)?, &args.explanations)?;
    let selection = args.features.wanted()?.among(there.into_iter(), world)?;
    let gallery = args.gallery.open(cache, &selection, 0, common.seed, &mut manifest)?;
    let plan = Plan {
        label: "judging",
        stage: CONSISTENCY,
        path: &path,
        run: &args.run,
        server: &args.server,
        instruction: &instruction,
        common,
    };
    let job = Job::open(plan, Once(parse::verdict), selection, texts.clone(), &mut manifest)?;
    let asker = Asker { gallery, texts, instruction };
    let (summary, verdicts) = explain_kit::run(
        job,
        manifest,
        move |key| asker.question(key),
        |_, records| -> Result<Verdicts> {
            let verdicts = verdicts(records, labels.as_ref())?;
            let text = serde_json::to_string_pretty(&verdicts)? + "\n";
            write_whole(&path.join("consistency.json"), text.as_bytes())?;
            Ok(verdicts)
        },
    )?;
    let share =
        |value: Option<f64>| value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:.3}"));
    let [low, high] = verdicts.overall.interval_99.unwrap_or([0.0, 1.0]);
    tracing::info!(
        "{} of {} explanations fit, 99 % interval {low:.3} to {high:.3}",
        share(verdicts.overall.share),
        verdicts.overall.n
    );
    let passed_over = PassedOver { unable_before: unable.len() as u64, without_explanation: without };
    Ok(summary.print(&More { consistency: &verdicts, passed_over })?)
}

impl Asker {
    fn question(&self, key: &FeatureKey) -> Result<Prepared, Outcome> {
        let text = self.texts.get(key).unwrap_or_default();
        let (pictures, shown) = self.gallery.show(key)?.into_parts();
        let messages = prompt::about_pictures_and_explanation(pictures, text, &self.instruction.text);
        Ok(Prepared::Ask(Question::one(key, messages, shown, self.instruction.short_hash())))
    }
}

/// The verdicts of all workers so far.
fn verdicts(records: Records<'_>, labels: Option<&Explanations>) -> Result<Verdicts> {
    let mut overall = Proportion::default();
    let mut per_label: BTreeMap<String, Proportion> = BTreeMap::new();
    for record in records {
        let record = record?;
        let Outcome::Answered(verdict) = &record.outcome else { continue };
        let fits = verdict == "1";
        overall.add(fits);
        if let Some(labels) = labels {
            let label = labels.texts.get(&record.key()).map_or("without a label", String::as_str);
            per_label.entry(label.to_owned()).or_default().add(fits);
        }
    }
    let per_label = per_label.into_iter().map(|(label, verdicts)| (label, Share::of(verdicts))).collect();
    Ok(Verdicts { overall: Share::of(overall), per_label })
}

impl Share {
    fn of(verdicts: Proportion) -> Self {
        Self {
            n: verdicts.n,
            consistent: verdicts.yes,
            share: verdicts.share(),
            interval_95: verdicts.wilson(Confidence::P95),
            interval_99: verdicts.wilson(Confidence::P99),
        }
    }
}
