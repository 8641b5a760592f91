//! The page of a judge's scores.

use scoring::ScoreTable;
use scoring::report::{Card, Extremes, Report, Section};

use super::scores::{FeatureScore, Measures, Scores};

/// Features that are shown as the best, and as many as the worst.
const SHOWN: usize = 12;

/// A figure of a feature's verdicts.
type Figure = fn(&Measures) -> Option<f64>;

/// A page without scripts: means, histograms, and which features fare best and worst.
pub(super) fn html(scores: &Scores) -> String {
    let title = match scores.score {
        "fuzz" => "Does a judge tell where a feature is on?",
        _ => "Does a judge tell samples in which a feature is on?",
    };
    let totals = &scores.totals;
    let introduction = vec![
        format!(
            "A model that knows of each feature nothing but its explanation judged {} samples of {} features ({}).",
            totals.all.n,
            scores.features.len(),
            scores.shown
        ),
        format!(
            "{} samples have no verdict, since the answer could not be read or the server refused. {} features were passed over, with too few \
             samples that the explainer had not seen.",
            totals.all.unparsed, totals.features_skipped
        ),
    ];
    let mut sections = vec![
        section(
            scores,
            "Balanced accuracy",
            "The mean of the shares of samples with and without the feature that are judged right: 0.5 for a guess, and for a judge that always \
             says the same.",
            &totals.balanced_accuracy,
            |measures| measures.balanced_accuracy,
        ),
        section(
            scores,
            "F1",
            "Of what the judge takes for the feature, and of the feature, the harmonic mean of the shares that are right.",
            &totals.f1,
            |measures| measures.f1,
        ),
    ];
    if totals.auc.total.score.is_some() {
        sections.push(section(
            scores,
            "Area under the curve",
            "How likely the judge is surer of a sample with the feature than of one without, by log-probabilities: finer than verdicts, and not \
             misled by a judge that tends to agree.",
            &totals.auc,
            |measures| measures.auc,
        ));
    }
    Report { title: title.to_owned(), introduction, sections }.html()
}

fn section(scores: &Scores, heading: &str, note: &str, table: &ScoreTable, figure: Figure) -> Section {
    let values: Vec<Option<f64>> = scores.features.iter().map(|feature| figure(&feature.own)).collect();
    let Extremes { best, worst } = Extremes::of(&values, SHOWN);
    let cards =
        |places: Vec<usize>| places.into_iter().map(|at| card(&scores.features[at], figure)).collect();
    let own = ("features".to_owned(), values.iter().copied().flatten().collect());
    let permuted: Vec<f64> =
        scores.features.iter().filter_map(|feature| figure(feature.permuted.as_ref()?)).collect();
    let permuted = table.baselines.first().map(|name| (name.clone(), permuted));
    Section {
        heading: heading.to_owned(),
        note: note.to_owned(),
        decimals: 3,
        range: [0.0, 1.0],
        table: table.clone(),
        distributions: std::iter::once(own).chain(permuted).collect(),
        best: cards(best),
        worst: cards(worst),
    }
}

fn card(feature: &FeatureScore, figure: Figure) -> Card {
    let permuted = feature.permuted.as_ref().and_then(figure);
    let facts = [
        ("samples", Some(feature.own.n.to_string())),
        ("recall", feature.own.recall.map(|share| format!("{share:.2}"))),
        ("specificity", feature.own.specificity.map(|share| format!("{share:.2}"))),
        ("of hard ones", feature.own.specificity_hard.map(|share| format!("{share:.2}"))),
        ("another's explanation", permuted.map(|score| format!("{score:.2}"))),
    ];
    Card {
        feature: feature.feature.clone(),
        explanation: feature.explanation.clone(),
        score: figure(&feature.own).unwrap_or_default(),
        facts: facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
        pictures: Vec::new(),
    }
}
