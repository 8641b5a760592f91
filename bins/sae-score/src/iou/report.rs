//! What is written of a run: the table, multimodal-sae's rows, and the page.

use std::collections::BTreeMap;

use anyhow::Result;
use explain::FeatureKey;
use explain::parse::UNABLE;
use explain_kit::{Entry, Records};
use scoring::published::{IouRow, rows_to_json};
use scoring::report::{Card, Extremes, Report, Section};
use scoring::{FeatureScore, Policy, ScoreTable};
use serde::Serialize;
use stage_kit::write_whole;

use super::record::{BASELINES, IouRecord};
use super::{IouArgs, STAGE};
use crate::explained::Explained;
use crate::images::Finder;
use crate::pictures;

/// `iou.summary.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    policy: Policy,
    table: ScoreTable,
    /// How many features are held against no other explanation, since all others say the same; absent with --no-permuted.
    #[serde(skip_serializing_if = "Option::is_none")]
    without_other_text: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    features: Vec<FeatureSummary>,
}

/// A feature in it.
#[derive(Clone, Debug, Serialize)]
struct FeatureSummary {
    feature: String,
    explanation: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(flatten)]
    score: FeatureScore,
    /// Under each baseline, in the order of the table's.
    baselines: Vec<Option<f64>>,
}

/// Writes everything that is made of the records; the summary that comes back leaves the features out.
pub(crate) fn write(
    args: &IouArgs,
    explained: &Explained,
    finder: &Finder,
    records: Records<'_, IouRecord>,
) -> Result<Summary> {
    let policy = args.policy();
    let (mut entries, mut features, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut rows: BTreeMap<_, Vec<(FeatureKey, IouRow)>> = BTreeMap::new();
    let mut without_other_text = 0;
    for record in records {
        let record = record?;
        let key = record.key();
        let entry = record.entry(policy, explained.label(&key));
        if record.unable {
            let row = IouRow::unable(key.to_string(), UNABLE);
            rows.entry(key.hook.clone()).or_default().push((key, row));
            entries.push(entry);
            continue;
        }
        without_other_text += usize::from(record.other_text.is_none());
        if let Some(row) = record.published() {
            rows.entry(key.hook.clone()).or_default().push((key.clone(), row));
        }
        features.push(FeatureSummary {
            feature: key.to_string(),
            explanation: record.text.clone(),
            label: entry.concept.clone(),
            score: record.score(policy),
            baselines: entry.baselines.clone(),
        });
        entries.push(entry);
        keys.push(key);
    }
    for (hook, mut rows) in rows {
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        let rows: Vec<IouRow> = rows.into_iter().map(|(_, row)| row).collect();
        write_whole(&STAGE.written_of(&args.save_dir, &hook), rows_to_json(&rows)?.as_bytes())?;
    }
    let table = ScoreTable::of(BASELINES.map(str::to_owned).to_vec(), &entries);
    let without_other_text = (!args.no_permuted).then_some(without_other_text);
    let summary = Summary { policy, table, without_other_text, features };
    let text = serde_json::to_string_pretty(&summary)? + "\n";
    write_whole(&args.save_dir.join("iou.summary.json"), text.as_bytes())?;
    let page = page(args, &summary, finder, &keys);
    write_whole(&args.save_dir.join("iou.html"), page.html().as_bytes())?;
    Ok(Summary { features: Vec::new(), ..summary })
}

fn page(args: &IouArgs, summary: &Summary, finder: &Finder, keys: &[FeatureKey]) -> Report {
    let scores: Vec<Option<f64>> = summary.features.iter().map(|feature| feature.score.mean).collect();
    let Extremes { best, worst } = Extremes::of(&scores, args.shown / 2);
    let cards = |places: Vec<usize>| {
        places.into_iter().map(|at| card(&summary.features[at], finder, &keys[at])).collect()
    };
    let own = ("features".to_owned(), scores.iter().copied().flatten().collect());
    let baseline = |(at, name): (usize, &&str)| {
        let values = summary.features.iter().filter_map(|feature| feature.baselines[at]).collect();
        ((*name).to_owned(), values)
    };
    let shown =
        BASELINES.iter().enumerate().map(baseline).filter(|(_, values): &(_, Vec<f64>)| !values.is_empty());
    let sum = |count: fn(&FeatureScore) -> usize| -> usize {
        summary.features.iter().map(|feature| count(&feature.score)).sum()
    };
    let introduction = vec![
        format!(
            "{} features, the {} images in which each is strongest: the pixels on which the feature is, against the pixels that show what \
             its explanation names.",
            summary.features.len(),
            args.images.max_examples
        ),
        format!(
            "Of all images {} overlap is measured, in {} nothing of the kind was found, in {} both masks are empty, and {} could not be \
             looked at.",
            sum(|score| score.scored),
            sum(|score| score.no_detection),
            sum(|score| score.both_empty),
            sum(|score| score.failed)
        ),
    ];
    Report {
        title: "Overlap of features and their explanations".to_owned(),
        introduction,
        sections: vec![Section {
            heading: "Intersection over union".to_owned(),
            note: "1 where a feature is on exactly where its explanation says, 0 where it is on elsewhere. What is to be beaten is the \
                   explanation of another feature on the same images, not random images, in which a feature is mostly off."
                .to_owned(),
            decimals: 3,
            range: [0.0, 1.0],
            table: summary.table.clone(),
            distributions: std::iter::once(own).chain(shown).collect(),
            best: cards(best),
            worst: cards(worst),
        }],
    }
}

fn card(feature: &FeatureSummary, finder: &Finder, key: &FeatureKey) -> Card {
    let name = |at: usize| BASELINES[at].to_owned();
    let facts = feature.baselines.iter().enumerate();
    Card {
        feature: feature.feature.clone(),
        explanation: feature.explanation.clone(),
        score: feature.score.mean.unwrap_or_default(),
        facts: facts.filter_map(|(at, score)| Some((name(at), format!("{:.3}", (*score)?)))).collect(),
        pictures: pictures::of(finder, key),
    }
}
