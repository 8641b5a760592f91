//! Features without an explanation, and servers that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use explain::Outcome;
use pipeline_tests::chat::{Reply, Server, shown};
use serde_json::{Value, json};

use super::{
    COLOURS, FEATURES, asked_about, flags, of_features, perfect, records, score, scratch, seen, truth,
    write_explanations,
};

const ALL: usize = FEATURES as usize;

#[test]
fn features_of_which_nothing_was_said_stand_in_the_table() {
    let scratch = scratch();
    let explained = |unable: &'static [u32]| {
        (0..FEATURES).map(move |feature| {
            let outcome = if unable.contains(&feature) {
                Outcome::Unable
            } else {
                Outcome::Answered(COLOURS[feature as usize].0.to_owned())
            };
            (feature, outcome, seen(feature))
        })
    };
    write_explanations(&scratch, explained(&[1, 5]));
    let server = Server::start(perfect);
    let arguments = flags("detection", &server.endpoint()) + " --permuted";
    let unable = |printed: &Value| {
        let total = &printed["balanced_accuracy"]["total"];
        (total["features"].as_u64(), total["unable"].as_u64(), total["score"]["n"].as_u64())
    };
    let printed = score(&scratch, &format!("{arguments} --features 0-2"));
    assert_eq!(unable(&printed), (Some(3), Some(1), Some(2)), "{printed}");
    assert_eq!((&printed["unable"], server.count()), (&json!(1), 2 * 2 * 20));
    // Those of earlier runs count with those of this one.
    let printed = score(&scratch, &format!("{arguments} --features 3-5 --resume"));
    assert_eq!(unable(&printed), (Some(6), Some(2), Some(4)), "{printed}");
    let page = scratch.read("scores/detection.html");
    assert!(page.contains("<td>2<small>33.3 %</small></td>"), "the column of unable ones");
    let permuted = records(&scratch, "scores/detection-permuted.jsonl");
    assert!(permuted.iter().all(|record| ![1, 5].contains(&record.feature.0)), "{permuted:?}");
    // Explained since, it is judged.
    write_explanations(&scratch, explained(&[5]));
    let printed = score(&scratch, &format!("{arguments} --resume"));
    assert_eq!(unable(&printed), (Some(6), Some(1), Some(5)), "{printed}");
}

#[test]
fn a_feature_is_not_scored_by_what_a_failing_server_happened_to_answer() {
    let scratch = scratch();
    let is_ill = Arc::new(AtomicBool::new(true));
    let health = Arc::clone(&is_ill);
    // It fails for two of three right ones of feature 4.
    let server = Server::start(move |number, request| {
        let sample = shown(request).0[0].get_pixel(0, 0).0[0];
        let fails = asked_about(&shown(request).1) == 4 && truth(request)[0] && sample % 3 < 2;
        if fails && health.load(Ordering::SeqCst) {
            return Reply::error(500, "out of memory");
        }
        perfect(number, request)
    });
    let arguments = flags("detection", &server.endpoint()) + " --attempts 1";
    let printed = score(&scratch, &arguments);
    let total = &printed["balanced_accuracy"]["total"];
    assert_eq!((&total["failed"], &total["score"]["n"]), (&json!(1), &json!(5)), "{printed}");
    assert_eq!((&printed["failed"], &printed["all"]["n"]), (&json!(1), &json!(100)));
    is_ill.store(false, Ordering::SeqCst);
    let printed = score(&scratch, &format!("{arguments} --resume --retry-failed"));
    assert_eq!((&printed["before"], &printed["answered"]), (&json!(5), &json!(1)));
    let scores = scratch.json("scores/detection.json");
    assert_eq!(of_features(&scores, "balanced_accuracy"), vec![Some(1.0); ALL]);
    assert_eq!(of_features(&scores, "unparsed"), vec![Some(0.0); ALL]);
}
