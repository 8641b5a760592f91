//! From drawn scenes to the page: every stage reads what the one before wrote.

use std::collections::BTreeMap;
use std::fs;

use act_cache::{Cache, CacheError, FeatureSlice};
use pipeline_tests::Scratch;
use sae_core::Sae;
use sae_types::{FeatureId, HookPoint};
use serde_json::Value;

const SCENES: usize = 48;
const HELD_OUT: usize = 8;
const LATENTS: usize = 96;
const K: usize = 4;
/// Width of the embedded model.
const D_IN: usize = 128;

#[test]
fn scenes_to_page() {
    let scratch = Scratch::new();
    let hooks = [HookPoint::new("model.layers.1.mlp").unwrap(), HookPoint::layer(2)];

    scratch.run("sae-data", &format!("shapes --count {SCENES} --seed 7 --save-dir data"));
    let run = check_run(&scratch, "data", "sae-data", 7);
    assert_eq!(run["counts"]["scenes"], SCENES);

    let out = scratch.run(
        "sae-train",
        &format!(
            "model data --layers 2 --hookpoints {} --num-latents {LATENTS} --k {K} --eval-examples {HELD_OUT} \
             --save-dir sae",
            hooks[0]
        ),
    );
    check_training(&scratch, &hooks, &out.stdout);

    scratch.run("sae-cache", "images model data --sae sae --n-splits 3 --save-dir cache");
    let cache = check_cache(&scratch, &hooks);

    let filters = r#"{"model.layers.2": [40, 3, 17, 17]}"#;
    fs::write(scratch.path("filters.json"), filters).unwrap();
    scratch.run("sae-cache", "images model data --sae sae --filters filters.json --save-dir few");
    check_filtered(&scratch, &cache, &hooks);

    scratch.run("feature-page", "--cache cache --dataset data --features 5 --examples 4 --out page.html");
    check_page(&scratch.read("page.html"));
}

/// `run.json` of a stage's folder: what every stage has to say.
#[track_caller]
fn check_run(scratch: &Scratch, folder: &str, binary: &str, seed: u64) -> Value {
    let run = scratch.json(&format!("{folder}/run.json"));
    assert_eq!(run["binary"], binary);
    assert_eq!(run["seed"], seed);
    assert!(run["version"].as_str().is_some_and(|version| !version.is_empty()), "{run}");
    assert!(
        run["arguments"].as_array().is_some_and(|words| words.iter().any(|word| word == folder)),
        "{run}"
    );
    assert!(run["started_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{run}");
    assert!(run["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{run}");
    let inputs = run["inputs"].as_array().expect("a list of inputs");
    for input in inputs {
        assert!(input["sha256"].as_str().is_some_and(|hash| hash.len() == 64), "{run}");
    }
    assert_eq!(inputs.is_empty(), binary == "sae-data", "{run}");
    run
}

fn check_training(scratch: &Scratch, hooks: &[HookPoint], stdout: &str) {
    let run = check_run(scratch, "sae", "sae-train", 42);
    assert_eq!(run["counts"]["samples"], SCENES - HELD_OUT);
    assert_eq!(run["counts"]["bad records"], 0);
    let steps = (SCENES - HELD_OUT).div_ceil(8);
    assert_eq!(run["counts"]["optimizer steps"], steps);

    let found = Sae::find(&scratch.path("sae")).unwrap();
    assert!(found.keys().eq(hooks));
    for folder in found.values() {
        let sae = Sae::load(folder).unwrap();
        assert_eq!((sae.num_latents(), sae.d_in(), sae.k()), (LATENTS, D_IN, K));
        let weights = sae.decoder_weight().to_f32();
        for row in weights.chunks(D_IN) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((norm - 1.0).abs() < 1e-4, "a decoder row of norm {norm} in {}", folder.display());
        }
    }

    let metrics: Vec<Value> =
        scratch.read("sae/metrics.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (evaluations, metrics): (Vec<Value>, Vec<Value>) =
        metrics.into_iter().partition(|line| line.get("held_out").is_some());
    assert_eq!((evaluations.len(), metrics.len()), (hooks.len(), steps * hooks.len()));
    for hook in hooks {
        let lines: Vec<&Value> = metrics.iter().filter(|line| line["name"] == hook.as_str()).collect();
        assert!(lines.iter().all(|line| line["fvu"].as_f64().is_some_and(|fvu| fvu > 0.0 && fvu < 1.5)));
        assert!(lines.iter().all(|line| line["l0"].as_f64().is_some_and(|l0| l0 > 0.0 && l0 <= K as f64)));
        assert_eq!(lines[steps - 1]["tokens"], run["counts"][format!("{hook} tokens")]);
    }

    let printed: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let evaluation = scratch.json("sae/evaluation.json");
    assert_eq!(printed.len(), hooks.len());
    for line in printed {
        assert_eq!(line["held_out"], evaluation[line["name"].as_str().expect("a name")]);
        let fvu = line["held_out"]["fvu"].as_f64().expect("an FVU");
        assert!(fvu > 0.0 && fvu < 1.5, "{line}");
    }
    assert_eq!(scratch.json("sae/config.json")["hookpoints"], serde_json::json!(hooks));
}

fn check_cache(scratch: &Scratch, hooks: &[HookPoint]) -> Cache {
    let run = check_run(scratch, "cache", "sae-cache", 42);
    let cache = Cache::open(&scratch.path("cache")).unwrap();
    cache.verify().unwrap();
    assert!(cache.hooks().eq(hooks));
    assert_eq!(cache.samples().len(), SCENES);
    assert_eq!(run["counts"]["images"], SCENES);
    assert_eq!(run["counts"]["activations"], cache.manifest().counts.activations);

    let base = cache.manifest().token_layout.base.expect("a base tile");
    assert_eq!((base.start, base.rows, base.cols), (1, 8, 8), "BOS, then the base tile");
    for sample in cache.samples() {
        let [rows, columns] = sample.high.expect("tiles");
        assert_eq!(sample.n_tokens, 1 + 64 + rows * (columns + 1), "sample {}", sample.sample);
        assert_eq!((sample.height / rows, sample.width / columns), (12, 12), "patches of 12 pixels");
    }

    for hook in hooks {
        let features = cache.hook(hook).unwrap();
        assert_eq!((features.width(), features.k()), (LATENTS, K));
        assert_eq!(cache.manifest().hooks[hook].splits.len(), 3);
        let mut codes = BTreeMap::<(u32, u32), usize>::new();
        for activation in features.features().flat_map(|slice| slice.iter()) {
            *codes.entry((activation.sample.0, activation.token.0)).or_default() += 1;
            assert!(activation.value > 0.0);
        }
        assert!(codes.values().all(|&n| n <= K), "more than {K} codes on one token");
        assert!(codes.keys().all(|&(_, token)| token > 0), "BOS is not stored");
        let tokens: u64 = cache.samples().iter().map(|sample| u64::from(sample.n_tokens - 1)).sum();
        assert_eq!(features.n_tokens(), tokens);
        // k latents above zero are the rule; a few tokens may have fewer.
        assert!(codes.len() as u64 * 10 > tokens * 9, "{} of {tokens} tokens have codes", codes.len());
    }
    cache
}

fn check_filtered(scratch: &Scratch, whole: &Cache, hooks: &[HookPoint]) {
    let cache = Cache::open(&scratch.path("few")).unwrap();
    cache.verify().unwrap();
    assert!(cache.hooks().eq(&hooks[1..]), "only what the filters name");
    let (few, all) = (cache.hook(&hooks[1]).unwrap(), whole.hook(&hooks[1]).unwrap());
    assert_eq!(few.stored(), [3, 17, 40].map(FeatureId));
    let entries =
        |slice: FeatureSlice<'_>| slice.iter().map(|a| (a.sample, a.token, a.value)).collect::<Vec<_>>();
    for feature in few.stored() {
        assert_eq!(entries(few.feature(feature).unwrap()), entries(all.feature(feature).unwrap()));
    }
    assert!(few.features().all(|slice| few.stored().contains(&slice.feature())));
    assert!(matches!(few.feature(FeatureId(4)), Err(CacheError::NotCached { .. })));
}

fn check_page(html: &str) {
    assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>"));
    // Fewer than asked for where many features agree with one concept.
    let cards = html.matches("<article").count();
    assert!((1..=5).contains(&cards), "{cards} cards");
    assert_eq!(html.matches("<img").count(), cards * 4 * 2, "each picture plain and lit");
    assert!(!html.contains("http"), "the page has to fetch nothing");
    for (at, _) in html.match_indices("src=") {
        assert!(html[at..].starts_with("src='data:image/"), "{}", &html[at..at + 40]);
    }
    for fetching in ["<script", "<link", "url(", "@import", "<iframe"] {
        assert!(!html.contains(fetching), "{fetching}");
    }
}
