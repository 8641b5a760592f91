//! `sae-convert cache`: there and back, reports, refusals.

use std::path::Path;

use act_cache::{
    Cache, CacheDescription, CacheJob, HookDescription, PartWriter, SampleCodes, SampleRecord, Shard,
};
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};

use crate::support::{assert_fails, convert, entries, report};

const WIDTH: usize = 12;

fn hook() -> HookPoint {
    HookPoint::layer(3)
}

/// 5 samples of 6 or 7 tokens; BOS at position 0 is not encoded.
fn write(dir: &Path, keep_tokens: bool) {
    let mut about = CacheDescription { model: "a/model".into(), ..CacheDescription::default() };
    about.dataset.name = "a/set".into();
    about.token_layout.first = 1;
    about.hooks.insert(hook(), HookDescription { width: WIDTH, k: 3, ..HookDescription::default() });
    let job = CacheJob { n_splits: 3, keep_tokens, ..CacheJob::new(about) };
    let parts = dir.with_extension("parts");
    let mut part = PartWriter::open(&parts, &job, Shard::WHOLE, 1 << 20).unwrap();
    for sample in 0..5u32 {
        let n = 6 + sample % 2;
        let mut codes = SparseCodes::new(WIDTH);
        for token in 1..n {
            let on = (0..WIDTH as u32).filter(|latent| (sample * 5 + token * 3 + latent * 7) % 5 == 0);
            codes.push_row(on.map(|latent| (FeatureId(latent), 0.1 + latent as f32))).unwrap();
        }
        let positions: Vec<u32> = (1..n).collect();
        let ids: Vec<u32> = (0..n).map(|token| 10 + token + sample).collect();
        let record = SampleRecord { sample: SampleId(sample), n_tokens: n, ..SampleRecord::default() };
        let codes = [SampleCodes { hook: &hook(), tokens: &positions, codes: &codes }];
        part.push(&record, keep_tokens.then_some(&ids), &codes).unwrap();
    }
    part.finish(SampleId(5), &serde_json::Value::Null).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    act_cache::merge(&parts, dir).unwrap();
    std::fs::remove_dir_all(parts).unwrap();
}

fn features(dir: &Path) -> Vec<Vec<(u32, u32, f32)>> {
    let cache = Cache::open(dir).unwrap();
    cache.verify().unwrap();
    let layer = cache.hook(&hook()).unwrap();
    let feature = |latent| {
        let slice = layer.feature(FeatureId(latent)).unwrap();
        slice.iter().map(|a| (a.sample.0, a.token.0, a.value)).collect()
    };
    (0..WIDTH as u32).map(feature).collect()
}

#[test]
fn through_msae_and_back() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("native"), false);
    let there = report(&convert(
        root.path(),
        &["cache", "native", "msae", "--to", "msae", "--n-splits", "2", "--json"],
    ));
    assert_eq!((there["from"].as_str(), there["to"].as_str()), (Some("native"), Some("msae")));
    assert_eq!(there["activations"], there["checked_activations"]);
    assert_eq!(entries(&root.path().join("msae")), ["latents", "run.json"]);
    assert_eq!(
        entries(&root.path().join("msae/latents/model.layers.3")),
        ["0_5.safetensors", "6_11.safetensors"]
    );
    let output = convert(root.path(), &["cache", "msae", "back", "--to", "native", "--base-tile", "2x2"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("activations of model.layers.3 from msae to native"),
        "{text}"
    );
    assert!(text.contains("checked: "), "{text}");
    assert_eq!(features(&root.path().join("back")), features(&root.path().join("native")));
    let cache = Cache::open(&root.path().join("back")).unwrap();
    let base = cache.manifest().token_layout.base.unwrap();
    assert_eq!((base.start, base.rows, base.cols), (1, 2, 2));
    assert!(cache.samples().iter().all(SampleRecord::has_image));
}

#[test]
fn through_delphi_and_back() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("native"), true);
    let args = ["cache", "native", "run", "--to", "delphi", "--ctx-len", "4", "--pad-id", "99", "--json"];
    let there = report(&convert(root.path(), &args));
    assert_eq!((there["rows"].as_u64(), there["row_length"].as_u64()), (Some(5), Some(8)));
    assert_eq!(there["checked_tokens"], 32);
    let folder = root.path().join("run/latents/model.layers.3");
    assert_eq!(entries(&folder), ["0_3.safetensors", "4_7.safetensors", "8_11.safetensors", "config.json"]);
    let args = ["cache", "run", "back", "--to", "native", "--pad-id", "99", "--dtype", "f32", "--json"];
    let back = report(&convert(root.path(), &args));
    assert_eq!((back["from"].as_str(), back["checked_tokens"].as_u64()), (Some("delphi"), Some(32)));
    let cache = Cache::open(&root.path().join("back")).unwrap();
    assert_eq!(
        (cache.manifest().model.as_str(), cache.manifest().dataset.name.as_str()),
        ("a/model", "a/set")
    );
    let lengths: Vec<u32> = cache.samples().iter().map(|sample| sample.n_tokens).collect();
    assert_eq!(lengths, [6, 7, 6, 7, 6]);
    let near =
        |(a, b): (&(u32, u32, f32), &(u32, u32, f32))| a.0 == b.0 && a.1 == b.1 && (a.2 - b.2).abs() < 0.01;
    for (a, b) in features(&root.path().join("back")).iter().zip(&features(&root.path().join("native"))) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(near), "{a:?} {b:?}");
    }
}

#[test]
fn refusals_leave_nothing() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("native"), false);
    std::fs::create_dir(root.path().join("empty")).unwrap();
    let before = entries(root.path());
    for (args, code, says) in [
        (vec!["native", "out", "--to", "native"], 2, "one side must be native"),
        (vec!["empty", "out", "--to", "delphi"], 2, "one side must be native"),
        (vec!["empty", "out", "--to", "native"], 1, "holds no cache of msae or delphi"),
        (vec!["native", "out", "--to", "delphi"], 1, "--without-tokens"),
        (vec!["native", "out", "--to", "delphi", "--dtype", "bf16"], 2, "delphi stores activations as f16"),
        (vec!["native", "out", "--to", "msae", "--n-splits", "13"], 1, "n_splits is 13"),
        (vec!["empty", "out", "--to", "native", "--base-tile", "24"], 2, "ROWSxCOLS"),
        (vec!["native", "empty/../native", "--to", "msae"], 1, "--overwrite"),
    ] {
        let args: Vec<&str> = ["cache"].into_iter().chain(args).collect();
        assert_fails(&convert(root.path(), &args), code, says);
    }
    let output =
        convert(root.path(), &["cache", "native", "out", "--to", "delphi", "--without-tokens", "--json"]);
    // Padding stands where there are no token ids to compare.
    assert_eq!(report(&output)["checked_tokens"], 0);
    std::fs::remove_dir_all(root.path().join("out")).unwrap();
    assert_eq!(entries(root.path()), before);
}
