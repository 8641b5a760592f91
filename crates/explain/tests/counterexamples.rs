//! Counterexamples from a real cache on disk.

use act_cache::{
    BaseTile, Cache, CacheDescription, CacheWriter, HookDescription, SampleCodes, SampleRecord, WriterOptions,
};
use explain::{count_text_up_to, counterexamples, top_examples};
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};

#[test]
fn neighbours_take_turns_and_the_feature_is_on_nowhere_in_what_they_give() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let hook = HookPoint::layer(1);
    let mut description = CacheDescription { model: "m".into(), ..CacheDescription::default() };
    description.hooks.insert(hook.clone(), HookDescription { width: 4, k: 3, ..HookDescription::default() });
    // BOS, then a base tile of 2 x 2, then one more token.
    description.token_layout.base = Some(BaseTile { start: 1, rows: 2, cols: 2 });
    let mut writer =
        CacheWriter::create(&dir, description, WriterOptions { n_splits: 1, ..WriterOptions::default() })
            .unwrap();
    // Per sample: what features 0, 1 and 2 are at token 1, on the base tile, and feature 0 at token 5, behind it.
    let samples = [
        ([1.0, 1.0, 1.0], 0.0),
        ([0.0, 9.0, 9.0], 0.5), // the strongest of both neighbours, and feature 0 is on in the text
        ([0.0, 8.0, 0.0], 0.0),
        ([0.0, 7.0, 0.0], 0.0),
        ([0.0, 0.0, 2.0], 0.0),
    ];
    for (index, (base, behind)) in samples.into_iter().enumerate() {
        let mut codes = SparseCodes::new(4);
        let on = (0..3).zip(base).filter(|(_, value)| *value > 0.0);
        codes.push_row(on.map(|(feature, value)| (FeatureId(feature), value))).unwrap();
        codes.push_row((behind > 0.0).then_some((FeatureId(0), behind))).unwrap();
        let sample = SampleId(index as u32);
        let record = SampleRecord { sample, n_tokens: 6, width: 10, height: 10, ..SampleRecord::default() };
        writer.push(&record, &[SampleCodes { hook: &hook, tokens: &[1, 5], codes: &codes }]).unwrap();
    }
    writer.finish().unwrap();

    let cache = Cache::open(&dir).unwrap();
    let layer = cache.hook(&hook).unwrap();
    let feature = layer.feature(FeatureId(0)).unwrap();
    let like = top_examples(&feature, 1).unwrap();
    let found = |n| {
        let found = counterexamples(&layer, &feature, &like, n).unwrap();
        let mut found: Vec<_> = found.iter().map(|found| (found.neighbour.0, found.sample.0)).collect();
        found.sort_unstable();
        found
    };
    assert_eq!(found(2), [(1, 2), (2, 4)]);
    assert_eq!(found(9), [(1, 2), (1, 3), (2, 4)]);
    // Behind the base tile it is on in one sample.
    assert_eq!((count_text_up_to(&feature, 9), count_text_up_to(&feature, 0)), (1, 0));
}
