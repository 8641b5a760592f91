//! `sae-steer judge`, on a server that answers what the test tells it to.

use pipeline_tests::chat::{Reply, Server, shown};
use serde_json::Value;

use crate::support::{Scratch, fails, succeeds};

const QUESTION: &str = "how many shapes are there ?";

#[test]
fn changed_answers_are_sorted_with_the_description_in_sight() {
    let scratch = Scratch::of(2);
    let sweep = "--dataset scenes --features 1-3 -k 0.001 40 --no-measures --save-dir swept";
    succeeds(&mut scratch.stage("sweep", QUESTION, sweep));
    let published =
        r#"[{"model.layers.2_feature1": "freight trains"}, {"model.layers.2_feature2": "wet asphalt"}]"#;
    std::fs::write(scratch.path("explained.json"), published).unwrap();
    let swept = scratch.records("swept/sweep.jsonl");
    let of = |feature: u64, changed: bool| {
        swept.iter().filter(|record| record["feature"] == feature && record["changed"] == changed).count()
    };
    let (trains, asphalt) = (of(1, true), of(2, true));
    assert!(trains > 0 && asphalt > 0, "{swept:?}");

    let server = Server::start(|_, request| {
        let (_, words) = shown(request);
        Reply::answer(if words.contains("freight trains") { "[ANSWER]: mention" } else { "Hard to say." })
    });
    let judge = |flags: &str| {
        let endpoint = server.endpoint();
        let mut arguments =
            vec!["judge", "--sweep", "swept", "--explanations", "explained.json", "--endpoint", &endpoint];
        arguments.extend(["--asks", "2", "-q"]);
        arguments.extend(flags.split_whitespace());
        scratch.command(&arguments)
    };
    let summary: Value = serde_json::from_str(&succeeds(&mut judge(""))).unwrap();
    let all = &summary["all"];
    assert_eq!(all["n"], 8, "{summary}");
    assert_eq!((&all["mention"], &all["unparsed"]), (&trains.into(), &asphalt.into()), "{summary}");
    assert_eq!(all["unchanged"], of(1, false) + of(2, false));
    assert_eq!(summary["without_explanation"], 1);
    assert_eq!(server.count(), trains + 2 * asphalt, "the unchanged are not asked about, the unclear twice");
    // Description and both answers are shown.
    for request in server.seen() {
        let (_, words) = shown(&request);
        let known = |record: &&Value| {
            let shows = |name: &str| words.contains(&format!("<<<\n{}\n>>>", record[name].as_str().unwrap()));
            shows("original") && shows("steered")
        };
        assert!(swept.iter().any(|record| known(&record)), "{words}");
        assert!(words.contains("freight trains") || words.contains("wet asphalt"));
    }
    let verdicts = scratch.records("swept/judge.jsonl");
    assert_eq!(verdicts.len(), trains + asphalt);
    let unclear = verdicts.iter().find(|verdict| verdict["feature"] == 2).unwrap();
    assert_eq!(unclear["outcome"], "unparsed");
    assert_eq!(unclear["asked"]["answer"], "Hard to say.");
    // In multimodal-sae's file, by number.
    let record = swept.iter().find(|record| record["feature"] == 1 && record["changed"] == true).unwrap();
    let strength = record["strength"].as_f64().unwrap();
    let file = format!("swept/msae/prompt-{}/k-{strength}/model.layers.2.json", record["sample"]);
    let entry = &scratch.json(&file)["model.layers.2_feature1"];
    assert_eq!((&entry["category"], &entry["explanation"]), (&"2".into(), &"freight trains".into()));

    // Nothing is asked again, but for what failed where that is wanted, and what is about something else now.
    fails(&mut judge(""), 2, "--resume");
    let before = server.count();
    succeeds(&mut judge("--resume"));
    assert_eq!(server.count(), before);
    succeeds(&mut judge("--resume --retry-failed"));
    assert_eq!(server.count(), before + 2 * asphalt);
    let other = published.replace("freight trains", "express freight trains");
    std::fs::write(scratch.path("explained.json"), other).unwrap();
    let before = server.count();
    succeeds(&mut judge("--resume"));
    assert_eq!(server.count(), before + trains);
    let nowhere = ["judge", "--sweep", "nowhere", "--explanations", "explained.json", "--resume"];
    fails(&mut scratch.command(&nowhere), 2, "nowhere holds no sweep.jsonl");

    // A sweep that goes on keeps what was judged of what stays the same, and one that starts anew nothing.
    succeeds(&mut scratch.stage("sweep", QUESTION, &format!("{sweep} --resume -k 41")));
    assert_eq!(scratch.json(&file)["model.layers.2_feature1"]["category"], "2");
    succeeds(&mut scratch.stage(
        "sweep",
        QUESTION,
        "--dataset scenes --features 1 --no-measures --save-dir swept --overwrite",
    ));
    assert!(!scratch.path(&file).exists() && !scratch.path("swept/judge.json").exists());
    assert!(!scratch.path("swept/judge.jsonl").exists());
}

/// Of one prompt at one strength there is one file, of more there are others: none is left over, and no verdict is lost.
#[test]
fn verdicts_stay_when_a_sweep_grows() {
    let scratch = Scratch::of(1);
    let sweep = |flags: &str| {
        let flags = format!("--dataset scenes --features 1 --no-measures --save-dir swept {flags}");
        succeeds(&mut scratch.stage("sweep", QUESTION, &flags));
    };
    sweep("-k 40");
    std::fs::write(scratch.path("explained.json"), r#"[{"model.layers.2_feature1": "trains"}]"#).unwrap();
    let server = Server::start(|_, _| Reply::answer("[ANSWER]: reasoning"));
    let judge = |flags: &str| {
        let endpoint = server.endpoint();
        let mut arguments = vec![
            "judge",
            "--sweep",
            "swept",
            "--explanations",
            "explained.json",
            "--endpoint",
            &endpoint,
            "-q",
        ];
        arguments.extend(flags.split_whitespace());
        succeeds(&mut scratch.command(&arguments))
    };
    judge("");
    let of = |file: &str| scratch.json(file)["model.layers.2_feature1"].clone();
    let before = of("swept/model.layers.2.json");
    assert_eq!(before["category"], "3", "{before}");
    sweep("-k 40 60 --resume");
    assert!(!scratch.path("swept/model.layers.2.json").exists(), "it is of one strength no more");
    assert_eq!(of("swept/msae/prompt-0/k-40/model.layers.2.json"), before);
    let summary: Value = serde_json::from_str(&judge("--resume")).unwrap();
    assert_eq!((&summary["all"]["features"], &summary["all"]["prompts"]), (&1.into(), &1.into()));
    assert!(of("swept/msae/prompt-0/k-60/model.layers.2.json")["category"].is_string());
    sweep("-k 40 --overwrite");
    assert!(!scratch.path("swept/msae").exists());
    assert!(of("swept/model.layers.2.json")["category"].is_null());
}

/// The judge is told what was done, and a verdict on what was done before is none on what is done now.
#[test]
fn the_judge_is_told_what_was_done() {
    let scratch = Scratch::of(1);
    let server = Server::start(|_, _| Reply::answer("[ANSWER]: unrelated"));
    std::fs::write(scratch.path("explained.json"), r#"[{"model.layers.2_feature1": "trains"}]"#).unwrap();
    for (flags, words) in [
        ("-k 40 --save-dir clamped", "was changed: held at 40."),
        ("-k -90 --mode add --save-dir added", "was changed: turned down by 90."),
    ] {
        let flags = format!("--dataset scenes --features 1 --no-measures {flags}");
        succeeds(&mut scratch.stage("sweep", QUESTION, &flags));
        let folder = flags.split(' ').next_back().unwrap();
        let endpoint = server.endpoint();
        let before = server.count();
        succeeds(&mut scratch.command(&[
            "judge",
            "--sweep",
            folder,
            "--explanations",
            "explained.json",
            "--endpoint",
            &endpoint,
            "-q",
        ]));
        assert_eq!(server.count(), before + 1, "{folder}: an answer that did not change");
        let (_, told) = shown(server.seen().last().unwrap());
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn a_server_that_refuses_everything_stops_the_run_and_nothing_is_lost() {
    let scratch = Scratch::of(2);
    let sweep = "--dataset scenes --features 1 -k 30 40 --no-measures --save-dir swept";
    succeeds(&mut scratch.stage("sweep", QUESTION, sweep));
    let changed =
        scratch.records("swept/sweep.jsonl").iter().filter(|record| record["changed"] == true).count();
    assert!(changed > 1);
    std::fs::write(scratch.path("explained.json"), r#"[{"model.layers.2_feature1": "trains"}]"#).unwrap();
    let server = Server::start(|number, _| match number {
        0 => Reply::answer("[ANSWER]: unrelated"),
        1 => Reply::error(401, "the key has expired"),
        _ => Reply::answer("[ANSWER]: none"),
    });
    let judge = |flags: &str| {
        let endpoint = server.endpoint();
        let mut arguments =
            vec!["judge", "--sweep", "swept", "--explanations", "explained.json", "--endpoint", &endpoint];
        arguments.extend(["--concurrency", "1", "-q"]);
        arguments.extend(flags.split_whitespace());
        scratch.command(&arguments)
    };
    fails(&mut judge(""), 1, "--resume");
    assert_eq!(scratch.json("swept/judge.json")["all"]["unrelated"], 1);
    let summary: Value = serde_json::from_str(&succeeds(&mut judge("--resume"))).unwrap();
    assert_eq!((&summary["all"]["none"], &summary["all"]["open"]), (&(changed - 1).into(), &0.into()));
}
