//! `sae-score` on caches, data sets and explanations that are not whole, and on folders that hold something already.

use explain::{FeatureKey, Outcome, Record};
use mm_data::Sample;
use pipeline_tests::Scratch;
use pipeline_tests::caches::{write_cache, write_cache_without};
use serde_json::{Value, json};
use stage_kit::hash_bytes;

use super::scores::{
    IOU, SAID, SAMPLES, explain, fixture, means, picture, sample, scratch, strengths, write_data,
};

fn key(feature: u32) -> FeatureKey {
    format!("model.layers.1_feature{feature}").parse().unwrap()
}

/// A ledger of sae-explain: what came of each feature, and the text that was asked about.
fn write_ledger(scratch: &Scratch, name: &str, lines: &[(u32, Outcome, Option<&str>)]) {
    let line = |(feature, outcome, about): &(u32, Outcome, Option<&str>)| {
        let record = Record {
            about: about.map(|text| hash_bytes(text.as_bytes())[..16].to_owned()),
            ..Record::of(&key(*feature), outcome.clone())
        };
        serde_json::to_string(&record).unwrap() + "\n"
    };
    std::fs::create_dir_all(scratch.path("explained")).unwrap();
    let text: String = lines.iter().map(line).collect();
    std::fs::write(scratch.path("explained").join(name), text).unwrap();
}

fn answered(text: &str) -> Outcome {
    Outcome::Answered(text.to_owned())
}

/// The lines of a score's ledger, the last of each feature.
fn lines(scratch: &Scratch, ledger: &str) -> Vec<Value> {
    let mut last = std::collections::BTreeMap::new();
    for line in scratch.read(ledger).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        last.insert(line["feature"].as_u64().unwrap(), line);
    }
    last.into_values().collect()
}

fn explanations(summary: &Value) -> Vec<&str> {
    let features = summary["features"].as_array().unwrap().iter();
    features.map(|feature| feature["explanation"].as_str().unwrap()).collect()
}

fn without_masks(number: u32) -> Sample {
    Sample { masks: Vec::new(), ..sample(number) }
}

#[test]
fn records_that_were_left_out_shift_nothing() {
    // Off in two samples, one of which has no record in the second cache.
    let on = |number, at| if matches!(number, 0 | 3) { Vec::new() } else { strengths(number, at) };
    let scores = |without: &[u32]| {
        let scratch = Scratch::new();
        write_data(&scratch, (0..SAMPLES).map(sample));
        write_cache_without(&scratch.path(""), without, 4, 3, on);
        explain(&scratch, &SAID);
        // All images there are are drawn, and none that is not.
        scratch.run("sae-score", &format!("{IOU} --random-images 20"));
        let total = &scratch.json("iou/iou.summary.json")["table"]["total"];
        assert_eq!((&total["failed"], &total["score"]["mean"]), (&json!(0), &json!(0.5)), "{total}");
        for line in lines(&scratch, "iou/iou.jsonl") {
            assert_eq!(line["random"].as_array().unwrap().len(), SAMPLES as usize - without.len() - 5);
        }
        let encoder = fixture("clip/dinov2/model");
        scratch.run(
            "sae-score",
            &format!("monosemanticity --cache cache --dataset data --encoder {encoder} --save-dir ms"),
        );
        let scores = scratch.json("ms/monosemanticity.json");
        assert_eq!(scores["images"], SAMPLES as usize - without.len());
        means(&scores, "score")
    };
    let all = scores(&[]);
    assert!(all[..3].iter().all(Option::is_some), "{all:?}");
    assert_eq!(scores(&[3]), all);
}

#[test]
fn copies_of_an_image_are_one_image() {
    let scores = |copies: u32| {
        let scratch = Scratch::new();
        // Of the fifth.
        write_data(&scratch, (0..SAMPLES).chain((0..copies).map(|_| 5)).map(sample));
        write_cache(&scratch.path(""), 4, 3, |number, at| {
            strengths(if number < SAMPLES { number } else { 5 }, at)
        });
        let encoder = fixture("clip/dinov2/model");
        scratch.run(
            "sae-score",
            &format!("monosemanticity --cache cache --dataset data --encoder {encoder} --save-dir ms"),
        );
        let scores = scratch.json("ms/monosemanticity.json");
        assert_eq!(scores["images"], SAMPLES);
        scores["features"].clone()
    };
    assert_eq!(scores(3), scores(0));
}

#[test]
fn refining_forgets_neither_the_unable_ones_nor_what_changed() {
    let scratch = scratch(&[]);
    std::fs::remove_file(scratch.path("explained/model_layers_1.json")).unwrap();
    let explained = [
        (0, answered("a vermilion patch"), None),
        (1, answered("something teal"), None),
        (2, Outcome::Unable, None),
    ];
    write_ledger(&scratch, "explanations.jsonl", &explained);
    // Two workers refined what was said before; then feature 1 was explained and refined anew.
    write_ledger(&scratch, "refined.rank-0.jsonl", &[(0, answered("vermilion"), Some("a vermilion patch"))]);
    write_ledger(&scratch, "refined.rank-1.jsonl", &[(1, answered("olive"), Some("olive, perhaps"))]);
    write_ledger(&scratch, "refined.jsonl", &[(1, answered("teal"), Some("something teal"))]);
    write_ledger(
        &scratch,
        "labels.jsonl",
        &[(0, answered("color"), Some("a vermilion patch")), (1, answered("part"), Some("olive, perhaps"))],
    );
    let run = scratch.run("sae-score", &format!("{IOU} --refined --labels explained"));
    run.says(&["what is there of 1 features was made of texts that have changed since"]);
    let summary = scratch.json("iou/iou.summary.json");
    assert_eq!(explanations(&summary), ["vermilion", "teal"]);
    assert_eq!(means(&summary, "mean"), [Some(1.0), Some(0.5)]);
    let total = &summary["table"]["total"];
    assert_eq!((&total["features"], &total["unable"]), (&json!(3), &json!(1)));
    assert_eq!(scratch.json("iou/model_layers_1_iou.json")[2]["k"], -1);
    let labels: Vec<&Value> = summary["features"].as_array().unwrap().iter().map(|f| &f["label"]).collect();
    assert_eq!(labels, [&json!("color"), &Value::Null]);

    // What was refined alone does not say.
    std::fs::remove_file(scratch.path("explained/explanations.jsonl")).unwrap();
    let run = scratch.run("sae-score", &format!("{IOU} --refined --overwrite"));
    run.says(&["holds nothing but what was refined"]);
}

#[test]
fn the_unable_ones_are_those_of_all_runs() {
    let scratch = scratch(&[(0, "vermilion"), (1, "Unable to produce descriptions"), (2, "olive")]);
    let run = scratch.run("sae-score", &format!("{IOU} --features 0-1"));
    assert!(!run.stderr.contains("are not there"), "{run}");
    assert_eq!(scratch.json("iou/iou.summary.json")["table"]["total"]["unable"], 1);
    scratch.run("sae-score", &format!("{IOU} --features 2 --resume"));
    let total = scratch.json("iou/iou.summary.json")["table"]["total"].clone();
    assert_eq!((&total["features"], &total["unable"]), (&json!(3), &json!(1)));
    // Explained since, it is scored.
    explain(&scratch, &SAID);
    scratch.run("sae-score", &format!("{IOU} --resume"));
    let total = scratch.json("iou/iou.summary.json")["table"]["total"].clone();
    assert_eq!(
        (&total["features"], &total["unable"], &total["score"]["mean"]),
        (&json!(3), &json!(0), &json!(0.5))
    );
}

#[test]
fn a_baseline_of_a_text_that_changed_is_scored_anew() {
    let scratch = scratch(&SAID[..2]);
    scratch.run("sae-score", IOU);
    let others = |scratch: &Scratch| -> Vec<Value> {
        lines(scratch, "iou/iou.jsonl").iter().map(|line| line["other_text"].clone()).collect()
    };
    assert_eq!(others(&scratch), ["Teal.", "vermilion"]);
    explain(&scratch, &[(0, "vermilion"), (1, "olive")]);
    scratch.run("sae-score", &format!("{IOU} --resume"));
    assert_eq!(others(&scratch), ["olive", "vermilion"]);
    // Two who say the same have no other.
    explain(&scratch, &[(0, "vermilion"), (1, "Vermilion. ")]);
    scratch.run("sae-score", &format!("{IOU} --resume")).says(&["2 of 2 features are held against no other"]);
    assert_eq!(others(&scratch), [Value::Null, Value::Null]);
    let summary = scratch.json("iou/iou.summary.json");
    assert_eq!(
        (&summary["without_other_text"], &summary["features"][0]["baselines"][0]),
        (&json!(2), &Value::Null)
    );
}

#[test]
fn images_that_cannot_be_looked_at_are_told_and_tried_again() {
    let scratch = Scratch::new();
    // The strongest has no masks.
    write_data(
        &scratch,
        (0..SAMPLES).map(|number| if number == 11 { without_masks(number) } else { sample(number) }),
    );
    write_cache(&scratch.path(""), 4, 3, strengths);
    explain(&scratch, &SAID);
    scratch.run("sae-score", IOU).says(&["3 by some of their images only"]);
    let summary = scratch.json("iou/iou.summary.json");
    assert_eq!(means(&summary, "mean"), [Some(1.0), Some(0.5), Some(0.0)]);
    assert_eq!(
        (&summary["features"][0]["failed"], &summary["features"][0]["counted"]),
        (&json!(1), &json!(4))
    );
    scratch.run("sae-score", &format!("{IOU} --resume"));
    assert_eq!(scratch.read("iou/iou.jsonl").lines().count(), 3);
    scratch.run("sae-score", &format!("{IOU} --resume --retry-failed"));
    assert_eq!(scratch.read("iou/iou.jsonl").lines().count(), 6);
}

#[test]
fn a_run_that_could_look_at_nothing_is_no_success() {
    let scratch = Scratch::new();
    write_data(
        &scratch,
        (0..SAMPLES).map(|number| if number > 0 { without_masks(number) } else { sample(number) }),
    );
    write_cache(&scratch.path(""), 4, 3, strengths);
    explain(&scratch, &SAID);
    for flags in ["", " --resume", " --resume --retry-failed"] {
        let run = scratch.finish(scratch.command("sae-score", &format!("{IOU}{flags}"))).ends_with(1);
        run.says(&["none of the 3 features could be scored", "iou.jsonl"]);
    }
    let total = &scratch.json("iou/iou.summary.json")["table"]["total"];
    assert_eq!((&total["failed"], &total["undefined"]), (&json!(3), &json!(0)));
}

#[test]
fn a_data_set_without_masks_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    std::fs::create_dir(&data).unwrap();
    (0..SAMPLES).for_each(|number| picture(number).save(data.join(format!("{number:02}.png"))).unwrap());
    write_cache(&scratch.path(""), 4, 3, strengths);
    explain(&scratch, &SAID);
    scratch.refuses("sae-score", IOU, 1, &["--masks annotations", "no column `masks`"]);
}

#[test]
fn an_image_that_changed_is_left_out_and_not_the_feature() {
    let scratch = scratch(&SAID);
    // The two strongest show other pictures now.
    write_data(&scratch, (0..SAMPLES).map(|number| sample(if number < 10 { number } else { number + 20 })));
    let iou = format!("{IOU} --allow-drift --random-images 20");
    scratch.run("sae-score", &iou).says(&["3 by some of their images only"]);
    let summary = scratch.json("iou/iou.summary.json");
    assert_eq!(means(&summary, "mean"), [Some(1.0), Some(0.5), Some(0.0)]);
    assert_eq!(
        (&summary["features"][1]["failed"], &summary["features"][1]["counted"]),
        (&json!(2), &json!(3))
    );
    for line in lines(&scratch, "iou/iou.jsonl") {
        let reason = line["images"][0]["own"]["failed"].as_str().unwrap();
        assert!(reason.contains("another image than when the cache was made"), "{line}");
        assert_eq!(line["random"].as_array().unwrap().len(), 7, "the others that are as they were");
    }
    let clip = format!(
        "clip --explanations explained --cache cache --dataset data --allow-drift --save-dir clip --clip {}",
        fixture("clip/modern/model")
    );
    scratch.run("sae-score", &clip).says(&["3 by some of their images only"]);
    let images = lines(&scratch, "clip/clip.jsonl")[0]["images"].clone();
    assert!(images[1]["failed"].is_string() && images[1]["whole"].is_null(), "{images}");
    assert!(images[2]["failed"].is_null() && images[2]["whole"].is_f64(), "{images}");
}

#[test]
fn clip_sees_regions_that_its_crop_would_cut_off() {
    let scratch = scratch(&SAID);
    // It takes the middle square of a picture of 40 x 24 pixels.
    let clip = format!(
        "clip --explanations explained --cache cache --dataset data --save-dir clip --clip {}",
        fixture("clip/old/model")
    );
    scratch.run("sae-score", &clip);
    let images = lines(&scratch, "clip/clip.jsonl")[0]["images"].clone();
    // The feature is on on one patch: at the left end in sample 10, at the right end in sample 9. Were they cut off, both would be black.
    let region = |number: u64| {
        let image = images.as_array().unwrap().iter().find(|image| image["sample"] == number).unwrap();
        image["region"].as_f64().unwrap()
    };
    assert!(region(10) != region(9), "{images}");
}

#[test]
fn what_decides_a_score_may_not_change_within_a_folder() {
    let scratch = scratch(&SAID);
    let model = scratch.path("clip-model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(fixture("clip/modern/model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let made = scratch.path("made/model.layers.1_feature0");
    std::fs::create_dir_all(&made).unwrap();
    picture(0).save(made.join("0.png")).unwrap();
    let data = "--cache cache --dataset data";
    let clip = format!("clip --explanations explained {data} --clip clip-model --save-dir clip --resume");
    let generated = format!("{clip} --generated made");
    scratch.run("sae-score", &format!("{generated} --features 0"));
    scratch.refuses("sae-score", &format!("{generated} --dtype bf16"), 2, &["--dtype was f32, is bf16"]);
    scratch.refuses("sae-score", &clip, 2, &["--generated"]);
    // Somewhere else they are the same images.
    std::fs::rename(scratch.path("made"), scratch.path("moved")).unwrap();
    scratch.run("sae-score", &generated.replace("made", "moved"));
    picture(1).save(scratch.path("moved/model.layers.1_feature0/1.png")).unwrap();
    scratch.refuses(
        "sae-score",
        &generated.replace("made", "moved"),
        2,
        &["--generated (SHA-256 of its images)"],
    );

    let ms = format!("monosemanticity {data} --encoder clip-model --save-dir ms --resume");
    scratch.run("sae-score", &ms);
    let first = scratch.json("ms/monosemanticity.json");
    assert_eq!((&first["pool"], &first["encoder"]), (&json!("mean"), &json!("clip-model")));
    // Embeddings depend on neither.
    scratch.run("sae-score", &format!("{ms} --pool max --image-side 20"));
    assert_eq!(scratch.json("ms/monosemanticity.json")["pool"], "max");

    // Trained on, a model has the same configuration.
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    scratch.refuses("sae-score", &ms, 2, &["--encoder (SHA-256 of its files)"]);
    std::fs::remove_file(scratch.path("moved/model.layers.1_feature0/1.png")).unwrap();
    scratch.refuses("sae-score", &generated.replace("made", "moved"), 2, &["--clip (SHA-256 of its files)"]);
}

#[test]
fn starting_anew_leaves_nothing_of_the_old() {
    let scratch = scratch(&SAID);
    scratch.run("sae-score", &format!("{IOU} --save-images --features 0"));
    scratch.run("sae-score", &format!("{IOU} --resume --features 2 --rank 1 --world-size 2"));
    assert!(scratch.path("iou/iou.run.rank-1.json").exists() && scratch.path("iou/images").exists());
    scratch.run("sae-score", &format!("{IOU} --overwrite --features 1"));
    let mut names: Vec<String> = std::fs::read_dir(scratch.path("iou"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let left = ["iou.html", "iou.jsonl", "iou.run.json", "iou.summary.json", "model_layers_1_iou.json"];
    assert_eq!(names, left);
    assert_eq!(explanations(&scratch.json("iou/iou.summary.json")), ["Teal."]);
}
