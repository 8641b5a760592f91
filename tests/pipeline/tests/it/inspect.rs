//! `sae-cache inspect` on caches made here, sound and broken.

use std::fs;

use act_cache::{
    BaseTile, CacheDescription, CacheWriter, DatasetSource, HookDescription, SampleCodes, SampleRecord,
    WriterOptions,
};
use pipeline_tests::Scratch;
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
use serde_json::{Value, json};

/// Per sample the activations of features 1, 2 and 5 at tokens 1 to 5; the base tile is tokens 1 to 4.
const SAMPLES: [[[f32; 5]; 3]; 3] = [
    [[1.0, 0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 0.0], [0.0; 5]],
    [[3.0, 0.0, 0.0, 0.0, 0.0], [0.0; 5], [0.0, 0.0, 0.0, 0.0, 4.0]],
    [[0.0; 5], [8.0, 0.0, 0.0, 0.0, 1.0], [0.0; 5]],
];

/// Writes `cache`: 8 latents at each of `layers`, in two splits.
fn cache(scratch: &Scratch, layers: &[usize]) {
    let hooks: Vec<HookPoint> = layers.iter().map(|&layer| HookPoint::layer(layer)).collect();
    let mut description = CacheDescription { model: "a-model".to_owned(), ..CacheDescription::default() };
    description.dataset =
        DatasetSource { name: "a-set".to_owned(), n_samples: 3, ..DatasetSource::default() };
    description.token_layout.base = Some(BaseTile { start: 1, rows: 2, cols: 2 });
    for hook in &hooks {
        let about = HookDescription { width: 8, k: 3, ..HookDescription::default() };
        description.hooks.insert(hook.clone(), about);
    }
    let options = WriterOptions { n_splits: 2, ..WriterOptions::default() };
    let mut writer = CacheWriter::create(&scratch.path("cache"), description, options).unwrap();
    for (sample, values) in SAMPLES.iter().enumerate() {
        let mut codes = SparseCodes::new(8);
        for token in 0..5 {
            let on = [1, 2, 5].into_iter().zip(values).map(|(feature, row)| (FeatureId(feature), row[token]));
            codes.push_row(on.filter(|(_, value)| *value > 0.0)).unwrap();
        }
        let record = SampleRecord {
            sample: SampleId(sample as u32),
            id: Some(format!("picture {sample}")),
            n_tokens: 6,
            width: 10,
            height: 10,
            image_sha256: Some(format!("image {sample}")),
            image_tokens: vec![[1, 5]],
            ..SampleRecord::default()
        };
        let codes: Vec<_> =
            hooks.iter().map(|hook| SampleCodes { hook, tokens: &[1, 2, 3, 4, 5], codes: &codes }).collect();
        writer.push(&record, &codes).unwrap();
    }
    writer.finish().unwrap();
}

fn inspected(scratch: &Scratch, flags: &str) -> Value {
    let run = scratch.run("sae-cache", &format!("inspect cache --json {flags}"));
    serde_json::from_str(&run.stdout).unwrap()
}

#[test]
fn json_says_everything() {
    let scratch = Scratch::new();
    cache(&scratch, &[1]);
    let report = inspected(
        &scratch,
        "--features 5,1..3 --samples 2 --co-occurrence sample --sample 0 --token 1 --verify",
    );
    assert_eq!(report["model"], "a-model");
    assert_eq!(report["counts"]["activations"], 9);
    let hook = &report["hooks"]["model.layers.1"];
    assert_eq!((&hook["width"], &hook["tokens"], &hook["image_tokens"]), (&json!(8), &json!(15), &json!(12)));
    assert_eq!((&hook["n_splits"], &hook["never_active"]), (&json!(2), &json!(5)));
    let sizes = fs::read_dir(scratch.path("cache/model.layers.1")).unwrap();
    let bytes: u64 = sizes.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!((&hook["bytes"], &hook["bytes_per_activation"]), (&json!(bytes), &json!(bytes as f64 / 9.0)));
    assert_eq!(hook["distribution"]["samples"]["max"], 2.0);

    let features = hook["features"].as_array().unwrap();
    assert_eq!(features.iter().map(|f| f["feature"].clone()).collect::<Vec<_>>(), [5, 1, 2]);
    // Feature 2: the whole tile once, one patch once.
    assert_eq!((&features[2]["spread"], &features[2]["max"]), (&json!(0.5), &json!(8.0)));
    assert_eq!((&features[0]["text_ratio"], &features[1]["text_ratio"]), (&json!(1.0), &json!(0.0)));
    assert_eq!(
        features[1]["samples"],
        json!([
            { "sample": 1, "score": 0.75, "rank": 0, "id": "picture 1" },
            { "sample": 0, "score": 0.25, "rank": 1, "id": "picture 0" },
        ])
    );
    assert!(features[0].get("samples").is_none(), "5 is not on the base tile: {}", features[0]);

    let together = &hook["co_occurrence"];
    assert_eq!(together["features"], json!([5, 1, 2]));
    assert_eq!(together["counts"], json!([[1, 1, 0], [1, 2, 1], [0, 1, 2]]));
    assert_eq!(together["jaccard"][1][2], json!(1.0 / 3.0));
    assert_eq!(hook["sample"]["record"]["id"], "picture 0");
    assert_eq!(hook["sample"]["features"][0]["activations"], json!([[1, 2.0], [2, 2.0], [3, 2.0], [4, 2.0]]));
    assert_eq!(hook["sample"]["token"], json!([[2, 2.0], [1, 1.0]]));
    let severities: Vec<_> = report["findings"].as_array().unwrap().iter().map(|f| &f["severity"]).collect();
    assert_eq!(severities, ["warning", "note"], "five of eight features are silent; no fingerprint");
}

#[test]
fn features_are_sorted_bounded_and_written_as_filters() {
    let scratch = Scratch::new();
    cache(&scratch, &[1, 2]);
    let order = |flags: &str| -> Vec<u64> {
        let report = inspected(&scratch, &format!("--hook model.layers.2 {flags}"));
        let features = report["hooks"]["model.layers.2"]["features"].as_array().unwrap();
        features.iter().map(|feature| feature["feature"].as_u64().unwrap()).collect()
    };
    assert_eq!(order("--sort activations"), [2, 1, 5]);
    assert_eq!(order("--sort max"), [2, 5, 1]);
    assert_eq!(order("--sort mean --ascending"), [1, 2, 5]);
    assert_eq!(order("--sort spread"), [2, 1, 5], "5 has none");
    assert_eq!(order("--sort spread --ascending"), [1, 2, 5], "and comes last either way");
    assert_eq!(order("--sort samples --top 1"), [1], "of equal ones the lower");
    assert_eq!(order("--max-density 0.2"), [1, 5]);
    scratch.run("sae-cache", "inspect cache --min-samples 2 --filters-out few.json");
    assert_eq!(
        scratch.json("few.json"),
        json!({ "model.layers.1": [1, 2], "model.layers.2": [1, 2] }),
        "the features of every hook point"
    );
    let drawn = || order("--samples 2 --by random --seed 3");
    assert_eq!(drawn(), drawn());
}

#[test]
fn the_table_has_what_the_json_has() {
    let scratch = Scratch::new();
    cache(&scratch, &[1]);
    let run = scratch.run("sae-cache", "inspect cache --features 1,2 --by max --co-occurrence --sample 1");
    let lines: Vec<Vec<&str>> = run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    for line in [
        "model a-model",
        "latents 8, k 3",
        "features 8 stored, 5 never active",
        "feature activations samples density mean max spread text_ratio",
        "2 6 2 0.4000 2.8333 8 0.5000 0.2000",
        "samples of feature 2",
        "0 2 8 picture 2",
        "2 1 6",
        "sample 1 (picture 1): 6 tokens, 10 x 10 pixels",
        "5 1 4 5",
    ] {
        let line: Vec<&str> = line.split_whitespace().collect();
        assert!(lines.contains(&line), "{line:?} is not in\n{}", run.stdout);
    }
    assert!(run.stdout.contains("note: manifest.json: names no fingerprint"), "{}", run.stdout);
}

#[test]
fn a_broken_cache_is_described_and_fails() {
    let scratch = Scratch::new();
    cache(&scratch, &[1, 2]);
    let path = scratch.path("cache/model.layers.1/4_7.safetensors");
    let sound = fs::read(&path).unwrap();
    fs::write(&path, &sound[..sound.len() - 1]).unwrap();
    let run = scratch.finish(scratch.command("sae-cache", "inspect cache --json")).ends_with(1);
    let run = run.says(&["error: cache: 1 finding is an error"]);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["findings"][0]["place"], "model.layers.1/4_7.safetensors");
    assert!(
        report["hooks"].get("model.layers.1").is_none() && report["hooks"].get("model.layers.2").is_some()
    );

    // Damage that only --verify sees.
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&path, flipped).unwrap();
    scratch.run("sae-cache", "inspect cache");
    let run = scratch.finish(scratch.command("sae-cache", "inspect cache --verify")).ends_with(1);
    assert!(run.stdout.contains("error: model.layers.1/4_7.safetensors: has SHA-256"), "{run}");
    fs::write(&path, sound).unwrap();

    fs::write(scratch.path("cache/model.layers.1/4_6.safetensors"), "x").unwrap();
    let run = scratch.run("sae-cache", "inspect cache");
    assert!(run.stdout.contains("warning: model.layers.1/4_6.safetensors: is not in the manifest"), "{run}");
}

#[test]
fn drift_of_the_data_set_is_found() {
    let scratch = Scratch::new();
    scratch.images("data", 3);
    scratch.sae("sae", &HookPoint::layer(1), 128, 16, 2);
    scratch.run("sae-cache", "images model data --sae sae --save-dir cache");
    let run = scratch.run("sae-cache", "inspect cache --dataset data --verify");
    assert!(!run.stdout.contains("error:") && !run.stdout.contains("dataset."), "{run}");

    fs::copy(scratch.path("data/000.png"), scratch.path("data/001.png")).unwrap();
    let run = scratch.finish(scratch.command("sae-cache", "inspect cache --dataset data")).ends_with(1);
    assert!(run.stdout.contains("error: samples.jsonl: 1 of 3 samples show another image: 1;"), "{run}");
}

#[test]
fn wrong_questions_are_refused() {
    let scratch = Scratch::new();
    cache(&scratch, &[1, 2]);
    for (flags, code, words) in [
        ("model", 1, "model is no native cache: it has no manifest.json"),
        ("cache --features 1", 2, "add --hook, one of model.layers.1, model.layers.2"),
        ("cache --features 3..3 --hook model.layers.1", 2, "expected 7, or 0..100 without 100"),
        ("cache --features 8 --hook model.layers.1", 1, "feature 8 is beyond the 8 latents"),
        ("cache --hook model.layers.7", 1, "it holds model.layers.1, model.layers.2"),
        ("cache --sample 3", 1, "the cache does not hold sample 3"),
        ("cache --token 3", 2, "--sample <ID>"),
    ] {
        scratch.refuses("sae-cache", &format!("inspect {flags}"), code, &[words]);
    }
}
