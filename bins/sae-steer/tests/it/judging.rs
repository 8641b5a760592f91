//! `sae-steer judge`, on a server that answers what the test tells it to.

use serde_json::Value;

use crate::server::{Reply, Server, shown};
use crate::support::{Scratch, fails, succeeds};

#[test]
fn changed_answers_are_sorted_with_the_description_in_sight() {
    let scratch = Scratch::of(2);
    let sweep = "--dataset scenes --features 1-3 -k 0.001 40 --no-measures --save-dir swept";
    succeeds(&mut scratch.stage("sweep", "how many shapes are there ?", sweep));
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
    fails(&mut judge("--sweep nowhere --resume"), 2, "the argument '--sweep");
}

#[test]
fn a_server_that_refuses_everything_stops_the_run_and_nothing_is_lost() {
    let scratch = Scratch::of(2);
    let sweep = "--dataset scenes --features 1 -k 30 40 --no-measures --save-dir swept";
    succeeds(&mut scratch.stage("sweep", "how many shapes are there ?", sweep));
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
