//! `refine`, `label` and `consistency`, on this project's folders and on published files.

use pipeline_tests::chat::{Reply, Server, shown};
use serde_json::json;

use crate::support::{Scratch, images};

const PUBLISHED: &str = r#"[{"model.layers.1_feature0": "The feature reacts to train tracks"},
    {"model.layers.1_feature1": "old"}, {"model.layers.1_feature1": "Snow on roofs"},
    {"model.layers.1_feature2": "Unable to produce descriptions"},
    {"model.layers.1_feature3": "Explanation could not be parsed."}]"#;

/// A folder with explanations of features 0 to 4, of which 2 is one the model was unable to give.
fn explained() -> (Scratch, String) {
    let scratch = Scratch::new();
    let server = Server::start(|number, _| match number {
        2 => Reply::answer("[EXPLANATION]: Unable to produce descriptions"),
        number => Reply::answer(&format!("[EXPLANATION]: concept {number}")),
    });
    scratch.succeeds(&format!("{} --features 0-4 --concurrency 1", images(&server.endpoint())));
    let endpoint = server.endpoint();
    (scratch, endpoint)
}

#[test]
fn explanations_are_refined_and_labelled() {
    let (scratch, _) = explained();
    let server = Server::start(|_, request| {
        let text = shown(request).1;
        let concept = text.lines().find(|line| line.starts_with("concept ")).unwrap().to_owned();
        let answer = if text.contains("Which kind") { "Colour" } else { &concept[8..] };
        Reply::answer(&format!("[ANSWER]: {answer}"))
    });
    let on = format!("--explanations out --endpoint {}", server.endpoint());
    let summary = scratch.succeeds(&format!("refine {on}"));
    assert_eq!((&summary["answered"], &summary["unable_before"], server.count()), (&json!(4), &json!(1), 4));
    let refined = json!([
        {"model.layers.1_feature0": "0"}, {"model.layers.1_feature1": "1"},
        {"model.layers.1_feature3": "3"}, {"model.layers.1_feature4": "4"},
    ]);
    assert_eq!(scratch.json("out/model_layers_1_refined.json"), refined);
    scratch.succeeds(&format!("label {on} --features 0-3"));
    let labels = json!([
        {"model.layers.1_feature0": "color"}, {"model.layers.1_feature1": "color"}, {"model.layers.1_feature3": "color"},
    ]);
    assert_eq!(scratch.json("out/model_layers_1_labels.json"), labels);
    assert_eq!(server.count(), 7);
    let summary = scratch.succeeds(&format!("label {on} --resume"));
    assert_eq!((&summary["answered"], &summary["before"], server.count()), (&json!(1), &json!(3), 8));
    // The explanations themselves are as they were.
    assert_eq!(scratch.records("out/explanations.jsonl").len(), 5);
    assert!(scratch.path("out/refined.run.json").exists() && scratch.path("out/labels.run.json").exists());
}

#[test]
fn explanations_that_changed_are_asked_about_again() {
    let (scratch, _) = explained();
    let server = Server::start(|_, request| {
        let text = shown(request).1;
        let concept = text.lines().find(|line| line.starts_with("concept ")).unwrap().to_owned();
        Reply::answer(&format!("[ANSWER]: {concept}"))
    });
    let refine = format!("refine --explanations out --endpoint {} --resume", server.endpoint());
    scratch.succeeds(&refine);
    assert_eq!(server.count(), 4);
    // Feature 0 is explained anew, 1 as before, 2 for the first time, 3 not at all.
    let explainer = Server::start(|number, _| match number {
        0 => Reply::answer("[EXPLANATION]: concept of another kind"),
        3 => Reply::answer("[EXPLANATION]: Unable to produce descriptions"),
        number => Reply::answer(&format!("[EXPLANATION]: concept {number}")),
    });
    let run = images(&explainer.endpoint());
    scratch.succeeds(&format!("{run} --features 0-3 --concurrency 1 --overwrite"));
    let summary = scratch.succeeds(&refine);
    assert_eq!((&summary["answered"], &summary["before"], server.count()), (&json!(2), &json!(1), 6));
    let refined = json!([
        {"model.layers.1_feature0": "concept of another kind"}, {"model.layers.1_feature1": "concept 1"},
        {"model.layers.1_feature2": "concept 2"},
    ]);
    assert_eq!(scratch.json("out/model_layers_1_refined.json"), refined);
    assert_eq!(scratch.succeeds(&refine)["before"], json!(3));
}

#[test]
fn published_files_are_read_with_their_duplicates_and_gaps() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("published")).unwrap();
    std::fs::write(scratch.path("published/model_layers_1.json"), PUBLISHED).unwrap();
    let server = Server::says("[ANSWER]: object");
    let file = "--explanations published/model_layers_1.json";
    scratch.fails(&format!("label {file} --endpoint {}", server.endpoint()), 2, &["--explanation-dir"]);
    let output =
        scratch.run(&format!("label {file} --explanation-dir labelled --endpoint {}", server.endpoint()));
    assert!(output.status.success());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("1 features are there more than once"), "{log}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        [&summary["answered"], &summary["unable_before"], &summary["without_explanation"]],
        [&json!(2), &json!(1), &json!(1)]
    );
    let texts: Vec<String> = server.seen().iter().map(|request| shown(request).1).collect();
    assert!(
        texts.iter().any(|text| text.contains("Snow on roofs"))
            && !texts.iter().any(|text| text.contains("\nold\n"))
    );
    // A folder of published files, written beside them; what else is in it is passed over.
    std::fs::write(scratch.path("published/cfg.json"), r#"{"k": 3}"#).unwrap();
    std::fs::write(scratch.path("published/old.json"), r#"[{"model.layers.1_feature9": "old"}]"#).unwrap();
    let label = format!("label --explanations published --endpoint {}", server.endpoint());
    assert_eq!(scratch.succeeds(&label)["answered"], json!(2));
    assert!(scratch.path("published/labels.jsonl").exists());
}

#[test]
fn labels_must_be_one_of_the_six() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("x.json"), PUBLISHED).unwrap();
    let server = Server::start(|number, _| {
        Reply::answer(if number % 2 == 0 { "[ANSWER]: action" } else { "**Part**." })
    });
    let run = format!(
        "label --explanations x.json --explanation-dir out --concurrency 1 --endpoint {}",
        server.endpoint()
    );
    let summary = scratch.succeeds(&run);
    assert_eq!((&summary["answered"], &summary["requests"]), (&json!(2), &json!(4)));
}

#[test]
fn verdicts_are_counted_with_their_intervals_per_label() {
    let (scratch, _) = explained();
    let labeller = Server::start(|_, request| {
        let part = shown(request).1.contains("concept 0");
        Reply::answer(if part { "[ANSWER]: part" } else { "[ANSWER]: object" })
    });
    scratch.succeeds(&format!("label --explanations out --endpoint {}", labeller.endpoint()));
    let judge = Server::start(|_, request| {
        let (pictures, text) = shown(request);
        assert_eq!(pictures.len(), 5);
        Reply::answer(if text.contains("\nconcept 4\n") { "[ANSWER]: 0" } else { "[ANSWER]: 1" })
    });
    let run = format!(
        "consistency --explanations out --labels out --cache cache --dataset data --endpoint {}",
        judge.endpoint()
    );
    let summary = scratch.succeeds(&run);
    assert_eq!(judge.count(), 4);
    let file = scratch.json("out/consistency.json");
    assert_eq!(summary["consistency"], file);
    assert_eq!(
        [&file["overall"]["n"], &file["overall"]["consistent"], &file["overall"]["share"]],
        [&json!(4), &json!(3), &json!(0.75)]
    );
    // Wilson, 3 of 4: 95 % from 0.3006 to 0.9544.
    let low = file["overall"]["interval_95"][0].as_f64().unwrap();
    assert!((low - 0.3006).abs() < 1e-3, "{low}");
    assert_eq!(file["per_label"]["part"]["share"], json!(1.0));
    assert_eq!(file["per_label"]["object"]["n"], json!(3));
    let again = scratch.succeeds(&format!("{run} --resume"));
    // Labels are read from the published form as well.
    std::fs::create_dir(scratch.path("labels")).unwrap();
    std::fs::copy(
        scratch.path("out/model_layers_1_labels.json"),
        scratch.path("labels/model_layers_1_labels.json"),
    )
    .unwrap();
    std::fs::copy(scratch.path("out/model_layers_1.json"), scratch.path("labels/model_layers_1.json"))
        .unwrap();
    let published = scratch.succeeds(&format!("{} --resume", run.replace("--labels out", "--labels labels")));
    assert_eq!(published["consistency"], file);
    assert_eq!((&again["before"], &again["consistency"], judge.count()), (&json!(4), &file, 4));
    // Judging anew leaves what is judged alone.
    let explanations = std::fs::read(scratch.path("out/model_layers_1.json")).unwrap();
    scratch.succeeds(&format!("{run} --overwrite --features 0"));
    assert_eq!(std::fs::read(scratch.path("out/model_layers_1.json")).unwrap(), explanations);
    assert_eq!(scratch.json("out/consistency.json")["overall"]["n"], json!(1));
    std::fs::write(scratch.path("other.json"), r#"[{"model.layers.9_feature1": "x"}]"#).unwrap();
    let other = run.replace("--explanations out", "--explanations other.json --explanation-dir judged");
    scratch.fails(&other, 2, &["none of the features"]);
}
