//! `sae-attribute` and `sae-probe` on the embedded model and an autoencoder that was never trained.

use std::fs;

use pipeline_tests::Scratch;
use sae_types::HookPoint;
use serde_json::{Value, json};

const RUN: &str = "run model --sae sae --data data.json --chat --save-dir";

/// Two autoencoders of 64 latents and a question about a picture.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.images("pictures", 1);
    for layer in [1, 2] {
        scratch.sae("sae", &HookPoint::layer(layer), 128, 64, 8);
    }
    let question = json!([{
        "prompt": "what colour is the circle ?",
        "answer": ["red", "green"],
        "baseline": "blue",
        "image": "pictures/000.png",
    }]);
    fs::write(scratch.path("data.json"), question.to_string()).unwrap();
    scratch
}

#[test]
fn effects_are_found_written_and_drawn() {
    let scratch = scratch();
    let run = scratch.run("sae-attribute", &format!("{RUN} effects --dense"));
    assert!(run.stdout.contains("question 0: score") && run.stdout.contains("model.layers.2:"), "{run}");
    assert!(!scratch.path("effects.parts").exists());
    let about: Value = serde_json::from_str(&scratch.read("effects/attribution.json")).unwrap();
    assert_eq!(about["method"], "one-pass");
    assert_eq!(about["hooks"], json!({"model.layers.1": 64, "model.layers.2": 64}));
    let question = &about["questions"][0];
    assert_eq!(question["answers"][1]["text"], "green");
    let tokens = question["tokens"].as_array().unwrap();
    let dense = fs::read(scratch.path("effects/model_model_layers_1.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&dense[8..200]).into_owned();
    assert!(header.contains(&format!("\"shape\":[64,{}]", tokens.len())), "{header}");

    scratch.run("sae-attribute", "filters effects -k 3 --save-dir top");
    let filters: Value = serde_json::from_str(&scratch.read("top/filters.json")).unwrap();
    for hook in ["model.layers.1", "model.layers.2"] {
        assert!((3..=6).contains(&filters[hook].as_array().unwrap().len()), "{filters}");
    }
    let images = fs::read_dir(scratch.path("top/images")).unwrap().map(|entry| entry.unwrap().file_name());
    let images: Vec<String> = images.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(images.len(), 6);
    let page = scratch.read("top/index.html");
    assert!(page.contains("[image]") && page.contains("red or green over blue"));
    assert!(images.iter().all(|name| page.contains(&format!("src=\"images/{name}\""))), "{images:?}");
    assert!(!page.contains("base64"), "the page holds no picture itself");

    // What was found is a shortlist for the slow methods.
    scratch.run("sae-attribute", &format!("{RUN} exact --method exact --filters top/filters.json"));
    scratch.refuses("sae-attribute", "filters exact --save-dir again", 1, &["--per-token"]);
    scratch.run("sae-attribute", &format!("{RUN} each --method ig --steps 2 --top 3"));
    let small = scratch.run("sae-attribute", &format!("{RUN} small --load-in-8bit"));
    assert!(!small.stderr.contains("--dtype f32"), "{small}");
    let half = scratch.run("sae-attribute", &format!("{RUN} half --dtype bf16"));
    assert!(half.stderr.contains("--dtype f32"), "{half}");
    // Filters and hook points are both heeded.
    let only = format!("{RUN} only --method exact --filters top/filters.json --hook model.layers.2");
    scratch.run("sae-attribute", &only);
    let about: Value = serde_json::from_str(&scratch.read("only/attribution.json")).unwrap();
    assert_eq!(about["hooks"], json!({"model.layers.2": 64}));
    fs::write(scratch.path("none.json"), r#"{"model.layers.1": [1], "model.layers.2": []}"#).unwrap();
    let none = only.replace("only", "none").replace("top/filters.json", "none.json");
    scratch.refuses("sae-attribute", &none, 2, &["no feature of model.layers.2"]);
    let check = scratch.run("sae-attribute", "check model --sae sae --data data.json --chat --top 20 --json");
    let rows: Vec<Value> = serde_json::from_str(&check.stdout).unwrap();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row["n"] == 20), "{check}");
    // An untrained autoencoder's features are far too long for one gradient; ten steps follow them. (Of a trained one 0.995,
    // docs/attribution.md.)
    let spearman = |row: &Value| row["spearman"].as_f64().unwrap();
    for hook in ["model.layers.1", "model.layers.2"] {
        let of = |method| rows.iter().find(|row| row["hook"] == hook && row["method"] == method).unwrap();
        assert!(spearman(of("ig")) > 0.8 && spearman(of("ig")) > spearman(of("one-pass")), "{check}");
    }
}

/// What cannot come to anything is refused before the weights are read: there are none to read.
#[test]
fn what_is_known_at_the_start_is_said_at_the_start() {
    let scratch = scratch();
    let bare = scratch.path("bare");
    fs::create_dir(&bare).unwrap();
    for entry in fs::read_dir(scratch.path("model")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.extension().is_none_or(|extension| extension != "safetensors") {
            fs::copy(&path, bare.join(path.file_name().unwrap())).unwrap();
        }
    }
    let run = RUN.replace("run model", "run bare");
    let ask = |answer: Value| {
        let one = json!({"prompt": "is it red ?", "answer": answer});
        let other = json!({"prompt": "is the circle red ?", "answer": "blue"});
        fs::write(scratch.path("data.json"), json!([one, other]).to_string()).unwrap();
    };
    ask(json!([]));
    scratch.refuses("sae-attribute", &format!("{run} out"), 1, &["question 0", "list of answers is empty"]);
    ask(json!("red"));
    scratch.refuses("sae-attribute", &format!("{run} out --dense"), 2, &["--dense", "prompts of one length"]);
    let cases: [(&str, &[&str]); 5] = [
        ("--method exact --features 3,64", &["--features", "64", "latents 0 to 63"]),
        ("--steps 3", &["--steps", "--path", "--method ig"]),
        ("--method exact --path each", &["--steps", "--path", "--method ig"]),
        ("--top 3", &["--top", "exact", "ig"]),
        ("--method exact --features 3 --top 3", &["--top", "exact", "ig"]),
    ];
    for (flags, words) in cases {
        scratch.refuses("sae-attribute", &format!("{run} out {flags}"), 2, words);
    }
    let check = "check bare --sae sae --data data.json --method one-pass --steps 3";
    scratch.refuses("sae-attribute", check, 2, &["--steps"]);
    scratch.refuses(
        "sae-attribute",
        &format!("{run} out --hook model.layers.3"),
        1,
        &["model.layers.3", "it has"],
    );
    assert!(!scratch.path("out").exists());
}

#[test]
fn msae_reads_prompts_as_they_stand() {
    let scratch = scratch();
    let prompt = "user : <image> what colour is the circle ? assistant :";
    let mut question =
        json!({"prompt": prompt, "answer": "red", "baseline": "blue", "image": "pictures/000.png"});
    fs::write(scratch.path("data.json"), json!([question]).to_string()).unwrap();
    let flags = "run model --sae sae --data data.json --compat msae --hook model.layers.2 --features 1,2,3 --save-dir";
    scratch.run("sae-attribute", &format!("{flags} effects --dense"));
    let about: Value = serde_json::from_str(&scratch.read("effects/attribution.json")).unwrap();
    assert_eq!(about["questions"][0]["tokens"][0], "user", "no BOS");
    for (answer, says) in [("crimson", "is no token"), ("red blue", "is 2 tokens")] {
        question["answer"] = answer.into();
        fs::write(scratch.path("data.json"), json!([question]).to_string()).unwrap();
        scratch.refuses("sae-attribute", &format!("{flags} bad"), 1, &["question 0", says]);
    }
    scratch.refuses("sae-attribute", &format!("{flags} bad --chat"), 2, &["leave out --chat"]);
}

#[test]
fn probes_list_features_and_write_only_what_is_asked() {
    let scratch = scratch();
    let flags = "model --sae sae --hook model.layers.2 -i pictures/000.png";
    let before = fs::read_dir(scratch.path(".")).unwrap().count();
    let run = scratch.run("sae-probe", &format!("{flags} --ranks 2..5 --json"));
    assert_eq!(fs::read_dir(scratch.path(".")).unwrap().count(), before);
    let rows: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(rows.iter().map(|row| row["rank"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3, 4]);
    let feature = rows[0]["feature"].as_u64().unwrap();
    let said = format!(r#"[{{"model.layers.2_feature{feature}": "a bright square"}}]"#);
    fs::write(scratch.path("said.json"), said).unwrap();
    let run = scratch.run(
        "sae-probe",
        &format!(
            "{flags} --ranks 2..5 --explanations said.json --overlays over --filters-out filters.json --tokens-html page.html"
        ),
    );
    assert!(run.stdout.contains("a bright square"), "{run}");
    // BOS does not count.
    let all = run.stdout.split(" of ").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(run.stdout.starts_with(&format!("model.layers.2, {} of {all} tokens count", all - 1)), "{run}");
    // What sae-explain writes; and what explains nothing that is looked at, or nothing at all.
    fs::create_dir(scratch.path("explained")).unwrap();
    let record = format!(
        r#"{{"hook":"model.layers.2","feature":{feature},"outcome":{{"answered":"a dark square"}}}}"#
    );
    fs::write(scratch.path("explained/explanations.jsonl"), format!("{record}\n")).unwrap();
    let run = scratch.run("sae-probe", &format!("{flags} --ranks 2..5 --explanations explained"));
    assert!(run.stdout.contains("a dark square"), "{run}");
    let other = format!(r#"[{{"model.layers.1_feature{feature}": "elsewhere"}}]"#);
    fs::write(scratch.path("other.json"), other).unwrap();
    let run = scratch.run("sae-probe", &format!("{flags} --explanations other.json"));
    assert!(run.stderr.contains("explains no feature of model.layers.2"), "{run}");
    scratch.refuses(
        "sae-probe",
        &format!("{flags} --explanations nowhere"),
        1,
        &["nowhere", "does not exist"],
    );
    fs::write(scratch.path("empty.json"), "[{}]").unwrap();
    scratch.refuses(
        "sae-probe",
        &format!("{flags} --explanations empty.json"),
        1,
        &["empty.json", "no text"],
    );
    assert_eq!(fs::read_dir(scratch.path("over")).unwrap().count(), 3);
    let filters: Value = serde_json::from_str(&scratch.read("filters.json")).unwrap();
    assert_eq!(filters["model.layers.2"].as_array().unwrap().len(), 3);
    assert!(scratch.read("page.html").contains("a bright square"));
    scratch.refuses("sae-probe", "model --sae sae", 2, &["nothing to look at"]);
    scratch.refuses("sae-probe", &format!("{flags} --ranks 5..2"), 2, &["no rank in this range"]);
    for by in ["mean", "max"] {
        scratch.run("sae-probe", &format!("{flags} --by {by} --tokens image -t red"));
    }
}
