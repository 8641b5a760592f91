//! Examples picked from a real cache on disk.

use act_cache::{
    BaseTile, Cache, CacheDescription, CacheWriter, HookDescription, SampleCodes, SampleRecord, WriterOptions,
};
use explain::{Cut, top_examples};
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};

#[test]
fn examples_are_ranked_by_base_mean_and_lie_where_the_feature_is_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let hook = HookPoint::layer(1);
    let mut description = CacheDescription { model: "m".into(), ..CacheDescription::default() };
    description.hooks.insert(hook.clone(), HookDescription { width: 4, k: 2, ..HookDescription::default() });
    // BOS, then a base tile of 2 x 2, then one more token.
    description.token_layout.base = Some(BaseTile { start: 1, rows: 2, cols: 2 });
    let mut writer =
        CacheWriter::create(&dir, description, WriterOptions { n_splits: 1, ..WriterOptions::default() })
            .unwrap();
    // Per sample: image hash and the activations of feature 3 at tokens 1 to 5.
    let samples = [
        ("a", [0.0, 2.0, 0.0, 0.0, 0.0]),
        ("b", [0.0, 0.0, 0.0, 0.0, 9.0]), // only beyond the base tile
        ("c", [1.0, 0.0, 3.0, 0.0, 0.0]),
        ("c", [0.5, 0.0, 3.0, 0.0, 0.0]), // the same image again
    ];
    for (index, (hash, values)) in samples.into_iter().enumerate() {
        let mut codes = SparseCodes::new(4);
        for value in values {
            codes.push_row((value > 0.0).then_some((FeatureId(3), value))).unwrap();
        }
        let record = SampleRecord {
            sample: SampleId(index as u32),
            n_tokens: 6,
            width: 10,
            height: 10,
            image_sha256: Some(hash.to_owned()),
            ..SampleRecord::default()
        };
        let codes = SampleCodes { hook: &hook, tokens: &[1, 2, 3, 4, 5], codes: &codes };
        writer.push(&record, &[codes]).unwrap();
    }
    writer.finish().unwrap();

    let cache = Cache::open(&dir).unwrap();
    let layer = cache.hook(&hook).unwrap();
    let examples = top_examples(&layer.feature(FeatureId(3)).unwrap(), 5).unwrap();
    let picked: Vec<_> = examples.iter().map(|example| (example.sample.0, example.score)).collect();
    assert_eq!(picked, [(2, 1.0), (0, 0.5)]);
    assert_eq!(examples[0].heat.values(), [1.0, 0.0, 3.0, 0.0]);
    // Half of 3 cuts the fainter patch off: the lower left quarter remains.
    let mask = examples[0].heat.mask(10, 10, Cut::HalfMaximum);
    assert_eq!(mask.area(), 25);
    assert!(mask.pixels()[9 * 10] && !mask.pixels()[0]);
    assert!(top_examples(&layer.feature(FeatureId(0)).unwrap(), 5).unwrap().is_empty());
}
