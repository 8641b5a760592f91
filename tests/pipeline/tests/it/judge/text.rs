//! Judges of text, which see excerpts and for fuzzing marked tokens.

use act_cache::{
    CacheDescription, CacheJob, HookDescription, PartWriter, SampleCodes, SampleRecord, Shard, merge,
};
use explain::Outcome;
use lmm_prep::Tokenizer;
use pipeline_tests::Scratch;
use pipeline_tests::chat::{Reply, Server, shown};
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
use serde_json::json;

use super::{list, of_features, records, score, write_explanations};

const TEXTS: u32 = 60;
const COLOURS: [&str; 3] = ["red", "blue", "green"];
const SHAPES: [&str; 2] = ["circle", "square"];
/// Features that fire on a colour each, then those that fire on a shape each, then one that fires on every colour.
const EXPLAINED: [&str; 5] = ["red", "blue", "green", "circle", "square"];
const WIDE: u32 = EXPLAINED.len() as u32;

/// Words that tell the sentences apart.
const NUMBERS: [&str; 4] = ["one", "two", "three", "four"];

/// A cache of sentences in `texts`, no two alike.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let tokenizer = Tokenizer::load(&scratch.path("model")).unwrap();
    let hook = HookPoint::layer(1);
    let mut description = CacheDescription { model: "m".into(), ..CacheDescription::default() };
    let width = EXPLAINED.len() + 1;
    description.hooks.insert(hook.clone(), HookDescription { width, k: 2, ..HookDescription::default() });
    let job = CacheJob { keep_tokens: true, n_splits: 1, ..CacheJob::new(description) };
    let parts = scratch.path("texts.parts");
    let mut writer = PartWriter::open(&parts, &job, Shard::WHOLE, 1 << 20).unwrap();
    for sample in 0..TEXTS {
        let (colour, shape) = (COLOURS[sample as usize % 3], SHAPES[sample as usize / 3 % 2]);
        let [a, b, c] = [1, 4, 16].map(|place| NUMBERS[sample as usize / place % 4]);
        let text = format!("{a} {b} {c} the {colour} {shape} ? where is the ring ?");
        let ids = tokenizer.encode(&text, false).unwrap();
        let mut codes = SparseCodes::new(width);
        for &id in &ids {
            let word = tokenizer.decode(&[id], false).unwrap();
            let value = 1.0 + sample as f32 / 64.0;
            let named = EXPLAINED.iter().position(|name| *name == word.trim());
            let mut row = Vec::new();
            if let Some(feature) = named {
                row.push((FeatureId(feature as u32), value));
                if feature < COLOURS.len() {
                    row.push((FeatureId(WIDE), value));
                }
            }
            codes.push_row(row).unwrap();
        }
        let record =
            SampleRecord { sample: SampleId(sample), n_tokens: ids.len() as u32, ..SampleRecord::default() };
        let tokens: Vec<u32> = (0..ids.len() as u32).collect();
        let codes = [SampleCodes { hook: &hook, tokens: &tokens, codes: &codes }];
        writer.push(&record, Some(&ids[..]), &codes).unwrap();
        writer.advance(SampleId(sample + 1), &serde_json::Value::Null).unwrap();
    }
    writer.finish(SampleId(TEXTS), &serde_json::Value::Null).unwrap();
    std::fs::create_dir(scratch.path("texts")).unwrap();
    merge(&parts, &scratch.path("texts")).unwrap();
    let explained = EXPLAINED.iter().enumerate();
    let explained = explained.map(|(feature, name)| {
        // Named so that no instruction holds it.
        (
            feature as u32,
            Outcome::Answered(format!("the word {}", name.to_uppercase())),
            vec![59 - feature as u32],
        )
    });
    write_explanations(&scratch, explained);
    scratch
}

/// The excerpts of a question, and the word it is about.
fn read(request: &serde_json::Value) -> (Vec<String>, String) {
    let (_, text) = shown(request);
    let word = text.split("the word ").nth(1).unwrap().split_whitespace().next().unwrap().to_lowercase();
    let excerpts: Vec<String> = text
        .split("Excerpt ")
        .skip(1)
        .map(|part| part.split_once(": ").unwrap().1.split("\n\n").next().unwrap().to_owned())
        .collect();
    (excerpts, word)
}

/// The parts of an excerpt between marks.
fn marked(excerpt: &str) -> Vec<String> {
    excerpt.split("<<").skip(1).map(|part| part.split_once(">>").unwrap().0.trim().to_owned()).collect()
}

fn flags(score: &str, endpoint: &str) -> String {
    format!(
        "{score} --cache texts --model model --explanations explained --save-dir scores --endpoint {endpoint} --context 8"
    )
}

#[test]
fn a_perfect_reader_detects_everything() {
    let scratch = scratch();
    let server = Server::start(|_, request| {
        let (excerpts, word) = read(request);
        let verdicts: Vec<bool> =
            excerpts.iter().map(|excerpt| excerpt.split_whitespace().any(|other| other == word)).collect();
        Reply::answer(&format!("[ANSWER]: {}", list(&verdicts)))
    });
    let printed = score(&scratch, &flags("detection", &server.endpoint()));
    assert_eq!(
        (&printed["answered"], &printed["unparsed"]),
        (&json!(EXPLAINED.len()), &json!(0)),
        "{printed}"
    );
    let scores = scratch.json("scores/detection.json");
    assert_eq!(scores["shown"], "text");
    assert_eq!(of_features(&scores, "balanced_accuracy"), vec![Some(1.0); EXPLAINED.len()]);
    for request in server.seen() {
        let (excerpts, _) = read(&request);
        assert!((1..=5).contains(&excerpts.len()), "{excerpts:?}");
        assert!(excerpts.iter().all(|excerpt| marked(excerpt).is_empty()), "{excerpts:?}");
    }
    let records = records(&scratch, "scores/detection.jsonl");
    for record in &records {
        assert!(record.shown.iter().all(|shown| shown.sample.0 != 59 - record.feature.0), "explained");
        assert!(record.shown.iter().filter(|shown| !shown.not).count() >= 5, "{record:?}");
    }
    // Of a colour the hard ones name another.
    let red = records.iter().find(|record| record.feature.0 == 0).unwrap();
    let hard = red.shown.iter().filter(|shown| shown.hard).map(|shown| shown.sample.0 % 3);
    let hard: Vec<u32> = hard.collect();
    assert!(!hard.is_empty() && hard.iter().all(|&colour| colour != 0), "{hard:?}");
}

#[test]
fn a_perfect_reader_sees_which_tokens_are_wrong() {
    let scratch = scratch();
    let server = Server::start(|_, request| {
        let (excerpts, word) = read(request);
        let verdicts: Vec<bool> =
            excerpts.iter().map(|excerpt| marked(excerpt).iter().all(|marked| *marked == word)).collect();
        Reply::answer(&list(&verdicts))
    });
    let printed = score(&scratch, &(flags("fuzz", &server.endpoint()) + " --batch 4"));
    assert_eq!(printed["balanced_accuracy"]["total"]["score"]["mean"], 1.0, "{printed}");
    for request in server.seen() {
        let (excerpts, _) = read(&request);
        // A feature is on on one token, and so many are marked where it is off.
        assert!(excerpts.iter().all(|excerpt| marked(excerpt).len() == 1), "{excerpts:?}");
        assert!(excerpts.len() <= 4);
    }
    for record in records(&scratch, "scores/fuzz.jsonl") {
        let on: Vec<_> = record.shown.iter().filter(|shown| !shown.not).map(|shown| shown.sample).collect();
        let again = record.shown.iter().filter(|shown| shown.not && on.contains(&shown.sample)).count();
        assert!(again >= 5, "half of the wrong ones are in the same windows: {record:?}");
    }
}

#[test]
fn the_tokenizer_is_asked_for() {
    let scratch = scratch();
    let server = Server::says("[0]");
    let arguments = flags("detection", &server.endpoint()).replace("--model model", "");
    scratch.refuses("sae-score", &arguments, 2, &["--model", "tokenizer"]);
}
