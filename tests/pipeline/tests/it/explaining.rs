//! Features of one model explained by another that is served over HTTP: cache, server, explanations, page.

use std::io::{BufRead, BufReader};
use std::process::Child;

use pipeline_tests::Scratch;
use sae_types::HookPoint;
use serde_json::Value;

const FEATURES: usize = 12;
const EXPLAIN: &str = "images --cache cache --dataset data --explanation-dir explained --prompt explainer/explain.txt \
                       --features 0-11 --min-activating 4 --max-examples 3 --image-side 0 --image-format png";

/// A server that ends with the test.
struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    fn start(scratch: &Scratch) -> Self {
        let mut child = scratch.command("lmm-serve", "explainer --port 0 -q").spawn().unwrap();
        let mut endpoint = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        let endpoint = endpoint.trim().to_owned();
        assert!(endpoint.starts_with("http://127.0.0.1:") && endpoint.ends_with("/v1"), "{endpoint:?}");
        Self { child, endpoint }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn outcomes(scratch: &Scratch) -> Vec<(u64, Value)> {
    let ledger = scratch.read("explained/explanations.jsonl");
    let line = |line: &str| -> (u64, Value) {
        let record: Value = serde_json::from_str(line).unwrap();
        (record["feature"].as_u64().unwrap(), record["outcome"].clone())
    };
    let mut outcomes: Vec<_> = ledger.lines().map(line).collect();
    outcomes.sort_by_key(|(feature, _)| *feature);
    outcomes
}

#[test]
fn the_larger_model_explains_the_smaller_one() {
    let scratch = Scratch::new();
    let explainer = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes-lmm-l");
    std::os::unix::fs::symlink(explainer.canonicalize().unwrap(), scratch.path("explainer")).unwrap();
    scratch.sae("sae", &HookPoint::layer(2), 128, 64, 8);
    scratch.run("sae-data", "shapes --count 24 --save-dir data");
    scratch.run("sae-cache", "images model data --sae sae --save-dir cache");

    let server = Server::start(&scratch);
    let arguments = format!("{EXPLAIN} --endpoint {}", server.endpoint);
    let run = scratch.run("sae-explain", &arguments);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    let all = outcomes(&scratch);
    assert!(all.iter().map(|(feature, _)| *feature).eq(0..FEATURES as u64), "{all:?}");
    // The explainer was taught to end every answer as it is asked to.
    let said =
        all.iter().filter(|(_, outcome)| outcome["answered"].is_string() || outcome == "unable").count();
    let skipped = all.iter().filter(|(_, outcome)| outcome["skipped"].is_string()).count();
    assert_eq!(said + skipped, FEATURES, "{all:?}");
    assert!(said > 0 && summary["unparsed"] == 0 && summary["requests"] == said, "{summary}");

    let published = scratch.json("explained/model_layers_2.json");
    let published = published.as_array().unwrap();
    assert_eq!(published.len(), said);
    for (feature, outcome) in &all {
        let name = format!("model.layers.2_feature{feature}");
        let text = published.iter().find_map(|entry| entry[&name].as_str());
        match outcome["answered"].as_str() {
            Some(answer) => assert_eq!(text, Some(answer)),
            None if outcome == "unable" => assert_eq!(text, Some("Unable to produce descriptions")),
            None => assert_eq!(text, None),
        }
    }

    // The same model judges whether the lit parts are what it said, in the words it was taught.
    let fuzz = "fuzz --cache cache --dataset data --explanations explained --save-dir scores --prompt explainer/judge.txt \
                --cut half-maximum --image-side 0 --image-format png --positives 4 --negatives 4 --min-activating 2";
    let run = scratch.run("sae-score", &format!("{fuzz} --endpoint {}", server.endpoint));
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(summary["answered"].as_u64() > Some(0) && summary["unparsed"] == 0, "{summary}");
    assert_eq!(summary["failed"], 0, "{summary}");
    let scores = scratch.json("scores/fuzz.json");
    for feature in scores["features"].as_array().unwrap() {
        // It says 1 or 0 of every part, and the server how sure it is.
        assert!(feature["unparsed"] == 0 && feature["auc"].is_f64(), "{feature}");
        assert!(feature["n"].as_u64() >= Some(2) && feature["balanced_accuracy"].is_f64(), "{feature}");
    }

    // All is done: nothing is asked again, and nothing changes.
    let again = scratch.run("sae-explain", &format!("{arguments} --resume"));
    let summary: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(
        (&summary["requests"], &summary["before"]),
        (&Value::from(0), &Value::from(FEATURES)),
        "{summary}"
    );
    assert_eq!(outcomes(&scratch), all);
    scratch.refuses("sae-explain", &arguments, 2, &["--resume", "--overwrite"]);

    scratch.run(
        "feature-page",
        "--cache cache --dataset data --features 5 --examples 3 --specific 0 --out page.html --report naming.json \
         --explanations explained/model_layers_2.json",
    );
    assert!(scratch.read("page.html").contains("explained as"));
    let naming = scratch.json("naming.json");
    assert!(naming["n"].as_u64() > Some(0) && naming["exact"].is_f64(), "{naming}");

    drop(server);
    let gone = format!("{arguments} --explanation-dir other --patience 1 --attempts 1");
    let gone = gone.replacen("--explanation-dir explained ", "", 1);
    scratch.finish(scratch.command("sae-explain", &gone)).ends_with(1).says(&["lmm-serve"]);
}
