//! What is written is read, whatever the budget, the dtype and the number of splits.

mod common;

use act_cache::{ActivationDtype, Cache, Duplicates, Ranking, Selection, WriterOptions};
use common::{dense, description, dtype, files, hook, rounded, small};
use proptest::prelude::*;
use sae_types::{FeatureId, Filters, SampleId};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_dense_model(dense in dense(), dtype in dtype(), splits in 1usize..12, budget in 0usize..2000) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cache");
        let options = WriterOptions { n_splits: splits.min(dense.width), dtype, memory_budget: budget };
        dense.write(&dir, description(dense.width), options).unwrap();

        let cache = Cache::open(&dir).unwrap();
        cache.verify().unwrap();
        prop_assert_eq!(cache.samples().len(), dense.samples.len());
        let layer = cache.hook(&hook()).unwrap();
        let statistics = layer.statistics();
        let n_tokens: usize = dense.samples.iter().map(|sample| sample.values.len()).sum();
        prop_assert_eq!(layer.n_tokens(), n_tokens as u64);
        prop_assert_eq!(statistics.len(), dense.width);
        for (latent, facts) in statistics.iter().enumerate() {
            let mut want = dense.feature(latent);
            for (_, _, value) in &mut want {
                *value = rounded(dtype, *value);
            }
            let slice = layer.feature(FeatureId(latent as u32)).unwrap();
            let got: Vec<_> = slice.iter().map(|a| (a.sample.0, a.token.0, a.value)).collect();
            prop_assert_eq!(&got, &want);

            let by_sample: Vec<_> = slice.by_sample().collect();
            prop_assert_eq!(by_sample.iter().map(|(_, part)| part.len()).sum::<usize>(), want.len());
            for (sample, part) in by_sample {
                prop_assert!(part.samples().iter().all(|&s| s == sample.0));
                prop_assert_eq!(part.iter().collect::<Vec<_>>(), slice.in_sample(sample).iter().collect::<Vec<_>>());
            }

            prop_assert_eq!(facts.feature.index(), latent);
            prop_assert_eq!(facts.n_activations, want.len() as u64);
            let mut samples: Vec<u32> = want.iter().map(|entry| entry.0).collect();
            samples.dedup();
            prop_assert_eq!(facts.n_samples, samples.len() as u64);
            prop_assert_eq!(facts.max, want.iter().map(|entry| entry.2).fold(0.0, f32::max));
            let sum: f64 = want.iter().map(|entry| f64::from(entry.2)).sum();
            prop_assert_eq!(facts.mean, if want.is_empty() { 0.0 } else { sum / want.len() as f64 });
        }
        let active: Vec<_> = layer.features().map(|slice| slice.feature().index()).collect();
        let want: Vec<_> = (0..dense.width).filter(|&latent| !dense.feature(latent).is_empty()).collect();
        prop_assert_eq!(active, want);
    }

    #[test]
    fn spilling_changes_no_byte(dense in dense(), splits in 1usize..12, budget in 0usize..2000) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, memory_budget| {
            let dir = folder.path().join(name);
            let options = WriterOptions { n_splits: splits.min(dense.width), memory_budget, ..WriterOptions::default() };
            dense.write(&dir, description(dense.width), options).unwrap();
            files(&dir)
        };
        prop_assert_eq!(write("spilled", budget), write("held", 1 << 30));
    }
}

#[test]
fn splits_cover_every_latent_and_bear_msae_names() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let options = WriterOptions { n_splits: 4, ..WriterOptions::default() };
    let manifest = small().write(&dir, description(10), options).unwrap();
    let names: Vec<_> = manifest.hooks[&hook()].splits.iter().map(|split| split.file.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.layers.3/0_1.safetensors",
            "model.layers.3/2_4.safetensors",
            "model.layers.3/5_6.safetensors",
            "model.layers.3/7_9.safetensors"
        ]
    );
    assert_eq!(files(&dir).len(), 4 + 2, "splits, manifest and samples, nothing else");
}

#[test]
fn splits_open_in_the_safetensors_crate() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let options = WriterOptions { n_splits: 1, dtype: ActivationDtype::Bf16, ..WriterOptions::default() };
    let manifest = small().write(&dir, description(10), options).unwrap();
    let split = &manifest.hooks[&hook()].splits[0];
    let bytes = std::fs::read(dir.join(&split.file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let n = split.n as usize;
    for (name, dtype, len) in [
        ("latent_offsets", safetensors::Dtype::U64, 11),
        ("sample", safetensors::Dtype::U32, n),
        ("token", safetensors::Dtype::U16, n),
        ("activation", safetensors::Dtype::BF16, n),
    ] {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, [len].as_slice()), "{name}");
    }
}

#[test]
fn positions_beyond_sixteen_bits_widen_the_token_column() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let mut writer = act_cache::CacheWriter::create(
        &dir,
        description(2),
        WriterOptions { n_splits: 2, dtype: ActivationDtype::F16, ..WriterOptions::default() },
    )
    .unwrap();
    let mut codes = sae_types::SparseCodes::new(2);
    for _ in 0..3 {
        codes.push_row([(FeatureId(1), 1.0)]).unwrap();
    }
    let record = act_cache::SampleRecord { sample: SampleId(9), n_tokens: 70_001, ..Default::default() };
    let tokens = [0, 65_535, 70_000];
    writer
        .push(&record, &[act_cache::SampleCodes { hook: &hook(), tokens: &tokens, codes: &codes }])
        .unwrap();
    writer.finish().unwrap();
    let cache = Cache::open(&dir).unwrap();
    cache.verify().unwrap();
    let layer = cache.hook(&hook()).unwrap();
    let slice = layer.feature(FeatureId(1)).unwrap();
    assert_eq!(slice.iter().map(|a| a.token.0).collect::<Vec<_>>(), tokens);
}

#[test]
fn filters_drop_other_features_and_the_reader_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let mut about = description(10);
    let filters: Filters = serde_json::from_str(r#"{"model.layers.3": [2, 7]}"#).unwrap();
    about.filters = Some(filters);
    let dense = small();
    dense.write(&dir, about, WriterOptions::default()).unwrap();
    let cache = Cache::open(&dir).unwrap();
    cache.verify().unwrap();
    let layer = cache.hook(&hook()).unwrap();
    assert_eq!(layer.feature(FeatureId(7)).unwrap().len(), dense.feature(7).len());
    assert_eq!(
        layer.feature(FeatureId(3)).unwrap_err().to_string(),
        "feature 3 of model.layers.3 is not in this cache: make one whose filters include it"
    );
    assert_eq!(layer.statistics().len(), 2);
}

#[test]
fn a_sample_may_have_its_base_tile_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let options = WriterOptions { n_splits: 1, ..WriterOptions::default() };
    let mut writer = act_cache::CacheWriter::create(&dir, description(1), options).unwrap();
    let mut codes = sae_types::SparseCodes::new(1);
    codes.push_row([(FeatureId(0), 2.0)]).unwrap();
    for (sample, base_start) in [(0, None), (1, Some(6))] {
        let record = act_cache::SampleRecord {
            sample: SampleId(sample),
            n_tokens: 10,
            width: 9,
            height: 9,
            base_start,
            ..Default::default()
        };
        writer
            .push(&record, &[act_cache::SampleCodes { hook: &hook(), tokens: &[9], codes: &codes }])
            .unwrap();
    }
    writer.finish().unwrap();
    let cache = Cache::open(&dir).unwrap();
    let layer = cache.hook(&hook()).unwrap();
    let slice = layer.feature(FeatureId(0)).unwrap();
    let ranked = slice.pick(Ranking::BaseMean, Selection::Top(9), Duplicates::Keep).unwrap();
    assert_eq!(ranked.iter().map(|ranked| (ranked.sample.0, ranked.score)).collect::<Vec<_>>(), [(1, 0.5)]);
}
