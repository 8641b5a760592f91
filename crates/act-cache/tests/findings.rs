//! What is said of caches that are broken, odd, or not of today's data set.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod common;

use std::path::{Path, PathBuf};

use act_cache::{Cache, CacheError, DatasetSample, DatasetSource, Finding, Severity, WriterOptions};
use common::{Dense, DenseSample, description, hook, small};
use sae_types::SampleId;

const TWO: WriterOptions =
    WriterOptions { n_splits: 2, dtype: act_cache::ActivationDtype::F32, memory_budget: 1 << 20 };

fn small_cache() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    small().write(&dir, description(10), TWO).unwrap();
    (folder, dir)
}

fn findings(dir: &Path) -> Vec<String> {
    Cache::open(dir).unwrap().findings().iter().map(Finding::to_string).collect()
}

#[track_caller]
fn has(findings: &[String], start: &str) {
    assert!(findings.iter().any(|finding| finding.starts_with(start)), "{start:?} is not in {findings:#?}");
}

#[test]
fn a_sound_cache_has_no_warning() {
    let (_folder, dir) = small_cache();
    let cache = Cache::open(&dir).unwrap();
    assert!(cache.findings().iter().all(|finding| finding.severity == Severity::Note));
    // The images of six samples are three.
    has(&findings(&dir), "note: samples.jsonl: 3 samples show an image that an earlier one shows");
    assert!(cache.damage().is_empty());
}

#[test]
fn every_broken_file_is_named() {
    let (_folder, dir) = small_cache();
    let (first, second) =
        (dir.join("model.layers.3/0_4.safetensors"), dir.join("model.layers.3/5_9.safetensors"));
    let bytes = std::fs::read(&first).unwrap();
    std::fs::write(&first, &bytes[..bytes.len() - 1]).unwrap();
    std::fs::remove_file(&second).unwrap();
    let found = findings(&dir);
    has(&found, "error: model.layers.3/0_4.safetensors: tensor token ends beyond");
    has(&found, "error: model.layers.3/5_9.safetensors: cannot open it: No such file");
    assert_eq!(Cache::open(&dir).unwrap().damage().len(), 2);

    // What only reading everything shows.
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&first, &flipped).unwrap();
    assert!(!findings(&dir).iter().any(|finding| finding.contains("0_4")));
    let cache = Cache::open(&dir).unwrap();
    let damage = cache.damage();
    assert!(matches!(&damage[0], CacheError::Hash { path, .. } if *path == first), "{damage:?}");
    let finding = Finding::damage(&dir, &damage[0]).to_string();
    assert!(finding.starts_with("error: model.layers.3/0_4.safetensors: has SHA-256 "), "{finding}");
    assert_eq!(cache.verify().unwrap_err().to_string(), damage[0].to_string());
}

#[test]
fn files_that_are_not_the_manifests_are_named() {
    let (_folder, dir) = small_cache();
    for name in ["run.json", "model.layers.3/5_8.safetensors", "model.layers.3/notes.txt"] {
        std::fs::write(dir.join(name), "x").unwrap();
    }
    std::fs::create_dir(dir.join("model.layers.8")).unwrap();
    std::fs::write(dir.join("model.layers.8/0_4.safetensors"), "x").unwrap();
    let cache = Cache::open(&dir).unwrap();
    let foreign: Vec<_> = cache.damage().iter().map(|error| error.path().unwrap().to_owned()).collect();
    let names =
        ["model.layers.3/5_8.safetensors", "model.layers.3/notes.txt", "model.layers.8/0_4.safetensors"];
    assert_eq!(foreign, names.map(|name| dir.join(name)));
    assert!(matches!(cache.verify(), Err(CacheError::Foreign { .. })));
    for name in names {
        has(&findings(&dir), &format!("warning: {name}: is not in the manifest; nothing reads it"));
    }
    assert!(!findings(&dir).iter().any(|finding| finding.contains("run.json")));
}

#[test]
fn counts_that_do_not_add_up_are_an_error() {
    let (_folder, dir) = small_cache();
    let path = dir.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["counts"]["activations"] = 5.into();
    manifest["hooks"]["model.layers.3"]["lost"] = serde_json::json!([4, 9]);
    std::fs::write(&path, manifest.to_string()).unwrap();
    let found = findings(&dir);
    has(&found, "error: manifest.json: counts.activations is 5, the splits have ");
    has(&found, "warning: model.layers.3: 2 features were lost before this cache was made, the first is 4");
    assert!(found[0].starts_with("error"), "the worst first: {found:#?}");
}

#[test]
fn silent_features_and_hook_points_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, row: &[f32]| {
        let dir = folder.path().join(name);
        let samples = vec![DenseSample { sample: 0, values: vec![row.to_vec()] }];
        Dense { width: 4, samples }.write(&dir, description(4), TWO).unwrap();
        findings(&dir)
    };
    has(
        &write("most", &[0.0, 1.0, 1.0, 0.0]),
        "note: model.layers.3: 2 of 4 features (50.0 %) are never active",
    );
    has(
        &write("few", &[0.0, 1.0, 0.0, 0.0]),
        "warning: model.layers.3: 3 of 4 features (75.0 %) are never active",
    );
    has(&write("none", &[0.0; 4]), "warning: model.layers.3: no feature is active on any of 1 tokens");
}

#[test]
fn splits_of_different_token_dtypes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, token: u32| {
        let dir = folder.path().join(name);
        let mut writer = act_cache::CacheWriter::create(&dir, description(10), TWO).unwrap();
        let mut codes = sae_types::SparseCodes::new(10);
        codes.push_row([(sae_types::FeatureId(1), 1.0), (sae_types::FeatureId(7), 1.0)]).unwrap();
        let record = act_cache::SampleRecord { sample: SampleId(0), n_tokens: 70_000, ..Default::default() };
        let codes = act_cache::SampleCodes { hook: &hook(), tokens: &[token], codes: &codes };
        writer.push(&record, &[codes]).unwrap();
        writer.finish().unwrap();
        dir
    };
    let (narrow, wide) = (write("narrow", 9), write("wide", 69_999));
    let name = "model.layers.3/5_9.safetensors";
    std::fs::copy(wide.join(name), narrow.join(name)).unwrap();
    has(
        &findings(&narrow),
        "warning: model.layers.3: model.layers.3/0_4.safetensors and model.layers.3/5_9.safetensors store tokens in different",
    );
}

#[test]
fn drift_is_told_sample_by_sample() {
    let (_folder, dir) = small_cache();
    let cache = Cache::open(&dir).unwrap();
    let then = cache.manifest().dataset.clone();
    let same = |sample: SampleId| {
        let record = cache.sample(sample).ok_or("not asked for")?;
        Ok::<_, &str>(DatasetSample { id: record.id.clone(), image_sha256: record.image_sha256.clone() })
    };
    assert_eq!(cache.drift(&then, same), []);

    let texts = |findings: Vec<Finding>| findings.iter().map(Finding::to_string).collect::<Vec<_>>();
    let now = DatasetSource { fingerprint: "new".into(), n_samples: 5, ..then.clone() };
    let found = texts(cache.drift(&now, |sample| match sample.0 {
        0 => Err("no such file"),
        1 | 3 => Ok(DatasetSample { image_sha256: Some("other".into()), ..DatasetSample::default() }),
        _ => same(sample),
    }));
    has(&found, "warning: dataset.fingerprint: was \"\" when the cache was made, is \"new\"");
    has(&found, "warning: dataset.n_samples: 1000 when the cache was made, 5 now");
    has(&found, "error: samples.jsonl: 1 of 6 samples are not in the data set: 5;");
    has(&found, "error: samples.jsonl: 1 of 6 samples cannot be read: 0 (no such file);");
    has(&found, "error: samples.jsonl: 2 of 6 samples show another image: 1, 3;");
    assert_eq!(found.len(), 5);
}
