//! Kills, workers, wrong usage.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use explain::Outcome;
use pipeline_tests::chat::{Server, shown};
use serde_json::json;

use super::{
    COLOURS, FEATURES, asked_about, flags, of_features, perfect, records, score, scratch, seen,
    write_explanations,
};

const ALL: usize = FEATURES as usize;
/// Questions about a feature.
const QUESTIONS: usize = 20;

#[test]
fn what_is_recorded_is_never_asked_again() {
    let scratch = scratch();
    // So many requests are answered, and the others held until there are more.
    let allowed = Arc::new((Mutex::new(50), Condvar::new()));
    let gate = Arc::clone(&allowed);
    let server = Server::start(move |number, request| {
        let (left, changed) = &*gate;
        let mut left = changed.wait_while(left.lock().unwrap(), |left| *left == 0).unwrap();
        *left -= 1;
        drop(left);
        perfect(number, request)
    });
    let arguments = flags("detection", &server.endpoint()) + " --concurrency 4 --resume";
    let mut child = scratch.command("sae-score", &arguments).spawn().unwrap();
    // All that may be answered is, and more is asked.
    while server.count() < 54 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    child.kill().unwrap();
    child.wait().unwrap();
    let before = records(&scratch, "scores/detection.jsonl");
    assert!((1..=2).contains(&before.len()), "two features are under way at once: {before:?}");
    *allowed.0.lock().unwrap() = usize::MAX;
    allowed.1.notify_all();

    let printed = score(&scratch, &arguments);
    assert_eq!(
        (&printed["before"], &printed["answered"]),
        (&json!(before.len()), &json!(ALL - before.len()))
    );
    let mut questions: BTreeMap<u32, usize> = BTreeMap::new();
    for request in server.seen() {
        *questions.entry(asked_about(&shown(&request).1)).or_default() += 1;
    }
    for record in &before {
        assert_eq!(questions[&record.feature.0], QUESTIONS, "asked again");
    }
    assert!(questions.values().all(|&n| (QUESTIONS..=2 * QUESTIONS).contains(&n)), "{questions:?}");
    let scores = scratch.json("scores/detection.json");
    assert_eq!(of_features(&scores, "balanced_accuracy"), vec![Some(1.0); ALL]);
    let lines = records(&scratch, "scores/detection.jsonl");
    assert_eq!(lines.len(), ALL, "one line a feature");
}

#[test]
fn workers_share_the_features_and_the_last_writes_all() {
    let scratch = scratch();
    let server = Server::start(perfect);
    let arguments = flags("fuzz", &server.endpoint()) + " --permuted";
    for rank in 0..2 {
        score(&scratch, &format!("{arguments} --rank {rank} --world-size 2"));
    }
    assert_eq!(server.count(), 2 * QUESTIONS * ALL);
    let scores = scratch.json("scores/fuzz.json");
    assert_eq!(of_features(&scores, "balanced_accuracy"), vec![Some(1.0); ALL]);
    assert!(scores["features"].as_array().unwrap().iter().all(|feature| feature["permuted"]["n"] == 20));
    // What is drawn does not depend on who draws.
    let shared: BTreeMap<_, _> = ["scores/fuzz.rank-0.jsonl", "scores/fuzz.rank-1.jsonl"]
        .iter()
        .flat_map(|ledger| records(&scratch, ledger))
        .map(|record| (record.feature, record.shown))
        .collect();
    let alone = arguments.replace("--save-dir scores", "--save-dir alone");
    score(&scratch, &alone);
    let alone: BTreeMap<_, _> = records(&scratch, "alone/fuzz.jsonl")
        .into_iter()
        .map(|record| (record.feature, record.shown))
        .collect();
    assert_eq!(shared, alone);
    assert_eq!(scratch.json("alone/fuzz.json"), scores);
}

#[test]
fn an_explanation_that_changed_is_judged_anew() {
    let scratch = scratch();
    let server = Server::start(perfect);
    let arguments = flags("detection", &server.endpoint());
    score(&scratch, &arguments);
    // Feature 3 is now said to be about what feature 5 is about.
    let of = (0..FEATURES).map(|feature| {
        let text = COLOURS[if feature == 3 { 5 } else { feature as usize }].0;
        (feature, Outcome::Answered(text.to_owned()), seen(feature))
    });
    write_explanations(&scratch, of);
    let printed = score(&scratch, &format!("{arguments} --resume"));
    assert_eq!((&printed["before"], &printed["answered"]), (&json!(5), &json!(1)));
    let scores = scratch.json("scores/detection.json");
    let accuracy = of_features(&scores, "balanced_accuracy");
    assert!(accuracy[3].unwrap() < 0.8 && accuracy[2] == Some(1.0), "{accuracy:?}");
    scratch
        .finish(scratch.command("sae-score", &format!("{arguments} --resume --positives 4")))
        .ends_with(2)
        .says(&["--positives was 10, is 4"]);
}

#[test]
fn refined_explanations_keep_clear_of_what_was_shown() {
    let scratch = scratch();
    let server = Server::start(perfect);
    let ledger = scratch.read("explained/explanations.jsonl");
    // A ledger of what was made of explanations says nothing of samples; the one beside it does.
    let refined: Vec<String> = ledger
        .lines()
        .map(|line| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("shown");
            record.to_string() + "\n"
        })
        .collect();
    std::fs::write(scratch.path("explained/refined.jsonl"), refined.concat()).unwrap();
    let arguments = flags("detection", &server.endpoint())
        .replace("--explanations explained", "--explanations explained/refined.jsonl");
    score(&scratch, &arguments);
    for record in records(&scratch, "scores/detection.jsonl") {
        let seen = seen(record.feature.0);
        assert!(record.shown.iter().all(|shown| !seen.contains(&shown.sample.0)), "{record:?}");
    }
}

#[test]
fn rare_features_are_passed_over() {
    let scratch = scratch();
    let server = Server::start(perfect);
    let printed =
        score(&scratch, &(flags("detection", &server.endpoint()) + " --positives 90 --min-activating 90"));
    assert_eq!((&printed["skipped"], server.count()), (&json!(FEATURES), 0));
    assert_eq!(printed["balanced_accuracy"]["total"]["features"], 0);
    let records = records(&scratch, "scores/detection.jsonl");
    let reason = "active in fewer than 90 images that were not explained".to_owned();
    assert!(records.iter().all(|record| record.outcome == Outcome::Skipped(reason.clone())));
}

#[test]
fn wrong_usage_is_told_before_anything_is_asked() {
    let scratch = scratch();
    let server = Server::says("[ANSWER]: 1");
    let arguments = flags("detection", &server.endpoint());
    let without = |flag: &str| arguments.replace(flag, "");
    scratch.refuses("sae-score", &without("--dataset data"), 2, &["--dataset", "images are shown"]);
    scratch.refuses("sae-score", &format!("{arguments} --text"), 1, &["keeps no token ids", "--keep-tokens"]);
    scratch.refuses("sae-score", &without("--explanations explained"), 2, &["--explanations"]);
    scratch.refuses("sae-score", &format!("{arguments} --positives 0"), 2, &["--positives"]);
    scratch.refuses("sae-score", &format!("{arguments} --labels nowhere"), 1, &["nowhere does not exist"]);
    // Flags of fuzz alone.
    scratch.refuses("sae-score", &format!("{arguments} --dim 0"), 2, &["--dim"]);
    write_explanations(&scratch, [(0, Outcome::Answered("teal".to_owned()), Vec::new())].into_iter());
    scratch.refuses("sae-score", &format!("{arguments} --permuted"), 2, &["--permuted", "one explanation"]);
    write_explanations(&scratch, [(99, Outcome::Answered("teal".to_owned()), Vec::new())].into_iter());
    scratch.refuses("sae-score", &arguments, 2, &["none of the features in explained is in the cache"]);
    assert_eq!(server.count(), 0);
    for score in ["detection", "fuzz"] {
        let help = scratch.run("sae-score", &format!("{score} --help")).stdout;
        assert!(help.contains("Example") && help.contains("--permuted"), "{help}");
    }
}
