//! The page of scores, from outside: everything is in it, nothing is fetched, nothing breaks out of it.
//!
//! With `SCORE_REPORT` set to a path the page is written there, to be looked at.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that fails")]

use image::{ImageFormat, Rgb, RgbImage};
use scoring::report::{Card, Extremes, Picture, Report, Section};
use scoring::{FeatureEntry, FeatureOutcome, Random, ScoreTable};

const CONCEPTS: [&str; 3] = ["color", "object", "texture"];

/// Features with overlaps between 0.2 and 0.8, permuted ones below 0.15 and whole images below 0.25.
fn entries() -> Vec<FeatureEntry> {
    let mut random = Random::new(1, 0);
    let mut between =
        |low: f64, high: f64| low + (high - low) * (random.below(1000) + random.below(1000)) as f64 / 2000.0;
    (0..90)
        .map(|at| {
            let outcome = match at {
                7 | 19 | 40 => FeatureOutcome::Unable,
                11 => FeatureOutcome::Undefined,
                12 => FeatureOutcome::Failed,
                _ => FeatureOutcome::Scored(between(0.2, 0.8)),
            };
            let is_scored = matches!(outcome, FeatureOutcome::Scored(_));
            let baselines =
                [between(0.0, 0.15), between(0.0, 0.25)].map(|overlap| is_scored.then_some(overlap));
            let concept = (outcome != FeatureOutcome::Unable).then(|| CONCEPTS[at % 3].to_owned());
            FeatureEntry { concept, outcome, baselines: baselines.to_vec() }
        })
        .collect()
}

fn card(at: usize, score: f64) -> Card {
    let picture = |shade: u8| {
        let image = RgbImage::from_fn(96, 64, |x, y| {
            let inside = (x as i32 - 48).pow(2) + (y as i32 - 32).pow(2) < 400;
            if inside { Rgb([230, shade, 60]) } else { Rgb([40, 60, shade]) }
        });
        Picture {
            url: activation_view::data_url(&image, ImageFormat::Png).unwrap(),
            description: "sample 3, lit where the feature is on".to_owned(),
        }
    };
    Card {
        feature: format!("model.layers.24_feature{at}"),
        explanation: if at.is_multiple_of(2) {
            "red <circles> & \"rings\"".to_owned()
        } else {
            "train tracks on gravel".to_owned()
        },
        score,
        facts: vec![
            ("concept".to_owned(), CONCEPTS[at % 3].to_owned()),
            ("images".to_owned(), "5 of 5".to_owned()),
        ],
        pictures: [40, 90, 140, 190, 240].map(picture).to_vec(),
    }
}

fn report() -> Report {
    let entries = entries();
    let baselines = ["other features' explanations".to_owned(), "whole image".to_owned()];
    let scores: Vec<Option<f64>> = entries
        .iter()
        .map(|entry| match entry.outcome {
            FeatureOutcome::Scored(score) => Some(score),
            _ => None,
        })
        .collect();
    let extremes = Extremes::of(&scores, 3);
    let cards = |places: Vec<usize>| places.into_iter().map(|at| card(at, scores[at].unwrap())).collect();
    let baseline = |at: usize| entries.iter().filter_map(|entry| entry.baselines[at]).collect();
    Report {
        title: "Scores of model.layers.24 <SAE>".to_owned(),
        introduction: vec!["90 features & 5 images each.".to_owned()],
        sections: vec![Section {
            heading: "Overlap with what is annotated".to_owned(),
            note: "Intersection over union of the half-maximum mask and the pixels of what the explanation names.".to_owned(),
            decimals: 3,
            range: [0.0, 1.0],
            table: ScoreTable::of(baselines.to_vec(), &entries),
            distributions: vec![
                ("explained".to_owned(), scores.iter().copied().flatten().collect()),
                (baselines[0].clone(), baseline(0)),
                (baselines[1].clone(), baseline(1)),
            ],
            best: cards(extremes.best),
            worst: cards(extremes.worst),
        }],
    }
}

#[test]
fn everything_is_on_the_page() {
    let report = report();
    let html = report.html();
    if let Some(path) = std::env::var_os("SCORE_REPORT") {
        std::fs::write(path, &html).unwrap();
    }
    let table = &report.sections[0].table;
    let row = |name: &str| {
        html.split(&format!("<th scope=\"row\">{name}</th>")).nth(1).unwrap().split("</tr>").next().unwrap()
    };
    let total = row("all");
    let mean =
        |summary: &scoring::Summary| format!("{:.3} ± {:.3}", summary.mean, summary.half_width_99.unwrap());
    let counts = "<td>90</td><td>3<small>3.3 %</small></td><td>2<small>1 failed</small></td>";
    assert!(total.ends_with(counts), "{total}");
    assert!(total.contains(&mean(table.total.score.as_ref().unwrap())), "{total}");
    let paired = table.total.baselines[0].paired.unwrap();
    let [low, high] = paired.ratio_interval_99.unwrap();
    assert!(total.contains(&format!("+{}", mean(&paired.difference))), "{total}");
    assert!(
        total.contains(&format!("{:.1} times ({low:.1} to {high:.1})", paired.ratio.unwrap())),
        "{total}"
    );
    assert!(row("object").contains(&mean(table.concepts[1].score.as_ref().unwrap())));
    let counts = "<td>none</td><td>3</td><td>3<small>100.0 %</small></td><td>0</td>";
    assert!(row("without a label").ends_with(counts));
    assert_eq!(html.matches("<article>").count(), 6);
    assert_eq!(html.matches("<img src=\"data:image/png;base64,").count(), 30);
    assert!(html.contains("<svg class=\"histogram\"") && html.contains("explained: 85 values, mean "));
}

#[test]
fn nothing_is_fetched_and_nothing_breaks_out() {
    let html = report().html();
    for outside in ["http", "<script", "<link", "@import", "url(", "<circles>", "<SAE>"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("red &lt;circles&gt; &amp; &quot;rings&quot;"));
    assert!(html.contains("prefers-color-scheme:dark") && html.contains("width=device-width"));
    for tag in ["section", "article", "table", "figure", "svg", "dl", "div", "main", "header", "small"] {
        let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
#[should_panic(expected = "a page that fetches nothing cannot show https://")]
fn pictures_lie_in_the_page() {
    let mut report = report();
    report.sections[0].best[0].pictures[0].url = "https://example.com/a.png".to_owned();
    report.html();
}
