//! `sae-explain images`: what is asked, what is kept, what is asked again.

use std::process::Stdio;
use std::time::{Duration, Instant};

use explain::{Cut, Edges, HeatMap, Masking, Outcome};
use pipeline_tests::chat::{Reply, Server, shown};
use serde_json::json;

use crate::support::{COMMON, GRID, RARE, Scratch, WIDTH, images, on, picture, stderr};

/// Features in the order of their keys with what became of them.
fn outcomes(scratch: &Scratch, ledger: &str) -> Vec<(u32, Outcome)> {
    let mut found: Vec<_> =
        scratch.records(ledger).into_iter().map(|record| (record.feature.0, record.outcome)).collect();
    found.sort_by_key(|(feature, _)| *feature);
    found
}

fn answered(text: &str) -> Outcome {
    Outcome::Answered(text.to_owned())
}

#[test]
fn requests_hold_the_masked_pictures_and_answers_are_kept() {
    let scratch = Scratch::new();
    let server = Server::start(|number, _| match number {
        0 => Reply::answer("**[explanation]:** \"a corner\""),
        1 => Reply::answer("[EXPLANATION]: Unable to produce descriptions"),
        _ => Reply::answer("[EXPLANATION]: the rest"),
    });
    let flags =
        "--image-format png --max-examples 3 --mask nearest --cut half-maximum --dim 51 --concurrency 1";
    let summary = scratch.succeeds(&format!("{} {flags} --features 0-2,12", images(&server.endpoint())));
    assert_eq!(
        [&summary["answered"], &summary["unable"], &summary["skipped"], &summary["prompt_tokens"]],
        [&json!(2), &json!(1), &json!(1), &json!(300)]
    );
    let masking = Masking { cut: Cut::HalfMaximum, edges: Edges::Nearest, dim: 51 };
    for (feature, request) in server.seen().iter().enumerate() {
        let feature = feature as u32;
        let (pictures, text) = shown(request);
        assert!(text.contains("[EXPLANATION]: Unable to produce descriptions"), "{text}");
        assert_eq!((&request["model"], &request["temperature"]), (&json!("served"), &json!(0.0)));
        // The last samples are the strongest.
        let strongest: Vec<u32> =
            (0..24).rev().filter(|&sample| on(feature, sample).is_some()).take(3).collect();
        assert_eq!(pictures.len(), 3);
        for (got, &sample) in pictures.iter().zip(&strongest) {
            let (patch, value) = on(feature, sample).unwrap();
            let mut values = vec![0.0; (GRID.0 * GRID.1) as usize];
            values[patch as usize] = value;
            let heat = HeatMap::new(GRID.0 as usize, GRID.1 as usize, values).unwrap();
            assert_eq!(*got, masking.apply(&picture(sample), &heat), "feature {feature}, sample {sample}");
        }
    }
    let want = [
        (0, answered("a corner")),
        (1, Outcome::Unable),
        (2, answered("the rest")),
        (RARE, Outcome::Skipped("active in fewer than 10 images".to_owned())),
    ];
    assert_eq!(outcomes(&scratch, "out/explanations.jsonl"), want);
    let first = &scratch.records("out/explanations.jsonl")[0];
    let asked = first.asked.as_ref().unwrap();
    assert_eq!(
        (asked.answer.as_str(), asked.asks, asked.attempts),
        ("**[explanation]:** \"a corner\"", 1, 1)
    );
    assert_eq!((first.shown.len(), first.shown[0].sample.0), (3, 22));
    let published = json!([
        {"model.layers.1_feature0": "a corner"},
        {"model.layers.1_feature1": "Unable to produce descriptions"},
        {"model.layers.1_feature2": "the rest"},
    ]);
    assert_eq!(scratch.json("out/model_layers_1.json"), published);
    let run = scratch.json("out/run.json");
    assert_eq!((&run["counts"]["answered"], &run["settings"]["--cut"]), (&json!(2), &json!("half-maximum")));
}

#[test]
fn pictures_are_fitted_and_saved_as_msae_has_them() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    let flags = "--features 4 --max-examples 2 --negatives 2 --save-images --image-side 30";
    scratch.succeeds(&format!("{} {flags}", images(&server.endpoint())));
    let (pictures, text) = shown(&server.seen()[0]);
    assert_eq!(pictures.len(), 4);
    assert!(pictures.iter().all(|picture| picture.dimensions() == (30, 12)), "own aspect");
    assert!(text.contains("The last 2 of the pictures"), "{text}");
    let record = &scratch.records("out/explanations.jsonl")[0];
    let not: Vec<bool> = record.shown.iter().map(|shown| shown.not).collect();
    assert_eq!(not, [false, false, true, true]);
    assert!(record.shown[2..].iter().all(|shown| on(4, shown.sample.0).is_none()), "{record:?}");
    let folder = "out/images/model_layers_1/model.layers.1_feature4";
    for file in [
        "images/top_0.png",
        "images/top_1.png",
        "images/not_1.png",
        "activated_images/top1_activated.jpg",
        "masks/0_mask.jpg",
    ] {
        let read = lmm_prep::decode_image(&std::fs::read(scratch.path(&format!("{folder}/{file}"))).unwrap())
            .unwrap();
        assert_eq!(read.dimensions(), (30, 12), "{file}");
    }
    scratch.succeeds(&format!("{} --features 5 --square 40 --overwrite", images(&server.endpoint())));
    assert_eq!(shown(&server.seen()[1]).0[0].dimensions(), (40, 40));
    assert!(!scratch.path("out/images").exists());
    // Where others' images lie beside, only a run's own are removed.
    scratch.succeeds(&format!("{} --features 5 --save-images --overwrite", images(&server.endpoint())));
    std::fs::write(scratch.path("out/images/theirs.png"), "x").unwrap();
    scratch.succeeds(&format!("{} --features 5 --square 40 --overwrite", images(&server.endpoint())));
    assert!(scratch.path("out/images/theirs.png").exists());
    assert!(!scratch.path("out/images/model_layers_1").exists());
    assert_eq!(scratch.json("out/model_layers_1.json"), json!([{"model.layers.1_feature5": "x"}]));
}

#[test]
fn only_what_is_missing_is_asked_and_failures_when_wanted() {
    let scratch = Scratch::new();
    let server = Server::start(|number, _| match number {
        1 => Reply::error(400, "this picture is bad"),
        _ => Reply::answer("[EXPLANATION]: x"),
    });
    let run = images(&server.endpoint());
    let summary = scratch.succeeds(&format!("{run} --features 0-4 --concurrency 1"));
    assert_eq!((&summary["answered"], &summary["failed"]), (&json!(4), &json!(1)));
    assert!(summary["first_failure"].as_str().unwrap().contains("this picture is bad"), "{summary}");
    scratch.fails(&run, 2, &["go on with --resume", "--overwrite"]);
    let summary = scratch.succeeds(&format!("{run} --features 0-6 --resume"));
    assert_eq!((&summary["answered"], &summary["before"], server.count()), (&json!(2), &json!(5), 7));
    let summary = scratch.succeeds(&format!("{run} --resume --retry-failed"));
    assert_eq!((&summary["answered"], &summary["before"]), (&json!(i64::from(COMMON) - 7 + 1), &json!(6)));
    assert_eq!(server.count(), COMMON as usize + 1);
    assert_eq!(scratch.json("out/model_layers_1.json").as_array().unwrap().len(), COMMON as usize);
    scratch.fails(
        &format!("{run} --resume --dim 0 --max-examples 4"),
        2,
        &["--dim was 31, is 0", "--max-examples was 5, is 4"],
    );
}

#[test]
fn what_cannot_be_read_is_asked_again_and_then_recorded() {
    let scratch = Scratch::new();
    let server = Server::start(|number, _| match number {
        0..=2 => Reply::answer("a corner, I think"),
        3 => Reply::answer("[EXPLANATION]:"),
        _ => Reply::answer("[EXPLANATION]: found"),
    });
    let summary =
        scratch.succeeds(&format!("{} --features 0,1 --concurrency 1 --seed 5", images(&server.endpoint())));
    assert_eq!(
        (&summary["answered"], &summary["unparsed"], &summary["requests"]),
        (&json!(1), &json!(1), &json!(5))
    );
    let sent: Vec<_> = server
        .seen()
        .iter()
        .map(|request| (request["temperature"].as_f64().unwrap(), request["seed"].as_u64()))
        .collect();
    assert_eq!(sent, [(0.0, None), (0.7, Some(6)), (0.7, Some(7)), (0.0, None), (0.7, Some(6))]);
    let records = scratch.records("out/explanations.jsonl");
    let unread = records[0].asked.as_ref().unwrap();
    assert_eq!(
        (&records[0].outcome, unread.asks, unread.answer.as_str()),
        (&Outcome::Unparsed, 3, "a corner, I think")
    );
    assert_eq!((unread.prompt_tokens, unread.completion_tokens), (300, 21));
    assert_eq!(records[1].outcome, answered("found"));
}

#[test]
fn workers_share_the_features_and_any_of_them_writes_the_whole() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    for rank in 0..2 {
        scratch.succeeds(&format!("{} --rank {rank} --world-size 2", images(&server.endpoint())));
    }
    assert_eq!(server.count(), COMMON as usize);
    assert_eq!(scratch.json("out/model_layers_1.json").as_array().unwrap().len(), COMMON as usize);
    let mut features: Vec<u32> = ["out/explanations.rank-0.jsonl", "out/explanations.rank-1.jsonl"]
        .iter()
        .flat_map(|ledger| scratch.records(ledger))
        .map(|record| record.feature.0)
        .collect();
    features.sort_unstable();
    assert_eq!(features, (0..WIDTH).collect::<Vec<_>>());
    // One process goes on from both.
    let summary = scratch.succeeds(&format!("{} --resume", images(&server.endpoint())));
    assert_eq!((&summary["before"], server.count()), (&json!(WIDTH), COMMON as usize));
}

#[test]
fn filters_choose_and_the_users_own_words_are_sent() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    std::fs::write(scratch.path("filters.json"), r#"{"model.layers.1": [3, 5, 12]}"#).unwrap();
    std::fs::write(scratch.path("prompt.txt"), "what is lit ?").unwrap();
    let flags = "--filters filters.json --prompt prompt.txt --min-activating 0 --examples quantiles --hookpoints model.layers.1";
    scratch.succeeds(&format!("{} {flags}", images(&server.endpoint())));
    assert_eq!(server.count(), 3);
    assert!(server.seen().iter().all(|request| shown(request).1 == "what is lit ?"));
    let records = scratch.records("out/explanations.jsonl");
    let rare = records.iter().find(|record| record.feature.0 == RARE).unwrap();
    assert_eq!(rare.shown.len(), 1);
    scratch.fails(
        &format!("{} {flags} --resume --temperature 1", images(&server.endpoint())),
        2,
        &["--temperature was 0, is 1"],
    );
}

#[test]
fn what_another_run_writes_is_not_overwritten() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    let run = format!("{} --features 0", images(&server.endpoint()));
    scratch.succeeds(&run);
    for ledger in ["out/explanations.jsonl", "out/explanations.rank-3.jsonl"] {
        let path = scratch.path(ledger);
        if !path.exists() {
            std::fs::copy(scratch.path("out/explanations.jsonl"), &path).unwrap();
        }
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.lock().unwrap();
        scratch.fails(&format!("{run} --overwrite"), 1, &["another process is writing", ledger]);
        assert_eq!(scratch.records(ledger).len(), 1);
        assert!(scratch.path("out/model_layers_1.json").exists() && scratch.path("out/run.json").exists());
    }
    scratch.succeeds(&format!("{run} --overwrite"));
    assert!(!scratch.path("out/explanations.rank-3.jsonl").exists());
}

#[test]
fn quantiles_come_from_behind_the_first() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    for seed in 0..4 {
        let flags = format!("--examples quantiles --seed {seed} --overwrite --features 0-11");
        scratch.succeeds(&format!("{} {flags}", images(&server.endpoint())));
        for record in scratch.records("out/explanations.jsonl") {
            assert_eq!(record.shown.len(), 5, "{record:?}");
        }
    }
}

#[test]
fn a_server_that_is_starting_is_waited_for() {
    let scratch = Scratch::new();
    let address = Server::says("x").stop();
    let mut run = scratch.start(&images(&format!("http://{address}/v1")));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(run.try_wait().unwrap().is_none());
    let server = Server::start_at(address, &["served"], |_, _| Reply::answer("[EXPLANATION]: x"));
    assert!(run.wait().unwrap().success());
    assert_eq!(server.count(), COMMON as usize);
}

#[test]
fn a_server_that_comes_back_is_waited_for() {
    let scratch = Scratch::new();
    let slow = |_: usize, _: &serde_json::Value| {
        std::thread::sleep(Duration::from_millis(100));
        Reply::answer("[EXPLANATION]: x")
    };
    let server = Server::start(slow);
    let mut run = scratch.command(&format!("{} --concurrency 2", images(&server.endpoint())));
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while server.count() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let address = server.stop();
    std::thread::sleep(Duration::from_secs(2));
    let server = Server::start_at(address, &["served"], slow);
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(server.count() > 0);
    let done = outcomes(&scratch, "out/explanations.jsonl");
    assert!(done[..COMMON as usize].iter().all(|(_, outcome)| *outcome == answered("x")), "{done:?}");
    assert_eq!(done.len(), WIDTH as usize);
}

#[test]
fn a_server_that_stays_away_ends_the_run_and_nothing_is_marked_as_failed() {
    let scratch = Scratch::new();
    let server = Server::start(|_, _| {
        std::thread::sleep(Duration::from_millis(100));
        Reply::answer("[EXPLANATION]: x")
    });
    let mut run = scratch.command(&format!("{} --concurrency 2 --patience 1", images(&server.endpoint())));
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while server.count() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.stop();
    let output = run.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("go on with --resume") && text.contains("has been gone"), "{text}");
    let done = outcomes(&scratch, "out/explanations.jsonl");
    assert!(!done.is_empty() && done.iter().all(|(_, outcome)| *outcome == answered("x")), "{done:?}");
    assert_eq!(scratch.json("out/model_layers_1.json").as_array().unwrap().len(), done.len());
}

#[test]
fn an_interrupted_run_waits_for_what_is_on_its_way() {
    let scratch = Scratch::new();
    let server = Server::start(|_, _| {
        std::thread::sleep(Duration::from_millis(300));
        Reply::answer("[EXPLANATION]: x")
    });
    let mut run = scratch.command(&format!("{} --concurrency 2", images(&server.endpoint())));
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while server.count() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let started = Instant::now();
    let kill = std::process::Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = run.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("go on with --resume") && started.elapsed() < Duration::from_secs(5), "{text}");
    let done = outcomes(&scratch, "out/explanations.jsonl");
    assert_eq!(
        (done.len(), server.count()),
        (scratch.json("out/model_layers_1.json").as_array().unwrap().len(), done.len())
    );
    assert!(done.len() < COMMON as usize);
    scratch.succeeds(&format!("{} --resume", images(&server.endpoint())));
    assert_eq!(server.count(), COMMON as usize);
}

#[test]
fn unreadable_images_cost_their_example_and_the_last_one_the_feature() {
    let scratch = Scratch::new();
    let server = Server::says("[EXPLANATION]: x");
    // Of the same size, so that the fingerprint does not see it.
    for sample in [22, 20] {
        let path = scratch.path(&format!("data/{sample:03}.png"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, vec![0; bytes.len()]).unwrap();
    }
    let output = scratch.run(&format!("{} --features 0,2 --max-examples 3", images(&server.endpoint())));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("sample 22: the record shows another image"), "{}", stderr(&output));
    assert!(server.seen().iter().all(|request| shown(request).0.len() == 1));
    let failing = format!("{} --features 0 --max-examples 2 --overwrite", images(&server.endpoint()));
    scratch.fails(&failing, 1, &["nothing was answered", "no image can be shown"]);
    assert!(matches!(&outcomes(&scratch, "out/explanations.jsonl")[..], [(0, Outcome::Failed(_))]));
}
