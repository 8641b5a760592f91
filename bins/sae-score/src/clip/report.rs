//! What is written of a run: the tables, multimodal-sae's rows, and the page.

use std::collections::BTreeMap;

use anyhow::Result;
use explain::FeatureKey;
use explain::parse::UNABLE;
use explain_kit::{Entry, Records};
use scoring::published::{ClipRow, rows_to_json};
use scoring::report::{Card, Extremes, Report, Section};
use scoring::{FeatureEntry, FeatureOutcome, ScoreTable};
use serde::Serialize;
use stage_kit::write_whole;

use super::record::{ClipRecord, REGION_BASELINES, WHOLE_BASELINES};
use super::{ClipArgs, STAGE};
use crate::explained::Explained;
use crate::images::Finder;
use crate::pictures;

/// `clip.summary.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Whole images, as multimodal-sae.
    whole: ScoreTable,
    /// Where the feature is on, black elsewhere.
    region: ScoreTable,
    /// How many features are held against no other explanation, since all others say the same.
    without_other_text: usize,
    /// Images made of the explanations, if there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<scoring::Summary>,
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
    whole: Option<f64>,
    whole_baselines: Vec<Option<f64>>,
    region: Option<f64>,
    region_baselines: Vec<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<f64>,
}

/// Writes everything that is made of the records; the summary that comes back leaves the features out.
pub(crate) fn write(
    args: &ClipArgs,
    explained: &Explained,
    finder: &Finder,
    records: Records<'_, ClipRecord>,
) -> Result<Summary> {
    let [mut whole, mut region] = [Vec::new(), Vec::new()];
    let (mut features, mut keys) = (Vec::new(), Vec::new());
    let mut rows: BTreeMap<_, Vec<(FeatureKey, ClipRow)>> = BTreeMap::new();
    let mut without_other_text = 0;
    for record in records {
        let record = record?;
        let key = record.key();
        let label = explained.label(&key);
        let [of_whole, of_region] = [record.whole(label.clone()), record.region(label.clone())];
        if record.unable {
            let row = ClipRow::unable(key.to_string(), UNABLE);
            rows.entry(key.hook.clone()).or_default().push((key, row));
            whole.push(of_whole);
            region.push(of_region);
            continue;
        }
        without_other_text += usize::from(record.other_text.is_none());
        if let Some(row) = record.published() {
            rows.entry(key.hook.clone()).or_default().push((key.clone(), row));
        }
        features.push(FeatureSummary {
            feature: key.to_string(),
            explanation: record.text.clone(),
            label,
            whole: score(&of_whole),
            whole_baselines: of_whole.baselines.clone(),
            region: score(&of_region),
            region_baselines: of_region.baselines.clone(),
            generated: record.generated_mean(),
        });
        whole.push(of_whole);
        region.push(of_region);
        keys.push(key);
    }
    for (hook, mut rows) in rows {
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        let rows: Vec<ClipRow> = rows.into_iter().map(|(_, row)| row).collect();
        write_whole(&STAGE.written_of(&args.save_dir, &hook), rows_to_json(&rows)?.as_bytes())?;
    }
    let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
    let summary = Summary {
        whole: ScoreTable::of(names(WHOLE_BASELINES), &whole),
        region: ScoreTable::of(names(REGION_BASELINES), &region),
        without_other_text,
        generated: scoring::Summary::of(features.iter().filter_map(|feature| feature.generated)),
        features,
    };
    let text = serde_json::to_string_pretty(&summary)? + "\n";
    write_whole(&args.save_dir.join("clip.summary.json"), text.as_bytes())?;
    write_whole(&args.save_dir.join("clip.html"), page(args, &summary, finder, &keys).html().as_bytes())?;
    Ok(Summary { features: Vec::new(), ..summary })
}

fn score(entry: &FeatureEntry) -> Option<f64> {
    match entry.outcome {
        FeatureOutcome::Scored(score) => Some(score),
        _ => None,
    }
}

/// From where to where scores lie, in whole fives: most models' are between 15 and 35.
fn range_of(distributions: &[(String, Vec<f64>)]) -> [f64; 2] {
    let all = || distributions.iter().flat_map(|(_, values)| values.iter().copied());
    let least = (all().fold(100.0, f64::min) / 5.0).floor() * 5.0;
    let most = (all().fold(0.0, f64::max) / 5.0).ceil() * 5.0;
    if least < most { [least, most] } else { [0.0, 100.0] }
}

/// How to read the scores of one kind off a feature.
type Read = fn(&FeatureSummary) -> (Option<f64>, &[Option<f64>]);

fn page(args: &ClipArgs, summary: &Summary, finder: &Finder, keys: &[FeatureKey]) -> Report {
    let section = |heading: &str, note: &str, table: &ScoreTable, read: Read| {
        let scores: Vec<Option<f64>> = summary.features.iter().map(|feature| read(feature).0).collect();
        let Extremes { best, worst } = Extremes::of(&scores, args.shown / 2);
        let cards =
            |places: Vec<usize>| places.into_iter().map(|at| card(summary, at, read, table)).collect();
        let own = ("features".to_owned(), scores.iter().copied().flatten().collect());
        let of_baseline = |(at, name): (usize, &String)| {
            (
                name.clone(),
                summary.features.iter().filter_map(|feature| read(feature).1[at]).collect::<Vec<f64>>(),
            )
        };
        let baselines =
            table.baselines.iter().enumerate().map(of_baseline).filter(|(_, values)| !values.is_empty());
        let distributions: Vec<(String, Vec<f64>)> = std::iter::once(own).chain(baselines).collect();
        let mut section = Section {
            heading: heading.to_owned(),
            note: note.to_owned(),
            decimals: 1,
            range: range_of(&distributions),
            table: table.clone(),
            distributions,
            best: cards(best.clone()),
            worst: cards(worst.clone()),
        };
        for (cards, places) in [(&mut section.best, best), (&mut section.worst, worst)] {
            for (card, at) in cards.iter_mut().zip(places) {
                card.pictures = pictures::of(finder, &keys[at]);
            }
        }
        section
    };
    Report {
        title: "CLIP scores of explanations".to_owned(),
        introduction: vec![format!(
            "{} features, the {} images in which each is strongest: 100 times the cosine of image and explanation, at least 0, by {}. Texts \
             and images that have nothing in common lie near 20, so that only the distance to a baseline says something.",
            summary.features.len(),
            args.images.max_examples,
            args.clip
        )],
        sections: vec![
            section(
                "Whole images",
                "As multimodal-sae: whether the images go with the explanation, wherever the feature is on in them.",
                &summary.whole,
                |feature| (feature.whole, &feature.whole_baselines),
            ),
            section(
                "Where the feature is on",
                "The same images, black where the feature is off; beside them the same images, black where it is on.",
                &summary.region,
                |feature| (feature.region, &feature.region_baselines),
            ),
        ],
    }
}

fn card(summary: &Summary, at: usize, read: Read, table: &ScoreTable) -> Card {
    let feature = &summary.features[at];
    let (score, baselines) = read(feature);
    let fact = |(name, score): (&String, &Option<f64>)| Some((name.clone(), format!("{:.1}", (*score)?)));
    Card {
        feature: feature.feature.clone(),
        explanation: feature.explanation.clone(),
        score: score.unwrap_or_default(),
        facts: table.baselines.iter().zip(baselines).filter_map(fact).collect(),
        pictures: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_range_over_what_there_is() {
        let of = |values: &[f64]| range_of(&[("features".to_owned(), values.to_vec())]);
        assert_eq!(of(&[17.5, 23.0, 31.0]), [15.0, 35.0]);
        assert_eq!((of(&[]), of(&[20.0])), ([0.0, 100.0], [0.0, 100.0]));
        assert_eq!(of(&[0.0, 100.0]), [0.0, 100.0]);
    }
}
