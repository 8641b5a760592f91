//! Data sets that cannot be read, or not wholly.

use std::fs;

use act_cache::Cache;
use pipeline_tests::Scratch;
use sae_types::{HookPoint, SampleId};

const TRAIN: &str = "--layers 2 --num-latents 64 --k 4 --eval-examples 0 --save-dir out";
const CACHE: &str = "images model images --sae sae --batch-size 2 --save-dir out";

/// Four pictures, the third of which is none.
fn spoilt() -> Scratch {
    let scratch = Scratch::new();
    scratch.images("images", 4);
    fs::write(scratch.path("images/002.png"), b"\x89PNG\r\n\x1a\nand then nothing").unwrap();
    scratch.sae("sae", &HookPoint::layer(2), 128, 64, 4);
    scratch
}

#[test]
fn an_unreadable_image_ends_the_run_unless_it_may_be_left_out() {
    let scratch = spoilt();
    scratch.refuses("sae-cache", CACHE, 1, &["images/002.png", "decode"]);
    scratch.run("sae-cache", &format!("{CACHE} --max-bad 1")).says(&["images/002.png"]);

    let cache = Cache::open(&scratch.path("out")).unwrap();
    cache.verify().unwrap();
    let samples: Vec<SampleId> = cache.samples().iter().map(|record| record.sample).collect();
    assert_eq!(samples, [0, 1, 3].map(SampleId));
    assert_eq!(cache.manifest().dataset.n_samples, 4);
    assert_eq!(scratch.json("out/run.json")["counts"]["bad records"], 1);
}

#[test]
fn more_unreadable_images_than_allowed() {
    let scratch = spoilt();
    fs::write(scratch.path("images/003.png"), "").unwrap();
    scratch.refuses("sae-cache", &format!("{CACHE} --max-bad 1"), 1, &["images/003.png", "--max-bad"]);
}

#[test]
fn training_counts_an_unreadable_image_once_however_often_it_is_met() {
    let scratch = spoilt();
    let arguments = format!("model images {TRAIN}");
    scratch.refuses("sae-train", &arguments, 1, &["images/002.png"]);
    scratch.run("sae-train", &format!("{arguments} --epochs 2 --max-bad 1")).says(&["images/002.png"]);
    assert_eq!(scratch.json("out/run.json")["counts"]["bad records"], 1);
}

#[test]
fn nothing_there() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("empty")).unwrap();
    fs::write(scratch.path("none.json"), "[]").unwrap();
    scratch.refuses("sae-train", &format!("model empty {TRAIN}"), 1, &["empty", "holds no"]);
    scratch.refuses("sae-train", &format!("model none.json {TRAIN}"), 1, &["none.json", "is empty"]);
    scratch.refuses("sae-train", &format!("model no-such-data {TRAIN}"), 1, &["no-such-data"]);
}

#[test]
fn a_split_that_is_missing() {
    let scratch = Scratch::new();
    scratch.run("sae-data", "shapes --count 2 --split train --save-dir data");
    scratch.refuses(
        "sae-train",
        &format!("model data --split test {TRAIN}"),
        1,
        &["data", "\"test\"", "train"],
    );
}

#[test]
fn a_truncated_parquet_file() {
    let scratch = Scratch::new();
    scratch.run("sae-data", "shapes --count 2 --save-dir data");
    let file = "data/data/train-00000-of-00001.parquet";
    let bytes = fs::read(scratch.path(file)).unwrap();
    fs::write(scratch.path(file), &bytes[..bytes.len() - 100]).unwrap();
    scratch.refuses("sae-train", &format!("model data {TRAIN}"), 1, &[file]);
}

#[test]
fn every_sample_held_out() {
    let scratch = Scratch::new();
    scratch.images("images", 2);
    let arguments = "model images --layers 2 --num-latents 64 --k 4 --save-dir out";
    scratch.refuses("sae-train", arguments, 1, &["images", "2 samples", "--eval-examples"]);
}

#[test]
fn a_record_with_nothing_in_it_is_a_bad_one() {
    let scratch = Scratch::new();
    let turns =
        r#"[{"from": "human", "value": "how many shapes are there ?"}, {"from": "gpt", "value": "two"}]"#;
    let good = format!("{{\"conversations\": {turns}}}");
    fs::write(scratch.path("chat.jsonl"), [&good, "{\"id\": 7}", &good].join("\n")).unwrap();
    let arguments = format!("model chat.jsonl {TRAIN}");
    scratch.refuses("sae-train", &arguments, 1, &["chat.jsonl", "no image, conversation, text or tokens"]);
    scratch.run("sae-train", &format!("{arguments} --max-bad 1"));
    assert_eq!(scratch.json("out/run.json")["counts"]["bad records"], 1);
}
