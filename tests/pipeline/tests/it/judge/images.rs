//! What a judge of images is shown, and what scores its verdicts come to.

use std::collections::BTreeSet;

use pipeline_tests::caches::PATCH;
use pipeline_tests::chat::{Reply, Server, shown};
use serde_json::json;

use super::{
    FEATURES, State, asked_about, flags, of_features, perfect, picture, records, score, scratch, seen, state,
    truth,
};

const ALL: usize = FEATURES as usize;

#[test]
fn a_perfect_judge_detects_everything() {
    let scratch = scratch();
    let server = Server::start(perfect);
    let printed = score(&scratch, &flags("detection", &server.endpoint()));
    assert_eq!((&printed["answered"], &printed["requests"]), (&json!(FEATURES), &json!(20 * FEATURES)));
    assert_eq!(printed["balanced_accuracy"]["total"]["score"]["mean"], 1.0);
    let scores = scratch.json("scores/detection.json");
    for figure in ["balanced_accuracy", "f1", "recall", "specificity", "specificity_hard"] {
        assert_eq!(of_features(&scores, figure), vec![Some(1.0); ALL], "{figure}");
    }
    assert_eq!(of_features(&scores, "auc"), vec![None; ALL], "the server gave no log-probabilities");
    assert_eq!(of_features(&scores, "n"), vec![Some(20.0); ALL]);
    assert_eq!((&scores["score"], &scores["shown"]), (&json!("detection"), &json!("images")));
    assert_eq!(scores["features"][2]["explanation"], "olive");
    let page = scratch.read("scores/detection.html");
    assert!(page.contains("olive") && page.contains("1.000") && !page.contains("Area under the curve"));

    let records = records(&scratch, "scores/detection.jsonl");
    assert_eq!(records.len(), ALL);
    for record in &records {
        let feature = record.feature.0;
        let samples: BTreeSet<u32> = record.shown.iter().map(|shown| shown.sample.0).collect();
        assert_eq!(samples.len(), 20, "no picture twice");
        assert!(seen(feature).iter().all(|sample| !samples.contains(sample)), "none that was explained");
        for shown in &record.shown {
            let is_on = state(feature, shown.sample.0) == State::On;
            assert_eq!((is_on, shown.verdict), (!shown.not, Some(!shown.not)), "{record:?}");
            if shown.hard {
                assert!(state(feature, shown.sample.0) == State::Near, "{record:?}");
            }
        }
        let count = |hard: bool| record.shown.iter().filter(|shown| shown.not && shown.hard == hard).count();
        assert_eq!((count(true), count(false)), (5, 5));
        let order: Vec<bool> = record.shown.iter().map(|shown| shown.not).collect();
        assert!(!order.is_sorted(), "positives and negatives are mixed");
        // Weak ones are there too, not the strongest only.
        let on: Vec<u32> =
            (0..super::SAMPLES).filter(|&sample| state(feature, sample) == State::On).collect();
        let weak = record.shown.iter().filter(|shown| !shown.not && shown.sample.0 < on[on.len() / 2]);
        assert!(weak.count() >= 3, "{record:?}");
    }
    // Whole pictures, as they are.
    for request in server.seen() {
        let (pictures, text) = shown(&request);
        assert!(text.contains("[ANSWER]") && pictures.len() == 1, "{text}");
        let sample = u32::from(pictures[0].get_pixel(0, 0).0[0]);
        assert_eq!(pictures[0], picture(sample));
    }
}

#[test]
fn a_perfect_judge_sees_through_every_wrong_region() {
    let scratch = scratch();
    let server = Server::start(perfect);
    score(&scratch, &flags("fuzz", &server.endpoint()));
    let scores = scratch.json("scores/fuzz.json");
    for figure in ["balanced_accuracy", "f1", "specificity_hard"] {
        assert_eq!(of_features(&scores, figure), vec![Some(1.0); ALL], "{figure}");
    }
    for record in records(&scratch, "scores/fuzz.jsonl") {
        let of = |not: bool, hard: bool| -> BTreeSet<u32> {
            let of = record.shown.iter().filter(|shown| shown.not == not && shown.hard == hard);
            of.map(|shown| shown.sample.0).collect()
        };
        let (on, moved, hard) = (of(false, false), of(true, false), of(true, true));
        assert_eq!((on.len(), moved.len(), hard.len()), (10, 5, 5), "{record:?}");
        assert!(moved.is_subset(&on), "the same pictures, lit elsewhere");
        assert!(hard.iter().all(|&sample| state(record.feature.0, sample) == State::Near));
        assert!(record.shown.iter().all(|shown| !seen(record.feature.0).contains(&shown.sample.0)));
    }
    // One patch is lit, right or wrong: its size tells nothing.
    for request in server.seen() {
        let lit = shown(&request).0[0].pixels().filter(|pixel| pixel.0 != [0, 0, 0]).count();
        assert_eq!(lit, (PATCH * PATCH) as usize);
    }
}

#[test]
fn a_judge_that_always_agrees_is_worth_a_guess() {
    let scratch = scratch();
    let server = Server::says("[ANSWER]: 1");
    for kind in ["detection", "fuzz"] {
        let printed = score(&scratch, &flags(kind, &server.endpoint()));
        let total = &printed["balanced_accuracy"]["total"]["score"];
        assert_eq!((&total["mean"], &total["half_width_99"]), (&json!(0.5), &json!(0.0)), "{printed}");
        let scores = scratch.json(&format!("scores/{kind}.json"));
        assert_eq!(of_features(&scores, "balanced_accuracy"), vec![Some(0.5); ALL]);
        // 2 · 10 / (2 · 10 + 10 + 0).
        assert_eq!(of_features(&scores, "f1"), vec![Some(2.0 / 3.0); ALL]);
    }
}

#[test]
fn log_probabilities_rank_what_verdicts_do_not_tell() {
    let scratch = scratch();
    // It always agrees, but more so where it is right.
    let server = Server::start(|_, request| {
        assert_eq!((&request["logprobs"], &request["top_logprobs"]), (&json!(true), &json!(5)));
        let sure = if truth(request)[0] { 0.9 } else { 0.6 };
        Reply::token("1", &[("1", sure * 0.9), ("0", (1.0 - sure) * 0.9), ("maybe", 0.1)])
    });
    let printed = score(&scratch, &flags("detection", &server.endpoint()));
    assert_eq!(printed["auc"]["total"]["score"]["mean"], 1.0);
    let scores = scratch.json("scores/detection.json");
    assert_eq!(of_features(&scores, "auc"), vec![Some(1.0); ALL]);
    assert_eq!(of_features(&scores, "balanced_accuracy"), vec![Some(0.5); ALL]);
    let record = &records(&scratch, "scores/detection.jsonl")[0];
    for shown in &record.shown {
        let sure = if shown.not { 0.6 } else { 0.9 };
        assert!((shown.probability.unwrap() - sure).abs() < 1e-9, "{shown:?}");
    }
}

#[test]
fn a_server_that_refuses_log_probabilities_is_asked_without() {
    let scratch = scratch();
    let server = Server::start(|number, request| {
        if request["logprobs"].is_null() {
            perfect(number, request)
        } else {
            Reply::error(400, "logprobs is not supported")
        }
    });
    let run = scratch.run("sae-score", &(flags("detection", &server.endpoint()) + " --concurrency 1"));
    assert_eq!(
        run.stderr.matches("gives no log-probabilities: logprobs is not supported").count(),
        1,
        "{run}"
    );
    // The first question is refused with five and with two, and from then on nothing is tried.
    assert_eq!(server.count(), 20 * ALL + 2);
    let scores = scratch.json("scores/detection.json");
    assert_eq!(of_features(&scores, "balanced_accuracy"), vec![Some(1.0); ALL]);

    // One that gives two only is asked for two.
    let server = Server::start(|_, request| match request["top_logprobs"].as_u64() {
        Some(2) => Reply::token("1", &[("1", 0.75), ("0", 0.25)]),
        _ => Reply::error(400, "top_logprobs must be at most 2"),
    });
    let arguments = flags("detection", &server.endpoint()) + " --concurrency 1 --overwrite --features 0";
    let printed = score(&scratch, &arguments);
    assert_eq!((&printed["auc"]["total"]["score"]["mean"], server.count()), (&json!(0.5), 21));
}

#[test]
fn answers_that_cannot_be_read_count_nowhere() {
    let scratch = scratch();
    // Of olive nothing is rejected; of teal nothing is said at all; of some pictures of salmon the server will not hear.
    let server = Server::start(|number, request| {
        let fits = truth(request)[0];
        let sample = shown(request).0[0].get_pixel(0, 0).0[0];
        match asked_about(&shown(request).1) {
            2 if !fits => Reply::answer("I do not think so"),
            1 => Reply::answer("hm"),
            4 if fits && sample.is_multiple_of(3) => Reply::error(400, "this picture is bad"),
            _ => perfect(number, request),
        }
    });
    let printed = score(&scratch, &(flags("detection", &server.endpoint()) + " --asks 2"));
    let total = &printed["balanced_accuracy"]["total"];
    assert_eq!(
        (&total["features"], &total["undefined"], &total["score"]["n"]),
        (&json!(6), &json!(2), &json!(4))
    );
    assert_eq!((&printed["unparsed"], &total["score"]["mean"]), (&json!(1), &json!(1.0)), "{printed}");
    let scores = scratch.json("scores/detection.json");
    let unparsed = of_features(&scores, "unparsed");
    assert_eq!((unparsed[0], unparsed[1], unparsed[2]), (Some(0.0), Some(20.0), Some(10.0)));
    assert_eq!(of_features(&scores, "balanced_accuracy")[1..3], [None, None]);
    assert_eq!(of_features(&scores, "recall")[1..3], [None, Some(1.0)]);
    let records = records(&scratch, "scores/detection.jsonl");
    let salmon = records.iter().find(|record| record.feature.0 == 4).unwrap();
    let without: Vec<_> = salmon.shown.iter().filter(|shown| shown.verdict.is_none()).collect();
    assert!(without.iter().all(|shown| !shown.not && shown.sample.0 % 3 == 0) && !without.is_empty());
    assert_eq!(unparsed[4], Some(without.len() as f64));
}

#[test]
fn batches_are_answered_with_lists() {
    let scratch = scratch();
    let server = Server::start(|number, request| {
        let all = truth(request);
        match asked_about(&shown(request).1) {
            // One verdict too few.
            3 => Reply::answer(&super::list(&all[1..])),
            _ => perfect(number, request),
        }
    });
    let printed = score(&scratch, &(flags("detection", &server.endpoint()) + " --batch 8 --asks 1"));
    // 8, 8 and 4 pictures.
    assert_eq!((&printed["requests"], &printed["unparsed"]), (&json!(3 * FEATURES), &json!(1)));
    let lengths: BTreeSet<usize> = server.seen().iter().map(|request| shown(request).0.len()).collect();
    assert_eq!(lengths, BTreeSet::from([4, 8]));
    assert!(server.seen().iter().all(|request| {
        let (pictures, text) = shown(request);
        text.contains(&format!("{} pictures", pictures.len()))
    }));
    let scores = scratch.json("scores/detection.json");
    let accuracy = of_features(&scores, "balanced_accuracy");
    assert_eq!((accuracy[3], accuracy.iter().flatten().sum::<f64>()), (None, 5.0));
}

#[test]
fn permuted_explanations_are_worth_a_guess_to_a_perfect_judge() {
    let scratch = scratch();
    let labels: Vec<_> = (0..FEATURES)
        .map(|feature| json!({format!("model.layers.1_feature{feature}"): if feature < 2 { "color" } else { "part" }}))
        .collect();
    std::fs::write(scratch.path("labels.json"), serde_json::to_string(&labels).unwrap()).unwrap();
    let server = Server::start(perfect);
    let arguments = flags("detection", &server.endpoint()) + " --permuted --labels labels.json";
    let printed = score(&scratch, &arguments);
    assert_eq!(server.count(), 40 * ALL);
    let table = &printed["balanced_accuracy"];
    let baseline = &table["total"]["baselines"][0];
    assert_eq!((&table["baselines"], &printed["without_other_text"]), (&json!(["permuted"]), &json!(0)));
    assert_eq!(table["total"]["score"]["mean"], 1.0);
    let mean = baseline["score"]["mean"].as_f64().unwrap();
    assert!((mean - 0.5).abs() < 0.15, "{printed}");
    assert!(baseline["paired"]["difference"]["mean"].as_f64().unwrap() > 0.35, "{printed}");
    let concepts: Vec<_> = table["concepts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["concept"].as_str().unwrap(), row["features"].as_u64().unwrap()))
        .collect();
    assert_eq!(concepts, [("color", 2), ("part", 4)]);
    // The same samples, judged by another's explanation.
    let own = records(&scratch, "scores/detection.jsonl");
    let mut permuted = records(&scratch, "scores/detection-permuted.jsonl");
    permuted.sort_by_key(|record| record.feature);
    let samples = |record: &explain::Record| -> Vec<_> {
        record.shown.iter().map(|shown| (shown.sample, shown.not)).collect()
    };
    for record in own {
        let other = &permuted[record.feature.0 as usize];
        assert_eq!(samples(&record), samples(other));
        assert_ne!(record.about, other.about);
    }
    let scores = scratch.json("scores/detection.json");
    assert!(scores["features"].as_array().unwrap().iter().all(|feature| feature["permuted"]["n"] == 20));

    // Nothing is asked again, and the second half alone where only that is missing.
    score(&scratch, &(arguments.clone() + " --resume"));
    assert_eq!(server.count(), 40 * ALL);
    std::fs::remove_file(scratch.path("scores/detection-permuted.jsonl")).unwrap();
    assert_eq!(score(&scratch, &(arguments + " --resume"))["balanced_accuracy"], *table);
    assert_eq!(server.count(), 60 * ALL);
}
