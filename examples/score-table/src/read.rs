//! What the stages wrote, joined by feature.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use scoring::ScoreTable;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Args;

/// All scores.
pub(crate) struct Scores {
    /// By feature.
    pub(crate) rows: Vec<Row>,
    /// Over features, each under its name, with the digits it is written with.
    pub(crate) tables: Vec<(&'static str, ScoreTable, usize)>,
}

/// One feature.
pub(crate) struct Row {
    pub(crate) feature: String,
    pub(crate) explanation: String,
    /// The concept whose masks it overlaps most, and by how much; none of one that stands for none.
    pub(crate) truth: Option<(String, f64)>,
    pub(crate) iou: Option<f64>,
    /// Under the explanation of another feature.
    pub(crate) permuted: Option<f64>,
    /// CLIP score of where the feature is on, less that of where it is off.
    pub(crate) clip: Option<f64>,
    pub(crate) fuzz: Option<f64>,
    pub(crate) monosemanticity: Option<f64>,
}

#[derive(Deserialize)]
struct Report {
    features: Vec<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    feature: u32,
    concept: String,
    overlap: f64,
}

#[derive(Deserialize)]
struct Iou {
    table: ScoreTable,
    features: Vec<IouFeature>,
}

#[derive(Deserialize)]
struct IouFeature {
    feature: String,
    explanation: String,
    mean: Option<f64>,
    baselines: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct Clip {
    region: ScoreTable,
    features: Vec<ClipFeature>,
}

#[derive(Deserialize)]
struct ClipFeature {
    feature: String,
    explanation: String,
    region: Option<f64>,
    region_baselines: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct Fuzz {
    balanced_accuracy: ScoreTable,
    features: Vec<FuzzFeature>,
}

#[derive(Deserialize)]
struct FuzzFeature {
    feature: String,
    explanation: String,
    balanced_accuracy: Option<f64>,
}

#[derive(Deserialize)]
struct Monosemanticity {
    table: ScoreTable,
    features: Vec<MonosemanticityFeature>,
}

#[derive(Deserialize)]
struct MonosemanticityFeature {
    feature: String,
    score: Option<f64>,
}

/// Reads and joins everything; the rows are those of `iou`, those that stand for a concept first, the best first.
pub(crate) fn all(args: &Args) -> Result<Scores> {
    let report: Report = json(&args.report)?;
    let truth: BTreeMap<String, (String, f64)> = report
        .features
        .into_iter()
        .map(|specific| {
            let name = format!("{}_feature{}", args.hook, specific.feature);
            (name, (specific.concept, specific.overlap))
        })
        .collect();
    let iou: Iou = json(&args.iou.join("iou.summary.json"))?;
    let clip: Clip = json(&args.clip.join("clip.summary.json"))?;
    let fuzz: Fuzz = json(&args.fuzz.join("fuzz.json"))?;
    let alike: Monosemanticity = json(&args.monosemanticity.join("monosemanticity.json"))?;
    let region: BTreeMap<&str, &ClipFeature> =
        clip.features.iter().map(|feature| (feature.feature.as_str(), feature)).collect();
    let judged: BTreeMap<&str, &FuzzFeature> =
        fuzz.features.iter().map(|feature| (feature.feature.as_str(), feature)).collect();
    let differs = |feature: &&IouFeature| {
        let name = feature.feature.as_str();
        let clip = region.get(name).map(|clip| &clip.explanation);
        let fuzz = judged.get(name).map(|fuzz| &fuzz.explanation);
        clip.into_iter().chain(fuzz).any(|other| *other != feature.explanation)
    };
    let differing = iou.features.iter().filter(differs).count();
    if differing > 0 {
        tracing::warn!("{differing} features are scored by different explanations in different folders");
    }
    let same: BTreeMap<&str, Option<f64>> =
        alike.features.iter().map(|feature| (feature.feature.as_str(), feature.score)).collect();
    let mut rows: Vec<Row> = iou
        .features
        .iter()
        .map(|feature| {
            let name = feature.feature.as_str();
            let margin = region.get(name).and_then(|clip| {
                // The last baseline is the rest of the image.
                Some(clip.region? - clip.region_baselines.last().copied().flatten()?)
            });
            Row {
                feature: feature.feature.clone(),
                explanation: feature.explanation.clone(),
                truth: truth.get(name).cloned(),
                iou: feature.mean,
                permuted: feature.baselines.first().copied().flatten(),
                clip: margin,
                fuzz: judged.get(name).and_then(|fuzz| fuzz.balanced_accuracy),
                monosemanticity: same.get(name).copied().flatten(),
            }
        })
        .collect();
    ensure!(!rows.is_empty(), "{} has no features", args.iou.display());
    rows.sort_by(|a, b| {
        let of = |row: &Row| row.iou.unwrap_or(-1.0);
        let specific = b.truth.is_some().cmp(&a.truth.is_some());
        specific.then_with(|| of(b).total_cmp(&of(a))).then_with(|| a.feature.cmp(&b.feature))
    });
    let tables = vec![
        ("overlap with what the explanation names", iou.table, 3),
        ("CLIP score of where the feature is on", clip.region, 1),
        ("a judge tells the right region (balanced accuracy)", fuzz.balanced_accuracy, 3),
        ("images are alike (monosemanticity)", alike.table, 3),
    ];
    Ok(Scores { rows, tables })
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not what this reads", path.display()))
}
