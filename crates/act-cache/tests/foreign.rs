//! Caches of msae and delphi: there and back, from files made by hand, and hostile ones.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod common;

use std::path::{Path, PathBuf};

use act_cache::foreign::{
    Comparison, DelphiOptions, ForeignCache, ImportOptions, LastLatents, Layout, MissingTokens, MsaeOptions,
    compare, export_delphi, export_msae, import,
};
use act_cache::{
    ActivationDtype, BaseTile, Cache, CacheError, CacheJob, Duplicates, PartWriter, Ranking, SampleCodes,
    Selection, Severity, Shard, WriterOptions,
};
use common::{Dense, dense_of_at_least, description, files, hook, small};
use half::f16;
use proptest::prelude::*;
use sae_types::{FeatureId, SampleId};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

type Entries = Vec<(u32, u32, f32)>;

fn entries(cache: &Cache, latent: usize) -> Entries {
    let layer = cache.hook(&hook()).unwrap();
    layer
        .feature(FeatureId(latent as u32))
        .unwrap()
        .iter()
        .map(|a| (a.sample.0, a.token.0, a.value))
        .collect()
}

fn all_entries(cache: &Cache, width: usize) -> Vec<Entries> {
    (0..width).map(|latent| entries(cache, latent)).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|source| format!(": {}", chain(source))).unwrap_or_default();
    format!("{error}{cause}")
}

/// What is imported from where no latent was lost, its first token at position 0.
fn kept(memory_budget: usize) -> ImportOptions {
    ImportOptions {
        first: Some(0),
        last_latents: LastLatents::Kept,
        memory_budget,
        ..ImportOptions::default()
    }
}

/// Ids that tell sample and position, none of them 0.
fn ids(sample: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|position| 1 + sample * 100 + position).collect()
}

/// A cache with the token ids of its samples.
fn write_with_tokens(dense: &Dense, dir: &Path, n_splits: usize, dtype: ActivationDtype) {
    let job = CacheJob { n_splits, dtype, keep_tokens: true, ..CacheJob::new(description(dense.width)) };
    let parts = dir.with_extension("parts");
    let mut writer = PartWriter::open(&parts, &job, Shard::WHOLE, 1 << 20).unwrap();
    for sample in &dense.samples {
        let (tokens, codes) = sample.codes(dense.width);
        let codes = [SampleCodes { hook: &hook(), tokens: &tokens, codes: &codes }];
        writer.push(&sample.record(), Some(&ids(sample.sample, tokens.len())), &codes).unwrap();
    }
    writer.finish(SampleId(1000), &serde_json::Value::Null).unwrap();
    std::fs::create_dir(dir).unwrap();
    act_cache::merge(&parts, dir).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn to_msae_and_back(dense in dense_of_at_least(1), splits in 1usize..14, other in 1usize..14, budget in 1600usize..12_000) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let n_splits = Some(other.min(dense.width));
        dense.write(&at("native"), description(dense.width), WriterOptions { n_splits: splits.min(dense.width), ..WriterOptions::default() }).unwrap();
        let native = Cache::open(&at("native")).unwrap();
        let options = MsaeOptions { n_splits, memory_budget: budget, ..MsaeOptions::default() };
        let exported = export_msae(&native, &at("msae"), &options).unwrap();
        prop_assert_eq!(exported.activations, native.manifest().counts.activations);

        let foreign = ForeignCache::open(&at("msae"), Some(Layout::Msae)).unwrap();
        let comparison = compare(&foreign, &native, 0).unwrap();
        let expected = Comparison { activations: exported.activations, ..Comparison::default() };
        prop_assert_eq!(comparison, expected);
        let imported = import(&foreign, &at("back"), &kept(budget)).unwrap();
        prop_assert_eq!(imported.zeros, 0);
        let back = Cache::open(&at("back")).unwrap();
        back.verify().unwrap();
        compare(&foreign, &back, 0).unwrap();
        prop_assert_eq!(all_entries(&back, dense.width), all_entries(&native, dense.width));
        // Whatever the budget, the bytes are the same.
        import(&foreign, &at("again"), &kept(1 << 30)).unwrap();
        prop_assert_eq!(files(&at("back")), files(&at("again")));
        let wide = MsaeOptions { n_splits, ..MsaeOptions::default() };
        export_msae(&native, &at("msae again"), &wide).unwrap();
        prop_assert_eq!(files(&at("msae")), files(&at("msae again")));
    }

    #[test]
    fn to_delphi_and_back(dense in dense_of_at_least(1), splits in 1usize..14, other in 1usize..14, budget in 1600usize..12_000, ctx_len in 1usize..9) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_with_tokens(&dense, &at("native"), splits.min(dense.width), ActivationDtype::F32);
        let native = Cache::open(&at("native")).unwrap();
        let n_splits = Some(other.min(dense.width));
        let options = DelphiOptions { n_splits, ctx_len, memory_budget: budget, ..DelphiOptions::default() };
        let exported = export_delphi(&native, &at("delphi"), &options).unwrap();
        let last = dense.samples.last().unwrap().sample as usize;
        prop_assert_eq!((exported.rows, exported.empty_rows), (last + 1, last + 1 - dense.samples.len()));
        prop_assert_eq!(exported.row_length % ctx_len, 0);

        let foreign = ForeignCache::open(&at("delphi"), None).unwrap();
        prop_assert_eq!(foreign.layout(), Layout::Delphi);
        let comparison = compare(&foreign, &native, 0).unwrap();
        prop_assert_eq!(comparison.activations, exported.activations);
        let n_tokens: usize = dense.samples.iter().map(|sample| sample.values.len()).sum();
        prop_assert_eq!(comparison.tokens, n_tokens as u64);
        import(&foreign, &at("back"), &ImportOptions { pad: Some(0), ..kept(budget) }).unwrap();
        let back = Cache::open(&at("back")).unwrap();
        back.verify().unwrap();
        compare(&foreign, &back, 0).unwrap();
        for latent in 0..dense.width {
            let rounded = |(sample, token, value)| (sample, token, f16::from_f32(value).to_f32());
            let expected: Entries = entries(&native, latent).into_iter().map(rounded).collect();
            prop_assert_eq!(entries(&back, latent), expected);
        }
        let tokens = back.tokens().unwrap().unwrap();
        let mut lines = dense.samples.iter().peekable();
        for (line, record) in back.samples().iter().enumerate() {
            let sample = lines.next_if(|sample| sample.sample == record.sample.0);
            let expected = sample.map(|sample| ids(sample.sample, sample.values.len())).unwrap_or_default();
            prop_assert_eq!(tokens.of_line(line), expected);
        }
    }
}

/// Writes a split by the safetensors library.
fn put(dir: &Path, name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

fn i64s(places: &[[i64; 3]]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    let bytes = places.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    ("locations", Dtype::I64, vec![places.len(), 3], bytes)
}

fn u16s(places: &[[u16; 3]]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    let bytes = places.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    ("locations", Dtype::U16, vec![places.len(), 3], bytes)
}

fn f32s(values: &[f32]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    ("activations", Dtype::F32, vec![values.len()], bytes)
}

fn f16s(values: &[f32]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
    ("activations", Dtype::F16, vec![values.len()], bytes)
}

fn rows<const N: usize>(rows: &[[i64; N]]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    let bytes = rows.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    ("tokens", Dtype::I64, vec![rows.len(), N], bytes)
}

/// 8 latents in 2 splits, without their last ones, BOS cut off: 3 images.
fn msae_by_hand(dir: &Path) {
    let first = [[0, 0, 2], [0, 3, 0], [2, 1, 2]];
    put(dir, "model.layers.3/0_3.safetensors", &[i64s(&first), f32s(&[1.5, 2.5, 3.5])]);
    let second = [[0, 0, 4], [1, 4, 6], [2, 0, 4]];
    put(dir, "model.layers.3/4_7.safetensors", &[i64s(&second), f32s(&[0.25, 0.0, 0.75])]);
}

#[test]
fn a_cache_of_msae_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("msae");
    msae_by_hand(&dir);
    std::fs::write(dir.join("model.layers.3/Rank10_0_3.safetensors"), "left over").unwrap();
    let foreign = ForeignCache::open(&dir, None).unwrap();
    assert_eq!((foreign.layout(), foreign.width(&hook()), foreign.len()), (Layout::Msae, 8, 6));
    assert_eq!(
        ForeignCache::open(&dir.join("model.layers.3"), None).unwrap().len(),
        6,
        "the folder of one hook point"
    );
    let found: Vec<String> = foreign.findings().iter().map(ToString::to_string).collect();
    for wants in [
        "note: model.layers.3: latents are counted from 0; as msae does",
        "msae left parts of single ranks behind: Rank10_0_3.safetensors",
        "note: model.layers.3/4_7.safetensors: 1 activations are zero",
        "the last latent of none of the 2 splits is ever active",
    ] {
        assert!(found.iter().any(|finding| finding.contains(wants)), "{found:#?}\nlacks {wants}");
    }
    assert_eq!(found.len(), 4, "{found:#?}");

    let base = BaseTile { start: 1, rows: 2, cols: 2 };
    let options =
        ImportOptions { base: Some(base), k: 2, model: "a model".into(), ..ImportOptions::default() };
    let native = folder.path().join("native");
    let imported = import(&foreign, &native, &options).unwrap();
    assert_eq!((imported.zeros, imported.manifest.counts.activations), (1, 5));
    let cache = Cache::open(&native).unwrap();
    cache.verify().unwrap();
    assert_eq!(entries(&cache, 0), [(0, 4, 2.5)]);
    assert_eq!(entries(&cache, 2), [(0, 1, 1.5), (2, 2, 3.5)]);
    assert_eq!(entries(&cache, 4), [(0, 1, 0.25), (2, 1, 0.75)]);
    // The zero of sample 1 at position 5 shows how long that sample is.
    assert_eq!(cache.samples().iter().map(|sample| sample.n_tokens).collect::<Vec<_>>(), [5, 6, 5]);
    let entry = &cache.manifest().hooks[&hook()];
    assert_eq!(entry.lost, [FeatureId(3), FeatureId(7)]);
    assert_eq!((entry.k, entry.tokens, entry.image_tokens), (2, 13, 13));
    let layer = cache.hook(&hook()).unwrap();
    assert!(matches!(layer.feature(FeatureId(7)), Err(CacheError::NotCached { .. })));
    let means = layer
        .feature(FeatureId(2))
        .unwrap()
        .pick(Ranking::BaseMean, Selection::Top(2), Duplicates::Keep)
        .unwrap();
    let means: Vec<_> = means.iter().map(|ranked| (ranked.sample.0, ranked.score)).collect();
    assert_eq!(means, [(2, 3.5 / 4.0), (0, 1.5 / 4.0)], "base tiles work without the images' sizes");
    assert_eq!(compare(&foreign, &cache, 1).unwrap().activations, 5);
    assert!(compare(&foreign, &cache, 0).is_err(), "another position for token 0");

    // A last latent that is active shows that none was lost.
    put(&dir, "model.layers.3/4_7.safetensors", &[i64s(&[[0, 0, 7]]), f32s(&[1.0])]);
    let again = ForeignCache::open(&dir, None).unwrap();
    let imported = import(&again, &folder.path().join("again"), &options).unwrap();
    assert_eq!(imported.manifest.hooks[&hook()].lost, []);
}

#[test]
fn a_cache_of_delphi_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run/latents");
    let tokens = || rows(&[[5, 6, 7, 8], [9, 1, 1, 1]]);
    let first = [[0, 0, 2], [0, 3, 4], [1, 0, 0]];
    put(&dir, "layers.1.mlp/0_4.safetensors", &[u16s(&first), f16s(&[1.5, 2.5, 3.5]), tokens()]);
    put(&dir, "layers.1.mlp/5_9.safetensors", &[u16s(&[[0, 1, 4]]), f16s(&[0.1]), tokens()]);
    let config = r#"{"dataset_repo": "a/set", "dataset_split": "train[:1%]", "dataset_name": "", "cache_ctx_len": 4, "model_name": "a/model", "later": 1}"#;
    std::fs::write(dir.join("layers.1.mlp/config.json"), config).unwrap();
    let foreign = ForeignCache::open(&folder.path().join("run"), None).unwrap();
    assert_eq!(foreign.layout(), Layout::Delphi);
    assert!(
        foreign.findings().iter().all(|finding| finding.severity == Severity::Note),
        "{:#?}",
        foreign.findings()
    );
    let native = folder.path().join("native");
    import(&foreign, &native, &ImportOptions { pad: Some(1), ..ImportOptions::default() }).unwrap();
    let cache = Cache::open(&native).unwrap();
    cache.verify().unwrap();
    let manifest = cache.manifest();
    assert_eq!((manifest.model.as_str(), manifest.dataset.name.as_str()), ("a/model", "a/set"));
    assert_eq!(manifest.dataset.split.as_deref(), Some("train[:1%]"));
    assert_eq!((manifest.activation_dtype, manifest.dataset.n_samples), (ActivationDtype::F16, 2));
    let layer = cache.hook(cache.hooks().next().unwrap()).unwrap();
    let feature = |latent| -> Entries {
        layer.feature(FeatureId(latent)).unwrap().iter().map(|a| (a.sample.0, a.token.0, a.value)).collect()
    };
    assert_eq!(feature(4), [(0, 3, 2.5)]);
    assert_eq!(feature(9), [(0, 1, f16::from_f32(0.1).to_f32())]);
    let tokens = cache.tokens().unwrap().unwrap();
    assert_eq!((tokens.of_line(0), tokens.of_line(1)), ([5, 6, 7, 8].as_slice(), [9].as_slice()));
    assert_eq!(
        compare(&foreign, &cache, 0).unwrap(),
        Comparison { activations: 4, tokens: 5, ..Comparison::default() }
    );
}

#[test]
fn exported_files_have_the_names_dtypes_and_config_of_their_programs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let dense = small();
    write_with_tokens(&dense, &at("native"), 5, ActivationDtype::Bf16);
    let native = Cache::open(&at("native")).unwrap();
    export_msae(&native, &at("msae"), &MsaeOptions { n_splits: Some(4), ..MsaeOptions::default() }).unwrap();
    let msae = files(&at("msae"));
    let names: Vec<_> = msae.keys().map(|path| path.to_str().unwrap()).collect();
    let expected = ["0_1", "2_4", "5_6", "7_9"].map(|split| format!("model.layers.3/{split}.safetensors"));
    assert_eq!(names, expected);
    let split = safetensors::SafeTensors::deserialize(&msae[Path::new(&expected[1])]).unwrap();
    let mut kinds: Vec<_> =
        split.iter().map(|(name, tensor)| (name, tensor.dtype(), tensor.shape().len())).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [("activations", Dtype::BF16, 1), ("locations", Dtype::I64, 2)]);
    let places: &[i64] = &split
        .tensor("locations")
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|n| i64::from_le_bytes(*n))
        .collect::<Vec<_>>();
    let places = places.as_chunks::<3>().0;
    assert!(places.is_sorted() && places.iter().all(|place| (2..=4).contains(&place[2])), "{places:?}");

    let options = DelphiOptions { n_splits: Some(2), pad: 7, ..DelphiOptions::default() };
    export_delphi(&native, &at("delphi"), &options).unwrap();
    let delphi = files(&at("delphi"));
    let split =
        safetensors::SafeTensors::deserialize(&delphi[Path::new("model.layers.3/5_9.safetensors")]).unwrap();
    let mut kinds: Vec<_> = split.iter().map(|(name, tensor)| (name, tensor.dtype())).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [("activations", Dtype::F16), ("locations", Dtype::U16), ("tokens", Dtype::I64)]);
    assert_eq!(split.tensor("tokens").unwrap().shape(), [6, 32]);
    let config = std::str::from_utf8(&delphi[Path::new("model.layers.3/config.json")]).unwrap();
    assert_eq!(
        config,
        "{\n    \"dataset_repo\": \"a set\",\n    \"dataset_split\": \"\",\n    \"dataset_name\": \"\",\n    \
         \"dataset_column\": \"text\",\n    \"batch_size\": 32,\n    \"cache_ctx_len\": 32,\n    \"n_tokens\": 192,\n    \
         \"n_splits\": 2,\n    \"model_name\": \"a model\"\n}"
    );
}

#[test]
fn delphi_needs_token_ids_or_padding() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    small().write(&at("native"), description(10), WriterOptions::default()).unwrap();
    let native = Cache::open(&at("native")).unwrap();
    let error = export_delphi(&native, &at("delphi"), &DelphiOptions::default()).unwrap_err();
    assert!(matches!(error, CacheError::NoTokens), "{error}");
    let options =
        DelphiOptions { missing_tokens: MissingTokens::Pad, pad: 9, ctx_len: 4, ..DelphiOptions::default() };
    export_delphi(&native, &at("delphi"), &options).unwrap();
    let foreign = ForeignCache::open(&at("delphi"), None).unwrap();
    let back = folder.path().join("back");
    import(&foreign, &back, &kept(1 << 20)).unwrap();
    let tokens = Cache::open(&back).unwrap().tokens().unwrap().unwrap();
    assert_eq!(tokens.of_line(5), [9; 8]);
}

#[test]
fn samples_latents_and_positions_beyond_sixteen_bits_widen_delphis_locations() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut about = description(2);
    about.dataset.n_samples = 0;
    about.token_layout.base = None;
    let mut writer = act_cache::CacheWriter::create(
        &at("native"),
        about,
        WriterOptions { n_splits: 2, ..WriterOptions::default() },
    )
    .unwrap();
    for (sample, latent) in [(5, 0), (70_000, 1)] {
        let mut codes = sae_types::SparseCodes::new(2);
        codes.push_row([(FeatureId(latent), 1.0)]).unwrap();
        let record = act_cache::SampleRecord { sample: SampleId(sample), n_tokens: 1, ..Default::default() };
        writer.push(&record, &[SampleCodes { hook: &hook(), tokens: &[0], codes: &codes }]).unwrap();
    }
    writer.finish().unwrap();
    let native = Cache::open(&at("native")).unwrap();
    let options =
        DelphiOptions { missing_tokens: MissingTokens::Pad, ctx_len: 1, ..DelphiOptions::default() };
    let exported = export_delphi(&native, &at("delphi"), &options).unwrap();
    assert_eq!((exported.rows, exported.empty_rows), (70_001, 69_999));
    for (file, dtype) in [("0_0", Dtype::U16), ("1_1", Dtype::U32)] {
        let bytes = std::fs::read(at(&format!("delphi/model.layers.3/{file}.safetensors"))).unwrap();
        let split = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(split.tensor("locations").unwrap().dtype(), dtype);
    }
    let foreign = ForeignCache::open(&at("delphi"), None).unwrap();
    assert_eq!(compare(&foreign, &native, 0).unwrap().activations, 2);
}

#[test]
fn whose_a_cache_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let open = |name: &str| {
        ForeignCache::open(&at(name), None).map(|cache| cache.layout()).map_err(|error| error.to_string())
    };
    // One split: nothing tells but the rest.
    put(&at("one"), "a/0_7.safetensors", &[i64s(&[[0, 0, 2]]), f32s(&[1.0])]);
    assert_eq!(open("one"), Ok(Layout::Msae));
    std::fs::write(at("one/a/config.json"), "{}").unwrap();
    let refusal = open("one").unwrap_err();
    assert!(refusal.contains("say which"), "{refusal}");
    assert_eq!(ForeignCache::open(&at("one"), Some(Layout::Delphi)).unwrap().layout(), Layout::Delphi);
    put(&at("narrow"), "a/0_7.safetensors", &[u16s(&[[0, 0, 2]]), f32s(&[1.0])]);
    assert_eq!(open("narrow"), Ok(Layout::Delphi));
    // Latents outweigh dtypes: 64-bit locations counted from the split's first are an old delphi's.
    put(&at("old"), "a/0_3.safetensors", &[i64s(&[[0, 0, 2]]), f32s(&[1.0])]);
    put(&at("old"), "a/4_7.safetensors", &[i64s(&[[0, 0, 2]]), f32s(&[1.0])]);
    assert_eq!(open("old"), Ok(Layout::Delphi));
    let forced = ForeignCache::open(&at("old"), Some(Layout::Msae)).unwrap();
    assert!(forced.findings().iter().any(|finding| finding.problem.contains("its latents tell otherwise")));
    let error = chain(&import(&forced, &at("forced"), &ImportOptions::default()).unwrap_err());
    assert!(
        error.contains("4_7.safetensors: entry 0: latent 2 is not one of the split's, 4 to 7"),
        "{error}"
    );
    assert!(!at("forced").exists());
    std::fs::create_dir(at("empty")).unwrap();
    let refusal = open("empty").unwrap_err();
    assert!(refusal.contains("holds no cache of msae or delphi"), "{refusal}");
}

#[test]
fn joined_ranks_are_sorted_and_gaps_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let places = [[1, 0, 2], [1, 1, 1], [0, 0, 2], [0, 1, 1]];
    put(&at("msae"), "model.layers.3/0_3.safetensors", &[i64s(&places), f32s(&[1.0, 2.0, 3.0, 4.0])]);
    put(&at("msae"), "model.layers.3/6_7.safetensors", &[i64s(&[[0, 1, 6]]), f32s(&[5.0])]);
    let foreign = ForeignCache::open(&at("msae"), None).unwrap();
    let findings: Vec<String> = foreign.findings().iter().map(ToString::to_string).collect();
    assert!(
        findings.iter().any(|f| f.contains("error: model.layers.3: no split holds latents 4 to 5")),
        "{findings:#?}"
    );
    assert!(findings.iter().any(|f| f.contains("entries do not ascend")), "{findings:#?}");
    let options = ImportOptions { width: Some(10), ..ImportOptions::default() };
    let imported = import(&foreign, &at("native"), &options).unwrap();
    let lost: Vec<u32> = imported.manifest.hooks[&hook()].lost.iter().map(|feature| feature.0).collect();
    assert_eq!(lost, [3, 4, 5, 7, 8, 9]);
    let cache = Cache::open(&at("native")).unwrap();
    cache.verify().unwrap();
    assert_eq!(entries(&cache, 2), [(0, 1, 3.0), (1, 1, 1.0)]);
    assert_eq!(entries(&cache, 1), [(0, 2, 4.0), (1, 2, 2.0)]);
    assert_eq!(compare(&foreign, &cache, 1).unwrap().activations, 5);
}

#[test]
fn hostile_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let native = folder.path().join("native");
    let mut n = 0;
    let mut refusal = |name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]| {
        n += 1;
        let dir = folder.path().join(n.to_string());
        msae_by_hand(&dir);
        put(&dir, &format!("model.layers.3/{name}.safetensors"), tensors);
        let options = ImportOptions { memory_budget: 1 << 16, ..ImportOptions::default() };
        let result = ForeignCache::open(&dir, Some(Layout::Msae)).and_then(|foreign| {
            let _ = foreign.findings();
            import(&foreign, &native, &options)
        });
        assert!(!native.exists());
        chain(&result.unwrap_err())
    };
    let one = || i64s(&[[0, 0, 4]]);
    for (name, tensors, wants) in [
        ("4_7", vec![one()], "4_7.safetensors: tensor activations is missing"),
        ("4_7", vec![f32s(&[1.0])], "tensor locations is missing"),
        ("4_7", vec![one(), f32s(&[1.0, 2.0])], "tensor activations is F32 [2], expected as many as"),
        (
            "4_7",
            vec![("locations", Dtype::I64, vec![3, 1], vec![0; 24]), f32s(&[1.0])],
            "tensor locations is I64 [3, 1]",
        ),
        (
            "4_7",
            vec![("locations", Dtype::F32, vec![1, 3], vec![0; 12]), f32s(&[1.0])],
            "tensor locations is F32",
        ),
        ("4_7", vec![one(), ("activations", Dtype::F64, vec![1], vec![0; 8])], "tensor activations is F64"),
        (
            "4_7",
            vec![one(), f32s(&[1.0]), ("tokens", Dtype::I64, vec![1], vec![0; 8])],
            "tensor tokens is I64 [1]",
        ),
        (
            "4_7",
            vec![i64s(&[[0, 0, 8]]), f32s(&[1.0])],
            "entry 0: latent 8 is not one of the split's, 4 to 7",
        ),
        ("4_7", vec![i64s(&[[0, 0, 5], [0, 0, -4]]), f32s(&[1.0, 1.0])], "entry 1: latent -4"),
        ("4_7", vec![i64s(&[[-1, 0, 5]]), f32s(&[1.0])], "sample -1 is beyond"),
        ("4_7", vec![i64s(&[[0, i64::MAX, 5]]), f32s(&[1.0])], "token 9223372036854775807 is beyond"),
        ("4_7", vec![i64s(&[[4_000_000_000, 0, 5]]), f32s(&[1.0])], "samples of"),
        ("4_7", vec![one(), f32s(&[f32::NAN])], "activation NaN of latent 4 is not finite"),
        (
            "4_7",
            vec![i64s(&[[1, 0, 4], [0, 0, 4], [1, 0, 4]]), f32s(&[1.0, 2.0, 3.0])],
            "entry 2: latent 4, sample 1, position 1 was there before",
        ),
        ("2_5", vec![i64s(&[[0, 0, 4]]), f32s(&[1.0])], "2_5.safetensors and"),
        ("8_4294967290", vec![i64s(&[]), f32s(&[])], "latents of"),
    ] {
        let error = refusal(name, &tensors);
        assert!(error.contains(wants), "{error}\nlacks {wants}");
    }
    let dir = folder.path().join("cut");
    msae_by_hand(&dir);
    let path = dir.join("model.layers.3/4_7.safetensors");
    let sound = std::fs::read(&path).unwrap();
    for cut in [0, 5, 8, 60, sound.len() - 1] {
        std::fs::write(&path, &sound[..cut]).unwrap();
        let error = chain(&ForeignCache::open(&dir, None).unwrap_err());
        assert!(error.contains("4_7.safetensors"), "{error}");
    }
    assert!(
        std::fs::read_dir(folder.path()).unwrap().all(|entry| !entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with('.'))
    );
}
