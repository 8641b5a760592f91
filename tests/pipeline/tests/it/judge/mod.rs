//! `sae-score detection` and `fuzz` against judges on loopback that answer by a known rule, so that every score is known.

mod images;
mod imperfect;
mod runs;
mod text;

use explain::{FeatureKey, Outcome, Record, Shown};
use image::{ImageFormat, RgbImage};
use pipeline_tests::Scratch;
use pipeline_tests::caches::{GRID, painted, write_cache};
use pipeline_tests::chat::{Reply, shown};
use sae_types::{FeatureId, HookPoint, SampleId};
use serde_json::Value;

const SAMPLES: u32 = 96;
/// Features with an explanation. Each comes with a wider one, `+ FEATURES`, which is also on in samples without it.
const FEATURES: u32 = 6;
/// What features are about, and how they are explained: in words that no instructions have.
const COLOURS: [(&str, [u8; 3]); FEATURES as usize] = [
    ("vermilion", [227, 66, 52]),
    ("teal", [0, 128, 128]),
    ("olive", [128, 128, 0]),
    ("indigo", [75, 0, 130]),
    ("salmon", [250, 128, 114]),
    ("khaki", [240, 230, 140]),
];
/// What the wider features alone are on on.
const NEAR: [u8; 3] = [90, 90, 90];
/// Samples that the explainer was shown of each feature: the strongest.
const SEEN: usize = 3;

/// Flags under which a judge sees exactly the colours that there are: a part that is not lit is black.
const EXACT: &str = "--image-side 0 --image-format png";
const LIT: &str = "--mask nearest --dim 0";

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The feature and the wider one.
    On,
    /// The wider one alone.
    Near,
    Off,
}

/// What a feature is in a sample: one of four is on, one near, and no two features go together.
fn state(feature: u32, sample: u32) -> State {
    let mut x = (u64::from(feature) << 32) | u64::from(sample);
    for _ in 0..2 {
        x = (x ^ (x >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    match (x >> 40) % 4 {
        0 => State::On,
        1 => State::Near,
        _ => State::Off,
    }
}

/// The patch a feature is on in a sample: another than any other feature's.
fn patch(feature: u32, sample: u32) -> u32 {
    (2 * feature + sample) % (GRID.0 * GRID.1)
}

/// The feature whose patch it is.
fn feature_at(at: u32, sample: u32) -> Option<u32> {
    (0..FEATURES).find(|&feature| patch(feature, sample) == at)
}

fn picture(sample: u32) -> RgbImage {
    painted(sample, |at| {
        let feature = feature_at(at, sample)?;
        match state(feature, sample) {
            State::On => Some(COLOURS[feature as usize].1),
            State::Near => Some(NEAR),
            State::Off => None,
        }
    })
}

/// A cache of pictures in `cache`, the pictures in `data`, explanations in `explained`.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    std::fs::create_dir(&data).unwrap();
    for sample in 0..SAMPLES {
        picture(sample).save_with_format(data.join(format!("{sample:03}.png")), ImageFormat::Png).unwrap();
    }
    write_cache(&scratch.path(""), 2 * FEATURES as usize + 1, 2, |sample, at| {
        let Some(feature) = feature_at(at, sample) else { return Vec::new() };
        let value = 1.0 + sample as f32 / 64.0;
        match state(feature, sample) {
            State::On => vec![(feature, value), (feature + FEATURES, value)],
            State::Near => vec![(feature + FEATURES, value)],
            State::Off => Vec::new(),
        }
    });
    let explained = (0..FEATURES).map(|feature| {
        let text = COLOURS[feature as usize].0.to_owned();
        (feature, Outcome::Answered(text), seen(feature))
    });
    write_explanations(&scratch, explained);
    scratch
}

/// The samples that the explainer was shown.
fn seen(feature: u32) -> Vec<u32> {
    (0..SAMPLES).rev().filter(|&sample| state(feature, sample) == State::On).take(SEEN).collect()
}

/// A ledger as sae-explain writes it.
fn write_explanations(scratch: &Scratch, of: impl Iterator<Item = (u32, Outcome, Vec<u32>)>) {
    std::fs::create_dir_all(scratch.path("explained")).unwrap();
    let mut ledger = String::new();
    for (feature, outcome, samples) in of {
        let key = FeatureKey { hook: HookPoint::layer(1), feature: FeatureId(feature) };
        let mut record = Record::of(&key, outcome);
        record.shown = samples.into_iter().map(|sample| Shown::example(SampleId(sample), 1.0)).collect();
        ledger += &(serde_json::to_string(&record).unwrap() + "\n");
    }
    std::fs::write(scratch.path("explained/explanations.jsonl"), ledger).unwrap();
}

/// The feature that a question is about, by the colour it names.
fn asked_about(text: &str) -> u32 {
    let named: Vec<usize> = (0..COLOURS.len()).filter(|&i| text.contains(COLOURS[i].0)).collect();
    assert_eq!(named.len(), 1, "{text}");
    named[0] as u32
}

/// Whether a picture shows the colour, in a part that is lit.
fn shows(picture: &RgbImage, feature: u32) -> bool {
    picture.pixels().any(|pixel| pixel.0 == COLOURS[feature as usize].1)
}

/// What is right about each picture of a question.
fn truth(request: &Value) -> Vec<bool> {
    let (pictures, text) = shown(request);
    let feature = asked_about(&text);
    pictures.iter().map(|picture| shows(picture, feature)).collect()
}

/// A judge that sees everything.
fn perfect(_: usize, request: &Value) -> Reply {
    match truth(request).as_slice() {
        [one] => Reply::answer(&format!("[ANSWER]: {}", u8::from(*one))),
        many => Reply::answer(&format!("[ANSWER]: {}", list(many))),
    }
}

fn list(verdicts: &[bool]) -> String {
    let digits: Vec<&str> = verdicts.iter().map(|&verdict| if verdict { "1" } else { "0" }).collect();
    format!("[{}]", digits.join(", "))
}

fn records(scratch: &Scratch, ledger: &str) -> Vec<Record> {
    scratch.read(ledger).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Flags of either score on a scratch folder.
fn flags(score: &str, endpoint: &str) -> String {
    format!(
        "{score} --cache cache --dataset data --explanations explained --save-dir scores --endpoint {endpoint} {EXACT}{}",
        if score == "fuzz" { format!(" {LIT}") } else { String::new() }
    )
}

/// Runs to success; gives what is printed.
fn score(scratch: &Scratch, arguments: &str) -> Value {
    serde_json::from_str(&scratch.run("sae-score", arguments).stdout).unwrap()
}

/// A figure of every feature.
fn of_features(scores: &Value, figure: &str) -> Vec<Option<f64>> {
    scores["features"].as_array().unwrap().iter().map(|feature| feature[figure].as_f64()).collect()
}
