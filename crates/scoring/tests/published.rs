//! Score files that Python wrote with multimodal-sae's statements (`fixtures/published/generate.py`): read, and written again to
//! the byte.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that fails")]

use std::fs;
use std::path::Path;

use scoring::published::{ClipRow, ClipScores, DelphiSample, IouRow, TextRow, rows_from_json, rows_to_json};
use scoring::{FeatureScore, ImageOutcome, Policy};

fn fixture(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/published").join(name))
        .unwrap()
}

#[test]
fn overlaps_are_read_and_written_to_the_byte() {
    let text = fixture("iou.json");
    let rows: Vec<IouRow> = rows_from_json(&text).unwrap();
    assert_eq!(rows_to_json(&rows).unwrap(), text);
    let [tracks, unable, failed, empty, speck] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(
        (tracks.feature.as_str(), tracks.k, tracks.label.as_str()),
        ("model.layers.24_feature12", 5, "Train tracks")
    );
    assert_eq!((&tracks.iou_scores, tracks.avg_iou), (&vec![0.5, 0.75, 0.0, -1.0, 1.0], 0.45));
    assert!(unable.is_unable() && unable.avg_iou == -1.0 && !failed.is_unable());
    assert_eq!(
        (failed.avg_iou, failed.activated_pct, failed.label.as_str()),
        (0.0, 0.0, "The word \"Größe\" 🐈")
    );
    assert!(empty.iou_scores[1].is_nan() && empty.avg_iou.is_nan());
    assert_eq!(speck.iou_scores, [1.0 / 65536.0, 0.0, 0.1 + 0.2]);
}

#[test]
fn rows_are_made_of_what_became_of_the_images() {
    let failed = ImageOutcome::Failed("no server".to_owned());
    let images = [
        ImageOutcome::Scored(0.5),
        ImageOutcome::Scored(0.75),
        ImageOutcome::Scored(0.0),
        ImageOutcome::NoDetection,
        ImageOutcome::Scored(1.0),
    ];
    let rows = [
        IouRow::of("model.layers.24_feature12", "Train tracks", &images, &[0.25, 0.5, 0.125, 0.0625]),
        IouRow::unable("model.layers.24_feature13", "Unable to produce descriptions."),
        IouRow::of(
            "model.layers.24_feature14",
            "The word \"Größe\" 🐈",
            &[failed, ImageOutcome::NoDetection],
            &[],
        ),
        IouRow::of(
            "model.layers.24_feature15",
            "snow\nand ice",
            &[ImageOutcome::Scored(0.25), ImageOutcome::BothEmpty],
            &[0.0, 0.0],
        ),
        IouRow::of(
            "model.layers.24_feature16",
            "a speck",
            &[
                ImageOutcome::Scored(1.0 / 65536.0),
                ImageOutcome::Scored(0.0),
                ImageOutcome::Scored(0.1 + 0.2),
            ],
            &[0.0, 0.0, 0.1],
        ),
    ];
    assert_eq!(rows_to_json(&rows).unwrap(), fixture("iou.json"));
    assert_eq!(FeatureScore::of(&images, Policy::MSAE).mean, Some(rows[0].avg_iou));
}

#[test]
fn clip_scores_are_read_and_written_to_the_byte() {
    let text = fixture("clip.json");
    let rows: Vec<ClipRow> = rows_from_json(&text).unwrap();
    assert_eq!(rows_to_json(&rows).unwrap(), text);
    let made = [
        ClipRow::of("model.layers.24_feature12", "Train tracks", vec![24.382_812_5, 25.125, 21.0]),
        ClipRow::unable("model.layers.24_feature13", "Unable to produce descriptions"),
    ];
    assert_eq!(rows, made);
    let text = fixture("clip_generated.json");
    let rows: Vec<ClipRow> = rows_from_json(&text).unwrap();
    assert_eq!(rows, [ClipRow::generated("model.layers.24_feature12", "Train tracks", 27.5)]);
    assert_eq!(rows[0].clip_scores, ClipScores::Generated(27.5));
    assert_eq!(rows_to_json(&rows).unwrap(), text);
}

#[test]
fn text_scores_are_read_and_written_to_the_byte() {
    let text = fixture("text.json");
    let rows: Vec<TextRow> = rows_from_json(&text).unwrap();
    assert_eq!((rows[0].scores.len(), &rows[0].max_activations), (2, &vec![10.0, 2.5]));
    assert_eq!(rows_to_json(&rows).unwrap(), text);
}

#[test]
fn delphis_samples_are_read_and_written() {
    let text = r#"[{"str_tokens":["a"," b"],"activations":[0.0,1.5],"distance":2,"activating":true,"prediction":false,"probability":0.25,"correct":false},{"str_tokens":["c"],"activations":[0.0],"distance":-1.0,"activating":false,"prediction":null,"probability":null,"correct":null}]"#;
    let samples: Vec<DelphiSample> = rows_from_json(text).unwrap();
    assert_eq!((samples[0].prediction, samples[1].prediction), (Some(false), None));
    assert_eq!(serde_json::to_string(&samples).unwrap(), text);
}

#[test]
fn other_files_are_refused() {
    for text in [
        "{}",
        r#"[{"feature": "x"}]"#,
        r#"[{"feature": "x", "clip_scores": [], "avg_score": -1, "k": -1, "label": "y"}]"#,
    ] {
        let error = rows_from_json::<IouRow>(text).unwrap_err();
        assert_eq!(error.to_string(), "this is no list of score rows");
    }
}
