//! What is refused, with which words, and that nothing half-written stays.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod common;

use std::path::{Path, PathBuf};

use act_cache::{
    ActivationDtype, Cache, CacheError, CacheWriter, Duplicates, Ranking, SampleCodes, SampleRecord,
    Selection, Together, WriterOptions,
};
use common::{description, files, hook, small};
use proptest::prelude::*;
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};

const TWO: WriterOptions = WriterOptions { n_splits: 2, dtype: ActivationDtype::F32, memory_budget: 1 << 20 };

fn small_cache() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    small().write(&dir, description(10), TWO).unwrap();
    (folder, dir)
}

/// Everything there is to read.
fn read_all(dir: &Path) -> Result<(), CacheError> {
    let cache = Cache::open(dir)?;
    let layer = cache.hook(&hook())?;
    for slice in layer.features() {
        let _ = slice.iter().map(|activation| f64::from(activation.value)).sum::<f64>();
        for ranking in [Ranking::BaseMean, Ranking::BaseMax, Ranking::Max] {
            slice.pick(ranking, Selection::Top(3), Duplicates::Drop)?;
            slice.pick(ranking, Selection::Quantiles { parts: 2, per_part: 2, seed: 1 }, Duplicates::Keep)?;
        }
    }
    layer.statistics();
    let all: Vec<FeatureId> = (0..10).map(FeatureId).collect();
    layer.co_occurrence(&all, Together::Token)?;
    layer.co_occurrence(&all, Together::Sample)?;
    layer.sample(SampleId(3))?;
    cache.findings();
    cache.verify()
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|source| format!(": {}", chain(source))).unwrap_or_default();
    format!("{error}{cause}")
}

#[test]
fn unknown_names_are_answered_with_the_known() {
    let (_folder, dir) = small_cache();
    let cache = Cache::open(&dir).unwrap();
    assert_eq!(
        cache.hook(&HookPoint::layer(4)).unwrap_err().to_string(),
        "the cache does not hold hook point model.layers.4; it holds model.layers.3"
    );
    assert_eq!(
        cache.hook(&hook()).unwrap().feature(FeatureId(10)).unwrap_err().to_string(),
        "feature 10 is beyond the 10 latents of model.layers.3: the last one is 9"
    );
}

#[test]
fn a_foreign_or_newer_manifest_is_named_as_such() {
    let (_folder, dir) = small_cache();
    let path = dir.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let refusal = |text: &str| {
        std::fs::write(&path, text).unwrap();
        chain(&Cache::open(&dir).unwrap_err())
    };
    let newer = refusal(&text.replace("\"version\": 1", "\"version\": 2"));
    assert!(
        newer.ends_with("manifest.json: version is 2, expected 1, the one this program reads"),
        "{newer}"
    );
    let foreign = refusal("{\"layers\": 3}");
    assert!(foreign.contains("format is absent"), "{foreign}");
    let elsewhere = refusal(&text.replace("model.layers.3/0_4", "../../etc/0_4"));
    assert!(elsewhere.contains("hooks.model.layers.3.splits[0].file is"), "{elsewhere}");
    let gap = refusal(&text.replace("\"start\": 5", "\"start\": 6"));
    assert!(gap.contains("splits[1].start is 6, expected 5"), "{gap}");
    let extended = text.replacen('{', "{\"later\": true,", 1);
    std::fs::write(&path, extended).unwrap();
    read_all(&dir).unwrap();
}

#[test]
fn damage_is_found_and_named() {
    let (_folder, dir) = small_cache();
    let sound = files(&dir);
    for (name, bytes) in sound.iter().filter(|(name, _)| name.to_str() != Some("manifest.json")) {
        let path = dir.join(name);
        for cut in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut.min(bytes.len() - 1)]).unwrap();
            let error = chain(&read_all(&dir).unwrap_err());
            assert!(error.contains(name.to_str().unwrap()), "{error} names not {}", name.display());
        }
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        std::fs::write(&path, flipped).unwrap();
        let error = chain(&read_all(&dir).unwrap_err());
        assert!(error.contains(name.to_str().unwrap()), "{error} names not {}", name.display());
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::remove_file(dir.join("model.layers.3/5_9.safetensors")).unwrap();
    let error = chain(&read_all(&dir).unwrap_err());
    assert!(error.starts_with("cannot open ") && error.contains("5_9.safetensors"), "{error}");
}

#[test]
fn hostile_headers_are_refused() {
    let (_folder, dir) = small_cache();
    let path = dir.join("model.layers.3/0_4.safetensors");
    let sound = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*sound.first_chunk().unwrap()) as usize;
    let header = std::str::from_utf8(&sound[8..8 + length]).unwrap();
    let refusal = |header: &str, data: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        std::fs::write(&path, bytes).unwrap();
        chain(&read_all(&dir).unwrap_err())
    };
    let data = &sound[8 + length..];
    let big = u64::MAX;
    for (hostile, wants) in [
        (header.replace("\"sample\"", "\"simple\""), "tensor sample is missing"),
        (header.replace("\"F32\"", "\"I32\""), "tensor activation is I32"),
        (
            header.replace("\"U64\",\"shape\":[6]", "\"U64\",\"shape\":[3,2]"),
            "tensor latent_offsets is U64 [3, 2]",
        ),
        (header.replace("\"shape\":[6]", &format!("\"shape\":[{big}]")), "no sound safetensors header"),
        (header.replace("[0,48]", &format!("[0,{big}]")), "no sound safetensors header"),
        ("[]".to_owned(), "no sound safetensors header"),
        (format!("{header} "), "is not aligned to its elements"),
    ] {
        assert_ne!(hostile, header);
        let error = refusal(&hostile, data);
        assert!(error.contains(wants) && error.contains("0_4.safetensors"), "{error}\nlacks {wants}");
    }
    let mut falling = data.to_vec();
    falling[8..16].copy_from_slice(&1_000_000u64.to_le_bytes());
    assert!(refusal(header, &falling).contains("tensor latent_offsets falls"));
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(chain(&read_all(&dir).unwrap_err()).contains("no sound safetensors header"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the bytes of a split are, reading answers or refuses: it neither panics nor hangs.
    #[test]
    fn any_change_of_a_split_is_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (_folder, dir) = small_cache();
        let path = dir.join("model.layers.3/0_4.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let sound = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        prop_assert_eq!(read_all(&dir).is_ok(), bytes == sound);
    }
}

#[test]
fn a_dropped_or_failed_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let mut writer =
        CacheWriter::create(&dir, description(10), WriterOptions { memory_budget: 0, ..TWO }).unwrap();
    for sample in &small().samples {
        let (tokens, codes) = sample.codes(10);
        writer
            .push(&sample.record(), &[SampleCodes { hook: &hook(), tokens: &tokens, codes: &codes }])
            .unwrap();
    }
    assert!(!dir.exists());
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    // Something appears at the target between start and end.
    let writer = CacheWriter::create(&dir, description(10), TWO).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("mine"), "mine").unwrap();
    assert!(matches!(writer.finish(), Err(CacheError::Io { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(files(&dir).len(), 1);
    assert!(matches!(CacheWriter::create(&dir, description(10), TWO), Err(CacheError::Exists { .. })));
}

#[test]
fn an_empty_folder_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    std::fs::create_dir(&dir).unwrap();
    small().write(&dir, description(10), TWO).unwrap();
    read_all(&dir).unwrap();
}

#[test]
fn samples_that_do_not_fit_are_refused_and_the_writer_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let options = WriterOptions { dtype: ActivationDtype::F16, ..TWO };
    let mut writer = CacheWriter::create(&dir, description(10), options).unwrap();
    let name = hook();
    let codes = |width: usize, value: f32| {
        let mut codes = SparseCodes::new(width);
        codes.push_row([(FeatureId(1), value)]).unwrap();
        codes
    };
    let record =
        |sample: u32| SampleRecord { sample: SampleId(sample), n_tokens: 3, ..SampleRecord::default() };
    let image = SampleRecord { width: 9, height: 9, ..record(4) };
    let good = codes(10, 1.0);
    let narrow = codes(9, 1.0);
    let large = codes(10, 70_000.0);
    let mut push = |record: &SampleRecord, tokens: &[u32], codes: &SparseCodes| {
        writer.push(record, &[SampleCodes { hook: &name, tokens, codes }]).map_err(|error| error.to_string())
    };
    push(&record(3), &[0], &good).unwrap();
    for (refused, wants) in [
        (push(&record(3), &[0], &good), "sample 3 comes after sample 3"),
        (push(&record(1000), &[0], &good), "one of the data set's 1000"),
        (push(&record(4), &[3], &good), "strictly ascending below 3"),
        (push(&record(4), &[0, 1], &good), "the number of code rows of model.layers.3 is 1, expected 2"),
        (push(&record(4), &[0], &narrow), "the width of its codes of model.layers.3 is 9, expected 10"),
        (push(&record(4), &[0], &large), "activation 70000 is beyond the range of f16; use bf16 or f32"),
        (push(&image, &[0], &good), "at least 1 + 2 x 2 of the base tile"),
    ] {
        let error = refused.unwrap_err();
        assert!(error.contains(wants), "{error}\nlacks {wants}");
    }
    assert!(writer.push(&record(4), &[]).unwrap_err().to_string().contains("list of hook points"));
    writer.push(&record(4), &[SampleCodes { hook: &name, tokens: &[2], codes: &codes(10, 1e-9) }]).unwrap();
    let counts = writer.finish().unwrap().counts;
    assert_eq!((counts.samples, counts.tokens, counts.activations), (2, 6, 1), "1e-9 is zero in f16");
    read_all(&dir).unwrap();
}

#[test]
fn descriptions_that_make_no_cache_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let refusal = |about, options| CacheWriter::create(&dir, about, options).err().unwrap().to_string();
    assert!(
        refusal(description(10), WriterOptions { n_splits: 11, ..TWO })
            .contains("n_splits is 11, expected 1 to")
    );
    assert!(refusal(description(0), TWO).contains("the width of model.layers.3 is 0"));
    let mut elsewhere = description(10);
    elsewhere.filters = Some(serde_json::from_str(r#"{"model.layers.9": [1]}"#).unwrap());
    assert!(
        refusal(elsewhere, TWO).contains("does not hold hook point model.layers.9; it holds model.layers.3")
    );
    let mut beyond = description(10);
    beyond.filters = Some(serde_json::from_str(r#"{"model.layers.3": [10]}"#).unwrap());
    assert!(refusal(beyond, TWO).contains("the filters do not fit"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
