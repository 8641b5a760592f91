//! `sae-steer sweep`: the same answers however they come about.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Scratch, fails, succeeds};

const QUESTION: &str = "how many shapes are there ?";

/// What a ledger says, by prompt, feature and strength.
fn by_key(records: &[Value]) -> BTreeMap<(u64, u64, String), Value> {
    records
        .iter()
        .map(|record| {
            let number = |name: &str| record[name].as_u64().unwrap();
            ((number("sample"), number("feature"), record["strength"].to_string()), record.clone())
        })
        .collect()
}

#[test]
fn kills_workers_and_batches_change_nothing() {
    let scratch = Scratch::of(3);
    let sweep = |flags: &str| {
        scratch.stage("sweep", QUESTION, &format!("--dataset scenes --features 1-3 -k 5 30 {flags}"))
    };
    let table = succeeds(&mut sweep("--save-dir whole"));
    assert!(table.contains("all features") && table.contains("model.layers.2:3"), "{table}");
    let whole = scratch.records("whole/sweep.jsonl");
    assert_eq!(whole.len(), 3 * 3 * 2);
    let wanted = by_key(&whole);
    assert_eq!(wanted.len(), whole.len());
    for record in &whole {
        assert_eq!(record["changed"], record["original"] != record["steered"], "{record}");
        assert!(record["effect"]["kl_first"].as_f64().unwrap() >= 0.0, "{record}");
        assert!(record["effect"]["perplexity"].as_f64().unwrap() >= 1.0, "{record}");
        assert_eq!(record["prompt"], QUESTION);
    }
    assert!(whole.iter().any(|record| record["changed"] == true));
    fails(&mut sweep("--save-dir whole"), 2, "--resume");

    // Killed again and again, it loses at most what was under way.
    let mut rounds = 0;
    loop {
        let mut child = sweep("--save-dir killed --resume --batch-size 1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let before = lines(&scratch);
        let start = Instant::now();
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success());
                break true;
            }
            if lines(&scratch) > before + 2 + rounds {
                child.kill().unwrap();
                child.wait().unwrap();
                break false;
            }
            assert!(start.elapsed() < Duration::from_mins(4));
            std::thread::sleep(Duration::from_millis(3));
        };
        if ended {
            break;
        }
        rounds += 1;
    }
    assert!(rounds > 0, "never killed");
    let killed = scratch.records("killed/sweep.jsonl");
    assert_eq!(killed.len(), whole.len(), "nothing is answered twice");
    assert_same(&by_key(&killed), &wanted);

    for rank in 0..2 {
        succeeds(&mut sweep(&format!("--save-dir shared --rank {rank} --world-size 2")));
    }
    let mut shared = scratch.records("shared/sweep.rank-0.jsonl");
    shared.extend(scratch.records("shared/sweep.rank-1.jsonl"));
    assert_same(&by_key(&shared), &wanted);
    let [whole, shared] = ["whole", "shared"].map(|name| scratch.json(&format!("{name}/effects.json")));
    assert_eq!(whole["features"].as_array().unwrap().len(), 6);
    assert_eq!(whole["strengths"][0]["n"], 9);
    assert_eq!(whole["features"][0]["changed"], shared["features"][0]["changed"]);

    let [all, feature] = [&whole["strengths"][0], &whole["features"][0]];
    assert_eq!((&all["features"], &all["prompts"], &all["not_finite"]), (&3.into(), &3.into(), &0.into()));
    assert!(all.get("changed_interval_95").is_none() && feature["changed_interval_95"].is_array());

    // multimodal-sae's files: one per prompt and strength.
    let msae = scratch.json("whole/msae/prompt-2/k-30/model.layers.2.json");
    let entry = &msae["model.layers.2_feature3"];
    let record = &wanted[&(2, 3, "30.0".to_owned())];
    assert_eq!(
        (&entry["original_resps"], &entry["clamped_resps"]),
        (&record["original"], &record["steered"])
    );
    assert_eq!(entry["idx"], 3);
    fails(&mut sweep("--save-dir whole --resume --mode add"), 2, "--mode was clamp, is add");
    // Another k makes of the same weights another autoencoder.
    let cfg = scratch.path("sae/model.layers.2/cfg.json");
    let text = std::fs::read_to_string(&cfg).unwrap();
    let mut changed: Value = serde_json::from_str(&text).unwrap();
    changed["k"] = 3.into();
    std::fs::write(&cfg, changed.to_string()).unwrap();
    fails(&mut sweep("--save-dir whole --resume"), 2, "cfg.json of model.layers.2");
    std::fs::write(&cfg, text).unwrap();
    fails(&mut sweep("--save-dir other --features 5-8"), 2, "8 is beyond model.layers.2");
    // Goes on with more.
    succeeds(&mut sweep("--save-dir whole --resume --samples 2 -k 7"));
    assert_eq!(scratch.records("whole/sweep.jsonl").len(), 18 + 6);
}

fn lines(scratch: &Scratch) -> usize {
    std::fs::read_to_string(scratch.path("killed/sweep.jsonl")).map_or(0, |text| text.lines().count())
}

/// Texts are the same; measures, which depend on who shares a batch in their last digits, nearly so.
#[track_caller]
fn assert_same(found: &BTreeMap<(u64, u64, String), Value>, wanted: &BTreeMap<(u64, u64, String), Value>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, wanted) in wanted {
        let found = &found[key];
        assert_eq!(
            (&found["original"], &found["steered"]),
            (&wanted["original"], &wanted["steered"]),
            "{key:?}"
        );
        for measure in ["kl_first", "kl_mean", "perplexity"] {
            let of = |record: &Value| record["effect"][measure].as_f64().unwrap();
            let (found, wanted) = (of(found), of(wanted));
            assert!(
                (found - wanted).abs() <= 1e-3 * wanted.abs().max(1e-3),
                "{key:?} {measure}: {found} {wanted}"
            );
        }
    }
}

#[test]
fn prompts_come_from_a_file_and_one_of_one_strength_is_msaes_file() {
    let scratch = Scratch::of(2);
    let data = r#"[{"prompt": "what color is the circle ?", "image": "scenes/001.png", "expected": "red"},
        {"prompt": "how many shapes are there ?", "image": 0, "answer": "two"}]"#;
    std::fs::write(scratch.path("data.json"), data).unwrap();
    let filters = r#"{"model.layers.2": [6, 2]}"#;
    std::fs::write(scratch.path("filters.json"), filters).unwrap();
    let sweep =
        |flags: &str| scratch.stage("sweep", "", &format!("--data data.json --filters filters.json {flags}"));
    fails(&mut sweep("--save-dir out --no-measures"), 2, "add --dataset");
    let both = "--dataset scenes --no-measures --json --overwrite --save-dir out";
    let table: Value = serde_json::from_str(&succeeds(&mut sweep(both))).unwrap();
    assert_eq!(table["strengths"][0]["strength"], 50.0, "multimodal-sae's value");
    assert!(table["strengths"][0]["expected"].is_number());
    let records = scratch.records("out/sweep.jsonl");
    assert_eq!(records.len(), 4);
    assert!(records[0]["effect"].is_null() && records[0]["expected"] == "red");
    succeeds(&mut sweep("--samples 1 --no-measures --save-dir one --compat msae"));
    let msae = scratch.json("one/model.layers.2.json");
    let names: Vec<&String> = msae.as_object().unwrap().keys().collect();
    assert_eq!(names, ["model.layers.2_feature2", "model.layers.2_feature6"]);
    // The same file of prompts with another picture is another sweep.
    std::fs::copy(scratch.path("scenes/000.png"), scratch.path("scenes/001.png")).unwrap();
    let again = "--samples 1 --no-measures --save-dir one --compat msae --resume";
    fails(&mut sweep(again), 2, "images of data was");
}
