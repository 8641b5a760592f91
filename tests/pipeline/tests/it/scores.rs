//! `sae-score iou`, `clip` and `monosemanticity` on a cache whose features are known, so that scores are.

use std::io::Cursor;
use std::path::Path;

use image::{GrayImage, ImageFormat, Luma, RgbImage};
use mm_data::{EncodedImage, Field, ImageColumn, MaskAnnotation, ParquetWriter, Sample};
use pipeline_tests::Scratch;
use pipeline_tests::caches::{GRID, PATCH, painted, patch_at, write_cache};
use serde_json::Value;

pub(crate) const SAMPLES: u32 = 12;
/// Each is the colour of one patch, another in each sample.
const COLOURS: [(&str, [u8; 3]); 3] =
    [("vermilion", [227, 66, 52]), ("teal", [0, 128, 128]), ("olive", [128, 128, 0])];

/// Where a colour is: patches of different colours lie three apart.
fn patch(colour: u32, sample: u32) -> u32 {
    (3 * colour + sample) % (GRID.0 * GRID.1)
}

/// Where a feature is on. Feature 0 is on on its colour, 1 also on the patch below or above it, 2 on the colour of 0 only.
fn on(feature: u32, sample: u32) -> Vec<u32> {
    match feature {
        1 => {
            let own = patch(1, sample);
            vec![own, if own < GRID.1 { own + GRID.1 } else { own - GRID.1 }]
        }
        _ => vec![patch(0, sample)],
    }
}

pub(crate) fn picture(sample: u32) -> RgbImage {
    painted(sample, |at| {
        (0..3).find(|&colour| patch(colour, sample) == at).map(|colour| COLOURS[colour as usize].1)
    })
}

fn png(save: impl FnOnce(&mut Cursor<Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    save(&mut bytes);
    bytes.into_inner()
}

pub(crate) fn sample(number: u32) -> Sample {
    let mask = |colour: u32| {
        let mask = GrayImage::from_fn(GRID.1 * PATCH, GRID.0 * PATCH, |x, y| {
            Luma([if patch_at(x, y) == patch(colour, number) { 255 } else { 0 }])
        });
        let labels = vec![COLOURS[colour as usize].0.to_owned(), "patch".to_owned()];
        MaskAnnotation { labels, png: png(|bytes| mask.write_to(bytes, ImageFormat::Png).unwrap()) }
    };
    let bytes = png(|bytes| picture(number).write_to(bytes, ImageFormat::Png).unwrap());
    let images = vec![EncodedImage { name: None, bytes }];
    Sample { id: Some(number.to_string()), images, masks: (0..3).map(mask).collect(), ..Sample::default() }
}

/// A data set with masks in `data`, its cache in `cache`, and what is said of its features in `explained`.
pub(crate) fn scratch(explanations: &[(u32, &str)]) -> Scratch {
    let scratch = Scratch::new();
    write_data(&scratch, (0..SAMPLES).map(sample));
    write_cache(&scratch.path(""), 4, 3, strengths);
    explain(&scratch, explanations);
    scratch
}

pub(crate) fn write_data(scratch: &Scratch, samples: impl Iterator<Item = Sample>) {
    let data = scratch.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let file = data.join("train-00000-of-00001.parquet");
    let mut writer =
        ParquetWriter::with_fields(&file, ImageColumn::Single, &[Field::Images, Field::Masks]).unwrap();
    samples.for_each(|sample| writer.push(sample).unwrap());
    writer.finish().unwrap();
}

/// What is on in a patch of a sample, the later the sample the stronger.
pub(crate) fn strengths(number: u32, at: u32) -> Vec<(u32, f32)> {
    let features = (0..3).filter(|&feature| on(feature, number).contains(&at));
    features.map(|feature| (feature, 1.0 + number as f32 / 8.0)).collect()
}

pub(crate) fn explain(scratch: &Scratch, explanations: &[(u32, &str)]) {
    let lines: Vec<Value> = explanations
        .iter()
        .map(|(feature, text)| serde_json::json!({ format!("model.layers.1_feature{feature}"): text }))
        .collect();
    std::fs::create_dir_all(scratch.path("explained")).unwrap();
    std::fs::write(scratch.path("explained/model_layers_1.json"), Value::from(lines).to_string()).unwrap();
}

pub(crate) const SAID: [(u32, &str); 3] = [(0, "vermilion"), (1, "Teal."), (2, "olive")];
pub(crate) const IOU: &str =
    "iou --explanations explained --cache cache --dataset data --masks annotations --save-dir iou";

pub(crate) fn means(summary: &Value, key: &str) -> Vec<Option<f64>> {
    summary["features"].as_array().unwrap().iter().map(|feature| feature[key].as_f64()).collect()
}

#[test]
fn overlaps_are_those_of_the_masks() {
    let scratch = scratch(&SAID);
    let run = scratch.run("sae-score", IOU);
    let summary = scratch.json("iou/iou.summary.json");
    // On the thing, on as much again, and elsewhere.
    assert_eq!(means(&summary, "mean"), [Some(1.0), Some(0.5), Some(0.0)]);
    let total = &summary["table"]["total"];
    assert_eq!((&total["features"], total["score"]["mean"].as_f64()), (&Value::from(3), Some(0.5)));
    let printed: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(&printed["table"], &summary["table"]);
    // The whole of 15 patches holds the one, and olive is nowhere where feature 2 is on, but somewhere.
    let whole = summary["features"][0]["baselines"][2].as_f64().unwrap();
    assert!((whole - 1.0 / 15.0).abs() < 1e-12, "{whole}");
    let rows = scratch.json("iou/model_layers_1_iou.json");
    assert_eq!(rows[1]["iou_scores"], serde_json::json!([0.5, 0.5, 0.5, 0.5, 0.5]));
    assert_eq!((rows[1]["k"].as_i64(), rows[1]["label"].as_str()), (Some(5), Some("Teal.")));
    assert!((rows[1]["activated_pct"].as_f64().unwrap() - 2.0 / 15.0).abs() < 1e-12);
    let page = scratch.read("iou/iou.html");
    assert!(page.contains("model.layers.1_feature2") && page.contains("data:image/png"));
}

#[test]
fn what_cannot_be_scored_is_counted_apart() {
    let scratch = scratch(&[(0, "vermilion"), (1, "a dog"), (2, "Unable to produce descriptions")]);
    scratch.run("sae-score", IOU);
    let summary = scratch.json("iou/iou.summary.json");
    let total = &summary["table"]["total"];
    assert_eq!((&total["features"], &total["unable"]), (&Value::from(3), &Value::from(1)));
    assert_eq!(means(&summary, "mean"), [Some(1.0), Some(0.0)]);
    assert_eq!(summary["features"][1]["no_detection"], 5);
    let rows = scratch.json("iou/model_layers_1_iou.json");
    assert_eq!((rows[2]["avg_iou"].as_i64(), rows[2]["k"].as_i64()), (Some(-1), Some(-1)));
    // Left out of the mean, it has none.
    scratch.run("sae-score", &format!("{IOU} --misses-apart --resume"));
    assert_eq!(means(&scratch.json("iou/iou.summary.json"), "mean"), [Some(1.0), None]);
}

#[test]
fn msaes_mask_is_wider_and_a_run_goes_on_only_with_its_own() {
    let scratch = scratch(&SAID);
    scratch.run("sae-score", &format!("{IOU} --features 0"));
    scratch.refuses("sae-score", IOU, 2, &["--resume", "--overwrite"]);
    scratch.refuses("sae-score", &format!("{IOU} --resume --mask-cut msae"), 2, &["--mask-cut"]);
    scratch.run("sae-score", &format!("{IOU} --resume"));
    let whole = scratch.json("iou/iou.summary.json");
    let once = scratch.read("iou/iou.jsonl");
    assert_eq!(once.lines().count(), 3, "{once}");
    scratch.run("sae-score", &format!("{IOU} --overwrite"));
    assert_eq!(scratch.json("iou/iou.summary.json"), whole);
    scratch.run("sae-score", &format!("{IOU} --overwrite --mask-cut msae --save-images"));
    let blurred = means(&scratch.json("iou/iou.summary.json"), "mean")[0].unwrap();
    assert!((0.2..0.6).contains(&blurred), "{blurred}");
    assert!(scratch.path("iou/images/model_layers_1/model.layers.1_feature0/top_4.png").exists());
}

#[test]
fn workers_share_the_features() {
    let scratch = scratch(&SAID);
    for rank in [1, 0] {
        scratch.run("sae-score", &format!("{IOU} --world-size 2 --rank {rank}"));
    }
    assert_eq!(means(&scratch.json("iou/iou.summary.json"), "mean"), [Some(1.0), Some(0.5), Some(0.0)]);
}

/// A small random model that parity is tested with.
pub(crate) fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../parity/fixtures").join(name);
    path.canonicalize().unwrap().display().to_string()
}

#[test]
fn models_in_the_hubs_layout_ground_and_segment() {
    let scratch = scratch(&SAID);
    let (dino, sam) = (fixture("grounding_dino/tied/model"), fixture("sam/model"));
    let grounded = "iou --explanations explained --cache cache --dataset data --save-dir iou";
    // Random weights find something if anything will do.
    let flags =
        format!("--grounding-dino {dino} --sam {sam} --box-threshold 0 --max-examples 2 --random-images 1");
    scratch.run("sae-score", &format!("{grounded} {flags}"));
    let summary = scratch.json("iou/iou.summary.json");
    let scored: u64 = summary["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|feature| feature["scored"].as_u64().unwrap())
        .sum();
    assert!(scored > 0, "{summary:#}");
    let absent = format!("{grounded} --overwrite --grounding-dino {sam} --sam {sam}");
    let run = scratch.finish(scratch.command("sae-score", &absent)).ends_with(1);
    run.says(&["GroundingDINO"]);
}

#[test]
fn clip_scores_stand_beside_others_and_go_on_after_a_stop() {
    let scratch = scratch(&SAID);
    let made = scratch.path("made/model.layers.1_feature0");
    std::fs::create_dir_all(&made).unwrap();
    picture(0).save(made.join("0.png")).unwrap();
    let arguments = format!(
        "clip --explanations explained --cache cache --dataset data --save-dir clip --clip {} --generated made",
        fixture("clip/modern/model")
    );
    scratch.run("sae-score", &format!("{arguments} --features 0"));
    scratch.run("sae-score", &format!("{arguments} --resume"));
    let summary = scratch.json("clip/clip.summary.json");
    assert_eq!(summary["features"].as_array().unwrap().len(), 3);
    for feature in summary["features"].as_array().unwrap() {
        for key in ["whole", "region"] {
            let score = feature[key].as_f64().unwrap();
            assert!((0.0..=100.0).contains(&score), "{feature}");
        }
        assert!(
            feature["whole_baselines"][1].is_f64() && feature["region_baselines"][1].is_f64(),
            "{feature}"
        );
    }
    assert!(
        summary["features"][0]["generated"].is_f64() && summary["features"][1].get("generated").is_none()
    );
    let rows = scratch.json("clip/model_layers_1_clip.json");
    let row = rows[0]["clip_scores"].as_array().unwrap();
    let mean = row.iter().map(|score| score.as_f64().unwrap()).sum::<f64>() / row.len() as f64;
    assert!((mean - rows[0]["avg_score"].as_f64().unwrap()).abs() < 1e-9);
    assert!((mean - summary["features"][0]["whole"].as_f64().unwrap()).abs() < 1e-9);
    assert!(scratch.read("clip/clip.html").contains("data:image/png"));
}

#[test]
fn embeddings_are_made_once_whoever_makes_them() {
    let scratch = scratch(&SAID);
    let arguments =
        format!("monosemanticity --cache cache --dataset data --encoder {}", fixture("clip/dinov2/model"));
    scratch.run("sae-score", &format!("{arguments} --save-dir one"));
    let one = scratch.json("one/monosemanticity.json");
    let scores = means(&one, "score");
    // Feature 3 is on nowhere, and 0 and 2 in the same images.
    assert!(scores[..3].iter().all(Option::is_some) && scores[3..] == [None], "{one:#}");
    assert_eq!(scores[0], scores[2]);
    for rank in [0, 1] {
        scratch.run("sae-score", &format!("{arguments} --save-dir two --world-size 2 --rank {rank}"));
    }
    assert_eq!(scratch.json("two/monosemanticity.json")["features"], one["features"]);

    scratch.refuses("sae-score", &format!("{arguments} --save-dir one"), 2, &["--resume", "--overwrite"]);
    // Half a row, as a kill leaves it.
    let file = scratch.path("one/embeddings.0-of-1.f32");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2 - 3]).unwrap();
    scratch.run("sae-score", &format!("{arguments} --save-dir one --resume"));
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    assert_eq!(scratch.json("one/monosemanticity.json"), one);
}
