//! `sae-score detection` and `fuzz`: what a judge, who knows nothing but the explanation, gets right.

mod args;
mod exam;
mod images;
mod page;
mod pick;
mod scores;
mod text;
mod verdicts;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use explain::FeatureKey;
use explain_kit::{EXPLANATIONS, Instruction, Job, Plan, Selection, Summary, Texts, open_cache, stored};
use sae_types::{FeatureId, HookPoint, SampleId};
use scoring::ScoreRow;
use serde::Serialize;
use stage_kit::{CommonArgs, RunManifest, UsageError};

use crate::explained::{LABELS, Said, open_current, with_unable};
use crate::judge::exam::Exam;
use crate::judge::pick::Side;
use crate::judge::scores::{Scores, Sums, Totals};
use crate::judge::verdicts::Verdicts;
use crate::other_texts::OtherTexts;

pub(crate) use args::{DetectionArgs, FuzzArgs};
use args::{JudgeArgs, Setting};

pub(crate) const DETECTION_EXAMPLE: &str = "\
Example, with a judge behind SGLang, beside what permuted explanations get:
  sae-score detection --cache cache --dataset DATASET --explanations explained --save-dir scores \\
    --endpoint http://127.0.0.1:30000/v1 --permuted

SAVE_DIR/detection.jsonl has one line per feature with every verdict and is what --resume reads; detection.json and\nthe page detection.html are written from it.";

pub(crate) const FUZZ_EXAMPLE: &str = "\
Example, on text, with the labels that sae-explain label gave:
  sae-score fuzz --cache text-cache --model MODEL --explanations explained --labels explained --save-dir scores \\
    --endpoint http://127.0.0.1:30000/v1

SAVE_DIR/fuzz.jsonl has one line per feature with every verdict and is what --resume reads; fuzz.json and the\npage fuzz.html are written from it.";

#[derive(Serialize)]
struct More<'a> {
    #[serde(flatten)]
    totals: &'a Totals,
    without_explanation: u64,
}

pub(crate) fn detection(args: &DetectionArgs, common: &CommonArgs) -> Result<()> {
    run(&args.judge, Setting::Detection, common)
}

pub(crate) fn fuzz(args: &FuzzArgs, common: &CommonArgs) -> Result<()> {
    run(&args.judge, Setting::Fuzz(&args.mask), common)
}

fn run(args: &JudgeArgs, setting: Setting<'_>, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let score = setting.score();
    let cache = open_cache(&args.cache)?;
    let side = args.side(cache)?;
    let batch = args.batch(side);
    let instruction = Instruction::of(&args.server, score.instruction(side, batch, batch.size()))?;
    let Said { explanations, before } = Said::open(&args.explanations, EXPLANATIONS)?;
    let of = [Some(&explanations), before.as_ref()];
    let labels = args.labels.as_deref().map(|path| open_current(path, LABELS, &of)).transpose()?;
    let shown = [explanations.shown, before.as_ref().map(|before| before.shown.clone()).unwrap_or_default()];
    let seen = seen(shown, &args.explanations);
    let (without, mut unable) = (explanations.without, explanations.unable);
    unable.extend(before.into_iter().flat_map(|before| before.unable));
    let texts = Texts::new(explanations.texts);
    let there = stored(cache)?;
    let explained = texts.among(there.clone(), &args.explanations)?;
    let permuted = args.permuted.then(|| other_texts(&texts, &explained, common.seed)).transpose()?;
    let wanted = args.features.wanted()?;
    let selection = wanted.among(with_unable(there, &texts, &unable), world)?;
    let material = args.material(cache, side, setting, &selection, seen, common.seed, &mut manifest)?;
    let is_own = args.server.prompt.is_some();
    let exam = Arc::new(Exam { score, material, batch, instruction, is_own });

    let side = match side {
        Side::Image => "images",
        Side::Text => "text",
    };
    let (folder, permuted, labels) = (args.save_dir.as_path(), permuted.as_ref(), labels.as_ref());
    let sums = Sums { folder, score, side, texts: &texts, permuted, labels };
    let pass = |label, stage, selection: Selection, texts: &Texts| -> Result<(Summary, Scores)> {
        let (run, server, instruction) = (&args.run, &args.server, &exam.instruction);
        let plan = Plan { label, stage, path: &args.save_dir, run, server, instruction, common };
        let mut manifest = manifest.clone();
        let job = Job::open(plan, Verdicts, selection, texts.clone(), &mut manifest)?;
        let (exam, texts) = (Arc::clone(&exam), texts.clone());
        let prepare = move |key: &FeatureKey| exam.question(key, &texts);
        explain_kit::run(job, manifest, prepare, |_, _| sums.write())
    };
    let held_against = permuted.map(|permuted| {
        let mut selection = selection.clone();
        selection.retain(|key| permuted.texts.contains(key));
        (selection, &permuted.texts)
    });
    let (summary, mut scores) = pass("judging", score.stage(), selection, &texts)?;
    if let Some((selection, texts)) = held_against {
        scores = pass("judging permuted", score.permuted_stage(), selection, texts)?.1;
    }
    tell(&scores.totals.balanced_accuracy.total);
    Ok(summary.print(&More { totals: &scores.totals, without_explanation: without })?)
}

/// Explanations of other features for all that are explained, hook point by hook point, chosen or not.
fn other_texts(
    texts: &Texts,
    explained: &[(&'static HookPoint, Vec<FeatureId>)],
    seed: u64,
) -> Result<OtherTexts> {
    let of_hook = |(hook, features): &(&'static HookPoint, Vec<FeatureId>)| -> Vec<FeatureKey> {
        features.iter().map(|&feature| FeatureKey { hook: HookPoint::clone(hook), feature }).collect()
    };
    let keys: Vec<FeatureKey> = explained.iter().flat_map(of_hook).collect();
    let others = OtherTexts::of(keys.iter().map(|key| (key, texts.get(key).unwrap_or_default())), seed);
    if others.without == keys.len() {
        return Err(UsageError::new("--permuted: there is one explanation only").into());
    }
    Ok(others)
}

/// The samples that the explainer was shown: those of the explanations' own ledgers, or of the ledgers beside what was made of them.
fn seen(shown: [BTreeMap<FeatureKey, Vec<SampleId>>; 2], path: &Path) -> BTreeMap<FeatureKey, Vec<SampleId>> {
    shown.into_iter().find(|shown| !shown.is_empty()).unwrap_or_else(|| {
        tracing::warn!(
            "{} does not say which samples the explainer was shown: it is taken to be the strongest of each feature",
            path.display()
        );
        BTreeMap::new()
    })
}

/// Tells the log what came of it.
fn tell(total: &ScoreRow) {
    let Some(score) = total.score else {
        tracing::warn!("no feature has a score");
        return;
    };
    let half = |half: Option<f64>| half.map_or_else(String::new, |half| format!(" ± {half:.3} (99 %)"));
    tracing::info!(
        "balanced accuracy {:.3}{} over {} features",
        score.mean,
        half(score.half_width_99),
        score.n
    );
    if let Some(paired) = total.baselines.first().and_then(|baseline| baseline.paired) {
        let (baseline, difference) = (paired.baseline, paired.difference);
        tracing::info!(
            "with permuted explanations {:.3}{}, difference {:.3}{}",
            baseline.mean,
            half(baseline.half_width_99),
            difference.mean,
            half(difference.half_width_99)
        );
    }
}
