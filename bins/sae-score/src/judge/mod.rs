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
use explain_kit::{
    EXPLANATIONS, Explanations, Instruction, Job, Plan, Stage, Summary, Texts, open_cache, stored,
};
use sae_types::SampleId;
use scoring::{Random, ScoreRow, baselines};
use serde::Serialize;
use stage_kit::{CommonArgs, RunManifest, UsageError};

use crate::judge::exam::Exam;
use crate::judge::pick::Side;
use crate::judge::scores::{Permuted, Scores, Sums, Totals};
use crate::judge::verdicts::Verdicts;

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

/// The stage whose texts are labels.
const LABELS: &str = "labels";
/// The stream of the permutation: no feature's.
const PERMUTATION: u64 = 0;

#[derive(Serialize)]
struct More<'a> {
    #[serde(flatten)]
    totals: &'a Totals,
    unable_before: u64,
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
    let explanations = Explanations::open(&args.explanations, EXPLANATIONS)?;
    let labels = args.labels.as_deref().map(|path| Explanations::open(path, LABELS)).transpose()?;
    let permuted = args.permuted.then(|| permuted(&explanations.texts, common.seed)).transpose()?;
    let seen = seen(&explanations, &args.explanations);
    let Explanations { texts, unable, without, .. } = explanations;
    let texts = Texts::new(texts);
    let there = texts.among(stored(cache)?, &args.explanations)?;
    let wanted = args.features.wanted()?;
    let selection = || wanted.among(there.clone().into_iter(), world);
    let material = args.material(cache, side, setting, &selection()?, seen, common.seed, &mut manifest)?;
    let is_own = args.server.prompt.is_some();
    let exam = Arc::new(Exam { score, material, batch, instruction, is_own });

    let side = match side {
        Side::Image => "images",
        Side::Text => "text",
    };
    let (folder, permuted, labels) = (args.save_dir.as_path(), permuted.as_ref(), labels.as_ref());
    let sums = Sums { folder, score, side, texts: &texts, permuted, labels };
    let pass = |label, name, texts: &Texts| -> Result<(Summary, Scores)> {
        let stage = Stage { name, suffix: None, flag: "--save-dir" };
        let (run, server, instruction) = (&args.run, &args.server, &exam.instruction);
        let plan = Plan { label, stage, path: &args.save_dir, run, server, instruction, common };
        let mut manifest = manifest.clone();
        let job = Job::open(plan, Verdicts, selection()?, texts.clone(), &mut manifest)?;
        let (exam, texts) = (Arc::clone(&exam), texts.clone());
        let prepare = move |key: &FeatureKey| exam.question(key, &texts);
        explain_kit::run(job, manifest, prepare, |_, _| sums.write())
    };
    let (summary, mut scores) = pass("judging", score.name(), &texts)?;
    if let Some(permuted) = permuted {
        scores = pass("judging permuted", score.permuted(), &permuted.texts)?.1;
    }
    tell(&scores.totals.balanced_accuracy.total);
    let more =
        More { totals: &scores.totals, unable_before: unable.len() as u64, without_explanation: without };
    Ok(summary.print(&more)?)
}

/// The samples that the explainer was shown: those of the explanations' own ledgers, or of the ledgers beside what was made of them.
fn seen(explanations: &Explanations, path: &Path) -> BTreeMap<FeatureKey, Vec<SampleId>> {
    if !explanations.shown.is_empty() {
        return explanations.shown.clone();
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    match Explanations::open(folder, EXPLANATIONS) {
        Ok(beside) if !beside.shown.is_empty() => beside.shown,
        _ => {
            tracing::warn!(
                "{} does not say which samples the explainer was shown: it is taken to be the strongest of each feature",
                path.display()
            );
            BTreeMap::new()
        }
    }
}

/// Gives every feature another's explanation.
fn permuted(texts: &BTreeMap<FeatureKey, String>, seed: u64) -> Result<Permuted> {
    let said: Vec<&String> = texts.values().collect();
    let permuted = baselines::permuted(&said, &mut Random::new(seed, PERMUTATION));
    let permuted = permuted.ok_or_else(|| UsageError::new("--permuted: there is one explanation only"))?;
    if permuted.same_text > 0 {
        tracing::warn!(
            "--permuted: {} of {} explanations say what more than half of all do, and remain what they are",
            permuted.same_text,
            said.len()
        );
    }
    let texts = texts.keys().zip(&permuted.sources).map(|(key, &from)| (key.clone(), said[from].clone()));
    Ok(Permuted { texts: Texts::new(texts.collect()), same_text: permuted.same_text })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_feature_keeps_its_explanation() {
        let key = |feature: u32| format!("model.layers.1_feature{feature}").parse::<FeatureKey>().unwrap();
        let texts: BTreeMap<FeatureKey, String> =
            (0..20).map(|feature| (key(feature), format!("thing {feature}"))).collect();
        let given = permuted(&texts, 7).unwrap();
        let said = |feature: u32| given.texts.get(&key(feature)).unwrap().to_owned();
        assert!((0..20).all(|feature| said(feature) != texts[&key(feature)]));
        let mut all: Vec<String> = (0..20).map(said).collect();
        all.sort();
        let mut own: Vec<String> = texts.values().cloned().collect();
        own.sort();
        assert_eq!((all, given.same_text), (own, 0));
        let one: BTreeMap<_, _> = texts.into_iter().take(1).collect();
        assert!(permuted(&one, 7).is_err());
    }
}
