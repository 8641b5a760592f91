//! Rankings, views, co-occurrence and statistics: against a dense model, and by hand.

#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use act_cache::{
    Cache, CacheDescription, CacheError, CacheWriter, Duplicates, FeatureStatistics, RankedSample, Ranking,
    SampleCodes, SampleRecord, Selection, Together, WriterOptions,
};
use common::{BASE, Dense, DenseSample, dense, description, dtype, hook, rounded, small};
use proptest::prelude::*;
use sae_types::{FeatureId, SampleId, SparseCodes, TokenIndex};

const ONE: WriterOptions =
    WriterOptions { n_splits: 1, dtype: act_cache::ActivationDtype::F32, memory_budget: 1 << 20 };

/// Score and sample, best first, of the samples of the dense model in which a latent is active where a ranking looks.
fn ranking(dense: &Dense, latent: usize, ranking: Ranking) -> Vec<(f64, u32)> {
    let mut scores: Vec<(f64, u32)> = Vec::new();
    for sample in &dense.samples {
        let values: Vec<f64> = sample.values.iter().map(|row| f64::from(row[latent])).collect();
        let values = match ranking {
            Ranking::Max => &values[..],
            _ if sample.record().has_image() => &values[BASE.start as usize..][..4],
            _ => &[],
        };
        let max = values.iter().copied().fold(0.0, f64::max);
        let mean = values.iter().sum::<f64>() / 4.0;
        if max > 0.0 {
            scores.push((if ranking == Ranking::BaseMean { mean } else { max }, sample.sample));
        }
    }
    scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scores
}

fn pairs(ranked: &[RankedSample]) -> Vec<(f64, u32)> {
    ranked.iter().map(|ranked| (ranked.score, ranked.sample.0)).collect()
}

/// The ranking without samples whose image was seen; see `DenseSample::record`.
fn distinct(ranking: &[(f64, u32)], dense: &Dense) -> Vec<(f64, u32)> {
    let mut seen = HashSet::new();
    let image =
        |sample: u32| dense.samples.iter().find(|s| s.sample == sample).and_then(|s| s.record().image_sha256);
    ranking.iter().copied().filter(|&(_, s)| image(s).is_none_or(|image| seen.insert(image))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_a_dense_model(
        dense in dense(), dtype in dtype(), splits in 1usize..12, seed: u64, parts in 1usize..5, per_part in 0usize..3,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cache");
        let options = WriterOptions { n_splits: splits.min(dense.width), dtype, memory_budget: 500 };
        dense.write(&dir, description(dense.width), options).unwrap();
        let mut dense = dense;
        for value in dense.samples.iter_mut().flat_map(|sample| &mut sample.values).flatten() {
            *value = rounded(dtype, *value);
        }
        let cache = Cache::open(&dir).unwrap();
        let layer = cache.hook(&hook()).unwrap();

        for latent in 0..dense.width {
            let slice = layer.feature(FeatureId(latent as u32)).unwrap();
            for by in [Ranking::BaseMean, Ranking::BaseMax, Ranking::Max] {
                let want = ranking(&dense, latent, by);
                let all = slice.pick(by, Selection::Top(100), Duplicates::Keep).unwrap();
                prop_assert_eq!(pairs(&all), want.clone());
                prop_assert!(all.iter().enumerate().all(|(i, ranked)| ranked.rank == i));
                let two = slice.pick(by, Selection::Top(2), Duplicates::Keep).unwrap();
                prop_assert_eq!(&two[..], &all[..2.min(all.len())]);
                let apart = slice.pick(by, Selection::Top(100), Duplicates::Drop).unwrap();
                prop_assert_eq!(pairs(&apart), distinct(&want, &dense));

                let quantiles = Selection::Quantiles { parts, per_part, seed };
                let drawn = slice.pick(by, quantiles, Duplicates::Drop).unwrap();
                prop_assert!(drawn.is_sorted_by(|a, b| a.rank < b.rank));
                prop_assert!(drawn.iter().all(|ranked| apart[ranked.rank] == *ranked));
                for part in 0..parts {
                    let of_part = part * apart.len() / parts..(part + 1) * apart.len() / parts;
                    let count = drawn.iter().filter(|ranked| of_part.contains(&ranked.rank)).count();
                    prop_assert_eq!(count, per_part.min(of_part.len()));
                }
                let random = slice.pick(by, Selection::Random { n: 2, seed }, Duplicates::Drop).unwrap();
                prop_assert_eq!(random.len(), apart.len().min(2));
                prop_assert!(random.iter().all(|ranked| apart[ranked.rank] == *ranked));
                prop_assert_eq!(random, slice.pick(by, Selection::Random { n: 2, seed }, Duplicates::Drop).unwrap());
            }
        }

        for sample in &dense.samples {
            let view = layer.sample(SampleId(sample.sample)).unwrap();
            prop_assert_eq!(view.record(), &sample.record());
            let mut by_feature = BTreeMap::new();
            let mut by_token = BTreeMap::new();
            for (token, row) in sample.values.iter().enumerate() {
                let mut on: Vec<(u32, f32)> =
                    row.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(f, &v)| (f as u32, v)).collect();
                for &(f, v) in &on {
 by_feature.entry(f).or_insert_with(Vec::new).push((token as u32, v));
}
                on.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                let got: Vec<_> = view.token(TokenIndex(token as u32)).iter().map(|a| (a.feature.0, a.value)).collect();
                prop_assert_eq!(&got, &on);
                if !on.is_empty() {
                    by_token.insert(token as u32, on);
                }
            }
            let got: BTreeMap<_, Vec<_>> =
                view.features().map(|(f, part)| (f.0, part.iter().map(|a| (a.token.0, a.value)).collect())).collect();
            prop_assert_eq!(got, by_feature);
            let got: BTreeMap<_, Vec<_>> =
                view.tokens().map(|(t, part)| (t.0, part.iter().map(|a| (a.feature.0, a.value)).collect())).collect();
            prop_assert_eq!(got, by_token);
        }

        // Not in order, and one twice.
        let chosen: Vec<usize> = (0..dense.width).rev().chain([0]).collect();
        let features: Vec<FeatureId> = chosen.iter().map(|&latent| FeatureId(latent as u32)).collect();
        let tokens = layer.co_occurrence(&features, Together::Token).unwrap();
        let samples = layer.co_occurrence(&features, Together::Sample).unwrap();
        for (i, &a) in chosen.iter().enumerate() {
            for (j, &b) in chosen.iter().enumerate() {
                let rows = dense.samples.iter().flat_map(|sample| &sample.values);
                let want = rows.filter(|row| row[a] != 0.0 && row[b] != 0.0).count();
                prop_assert_eq!(tokens.count(i, j), want as u64);
                let on = |sample: &&DenseSample, latent: usize| sample.values.iter().any(|row| row[latent] != 0.0);
                let want = dense.samples.iter().filter(|s| on(s, a) && on(s, b)).count();
                prop_assert_eq!(samples.count(i, j), want as u64);
            }
        }
        prop_assert_eq!(tokens.features(), features);

        for facts in layer.statistics() {
            check_statistics(&dense, &facts)?;
        }
    }
}

/// Against two passes over the dense maps.
fn check_statistics(dense: &Dense, facts: &FeatureStatistics) -> Result<(), TestCaseError> {
    let latent = facts.feature.index();
    let (mut image, mut text, mut images, mut texts) = (Vec::new(), Vec::new(), 0u32, 0u32);
    let mut spreads = Vec::new();
    for sample in &dense.samples {
        for (token, row) in sample.values.iter().enumerate() {
            let on_base = sample.record().has_image() && (1..5).contains(&token);
            *(if on_base { &mut images } else { &mut texts }) += 1;
            if row[latent] != 0.0 {
                (if on_base { &mut image } else { &mut text }).push(f64::from(row[latent]));
            }
        }
        if sample.record().has_image() {
            let map: Vec<f64> = sample.values[1..5].iter().map(|row| f64::from(row[latent])).collect();
            spreads.extend(spread(&map, 2, 2));
        }
    }
    prop_assert_eq!((facts.n_image, facts.n_text), (image.len() as u64, text.len() as u64));
    prop_assert_eq!(facts.n_base_samples, spreads.len() as u64);
    let share = |n: usize, of: u32| if of == 0 { 0.0 } else { n as f64 / f64::from(of) };
    prop_assert_eq!(facts.image_density, share(image.len(), images));
    prop_assert_eq!(facts.text_density, share(text.len(), texts));
    let near = |got: Option<f64>, want: Option<f64>| match (got, want) {
        (Some(got), Some(want)) => (got - want).abs() < 1e-9,
        (got, want) => got == want,
    };
    let spread = (!spreads.is_empty()).then(|| spreads.iter().sum::<f64>() / spreads.len() as f64);
    prop_assert!(near(facts.spread, spread), "{:?} {:?}", facts.spread, spread);
    let mean = |of: &[f64], n: u32| of.iter().sum::<f64>() / f64::from(n);
    let ratio = (images > 0 && texts > 0 && facts.n_activations > 0).then(|| {
        let (image, text) = (mean(&image, images), mean(&text, texts));
        text / (image + text)
    });
    prop_assert!(near(facts.text_ratio, ratio), "{:?} {:?}", facts.text_ratio, ratio);
    Ok(())
}

/// The spread of a map of `rows * cols` weights, from its definition.
fn spread(map: &[f64], rows: usize, cols: usize) -> Option<f64> {
    let centre = |patch: usize| {
        (
            (patch / cols) as f64 / rows as f64 + 0.5 / rows as f64,
            (patch % cols) as f64 / cols as f64 + 0.5 / cols as f64,
        )
    };
    let variance = |weight: &dyn Fn(usize) -> f64| {
        let patches = 0..rows * cols;
        let total: f64 = patches.clone().map(weight).sum();
        let row = patches.clone().map(|p| weight(p) * centre(p).0).sum::<f64>() / total;
        let col = patches.clone().map(|p| weight(p) * centre(p).1).sum::<f64>() / total;
        patches.map(|p| weight(p) * ((centre(p).0 - row).powi(2) + (centre(p).1 - col).powi(2))).sum::<f64>()
            / total
    };
    (map.iter().any(|&weight| weight > 0.0)).then(|| (variance(&|p| map[p]) / variance(&|_| 1.0)).sqrt())
}

/// One feature's activations per token of each sample; the samples have images of their own.
fn write(dir: &Path, about: CacheDescription, samples: &[(SampleRecord, &[f32])]) -> Cache {
    let mut writer = CacheWriter::create(dir, about, ONE).unwrap();
    for (record, values) in samples {
        let mut codes = SparseCodes::new(1);
        for &value in *values {
            codes.push_row((value > 0.0).then_some((FeatureId(0), value))).unwrap();
        }
        let tokens: Vec<u32> = (0..values.len() as u32).collect();
        writer.push(record, &[SampleCodes { hook: &hook(), tokens: &tokens, codes: &codes }]).unwrap();
    }
    writer.finish().unwrap();
    Cache::open(dir).unwrap()
}

fn image(sample: u32, n_tokens: u32) -> SampleRecord {
    SampleRecord { sample: SampleId(sample), n_tokens, width: 9, height: 9, ..SampleRecord::default() }
}

#[test]
fn spread_is_none_for_one_patch_and_one_for_the_whole_tile() {
    // BOS, then a tile of 1 x 4.
    let mut about = description(1);
    about.token_layout.base = Some(act_cache::BaseTile { start: 1, rows: 1, cols: 4 });
    let spread = |samples: &[&[f32]]| {
        let folder = tempfile::tempdir().unwrap();
        let samples: Vec<_> = samples
            .iter()
            .enumerate()
            .map(|(i, values)| (image(i as u32, values.len() as u32), *values))
            .collect();
        let cache = write(&folder.path().join("cache"), about.clone(), &samples);
        cache.hook(&hook()).unwrap().statistics()[0].spread
    };
    assert_eq!(spread(&[&[0.0, 0.0, 0.3, 0.0, 0.0]]), Some(0.0));
    assert_eq!(spread(&[&[7.0, 0.0, 0.0, 0.0, 0.0]]), None, "not on the base tile");
    let near = |got: Option<f64>, want: f64| assert!((got.unwrap() - want).abs() < 1e-12, "{got:?} {want}");
    near(spread(&[&[0.0, 2.0, 2.0, 2.0, 2.0]]), 1.0);
    // Centres at 1/8, 3/8, 5/8, 7/8: a uniform map has variance 5/64. Weights 3 and 1 on the first two: mean 3/16,
    // variance 3/4 (1/16)² + 1/4 (3/16)² = 12/1024.
    near(spread(&[&[0.0, 3.0, 1.0, 0.0, 0.0]]), (12.0f64 / 1024.0 / (5.0 / 64.0)).sqrt());
    // Half on each edge: (3/8)² = 9/64.
    near(spread(&[&[0.0, 1.0, 0.0, 0.0, 1.0]]), (9.0f64 / 5.0).sqrt());
    // The mean over samples, of those it is active in.
    near(spread(&[&[0.0, 2.0, 2.0, 2.0, 2.0], &[0.0, 1.0, 0.0, 0.0, 0.0], &[1.0, 0.0, 0.0, 0.0, 0.0]]), 0.5);
}

#[test]
fn tokens_are_an_images_by_the_sample_or_else_by_the_base_tile() {
    let folder = tempfile::tempdir().unwrap();
    let listed = SampleRecord { image_tokens: vec![[1, 7]], ..image(0, 9) };
    let values: &[f32] = &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0];
    let bare = SampleRecord { width: 0, ..image(2, 3) };
    let samples = [(listed, values), (image(1, 9), values), (bare, &[0.0, 0.0, 8.0][..])];
    let cache = write(&folder.path().join("cache"), description(1), &samples);
    let layer = cache.hook(&hook()).unwrap();
    // Of 21 tokens 6 are in the listed range, 4 on the second sample's base tile.
    assert_eq!((layer.n_tokens(), layer.n_image_tokens()), (21, 10));
    let facts = layer.statistics()[0];
    assert_eq!((facts.n_image, facts.n_text), (3, 4));
    assert_eq!((facts.image_density, facts.text_density), (0.3, 4.0 / 11.0));
    // On image tokens 1 + 3 + 1 over 10, on others 4 + 3 + 4 + 8 over 11.
    let (on_images, on_text) = (0.5, 19.0 / 11.0);
    assert!((facts.text_ratio.unwrap() - on_text / (on_text + on_images)).abs() < 1e-12);
    assert_eq!((facts.n_samples, facts.n_base_samples), (3, 2));
}

#[test]
fn of_equal_samples_the_lower_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let samples = [0, 1, 2, 4, 5].map(|sample| {
        let value = if sample == 2 { 3.0 } else { 1.0 };
        DenseSample { sample, values: vec![vec![value]; 5] }
    });
    let dense = Dense { width: 1, samples: samples.to_vec() };
    dense.write(&dir, description(1), ONE).unwrap();
    let cache = Cache::open(&dir).unwrap();
    let layer = cache.hook(&hook()).unwrap();
    let slice = layer.feature(FeatureId(0)).unwrap();
    let top = |n, duplicates| -> Vec<(u32, usize)> {
        let top = slice.pick(Ranking::BaseMean, Selection::Top(n), duplicates).unwrap();
        top.iter().map(|ranked| (ranked.sample.0, ranked.rank)).collect()
    };
    assert_eq!(top(4, Duplicates::Keep), [(2, 0), (0, 1), (1, 2), (4, 3)]);
    assert_eq!(top(4, Duplicates::Drop), [(2, 0), (0, 1), (1, 2)], "4 shows the image of 1, 5 that of 2");
}

#[test]
fn answers_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    small().write(&dir, description(10), ONE).unwrap();
    let cache = Cache::open(&dir).unwrap();
    let layer = cache.hook(&hook()).unwrap();
    let all: Vec<FeatureId> = (0..10).map(FeatureId).collect();
    let answers = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let together = layer.co_occurrence(&all, Together::Token).unwrap();
            (layer.statistics(), together, format!("{:?}", layer.sample(SampleId(4)).unwrap()))
        })
    };
    assert_eq!(answers(1), answers(7));
}

#[test]
fn co_occurrence_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    // Per token the activations of two latents.
    let samples = [
        DenseSample { sample: 0, values: vec![vec![1.0, 1.0], vec![1.0, 0.0]] },
        DenseSample { sample: 3, values: vec![vec![1.0, 0.0], vec![0.0, 1.0]] },
        DenseSample { sample: 4, values: vec![vec![0.0, 0.0], vec![0.0, 1.0]] },
    ];
    Dense { width: 2, samples: samples.to_vec() }.write(&dir, description(2), ONE).unwrap();
    let cache = Cache::open(&dir).unwrap();
    let layer = cache.hook(&hook()).unwrap();
    let both = [FeatureId(0), FeatureId(1)];
    let tokens = layer.co_occurrence(&both, Together::Token).unwrap();
    assert_eq!([tokens.count(0, 0), tokens.count(0, 1), tokens.count(1, 1)], [3, 1, 3]);
    assert_eq!(tokens.jaccard(0, 1), Some(1.0 / 5.0));
    let samples = layer.co_occurrence(&both, Together::Sample).unwrap();
    assert_eq!([samples.count(0, 0), samples.count(1, 0), samples.count(1, 1)], [2, 2, 3]);
    assert_eq!(samples.jaccard(1, 0), Some(2.0 / 3.0));
    assert!(matches!(
        layer.co_occurrence(&[FeatureId(2)], Together::Token),
        Err(CacheError::BeyondWidth { .. })
    ));
}

#[test]
fn questions_a_cache_cannot_answer_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut about = description(1);
    about.token_layout.base = None;
    let cache = write(&folder.path().join("cache"), about, &[(image(0, 1), &[1.0])]);
    let layer = cache.hook(&hook()).unwrap();
    let slice = layer.feature(FeatureId(0)).unwrap();
    let pick = |ranking| slice.pick(ranking, Selection::Top(1), Duplicates::Drop);
    assert!(matches!(pick(Ranking::BaseMean), Err(CacheError::NoBaseTile)));
    assert!(matches!(pick(Ranking::BaseMax), Err(CacheError::NoBaseTile)));
    assert_eq!(pairs(&pick(Ranking::Max).unwrap()), [(1.0, 0)]);
    assert_eq!(
        layer.sample(SampleId(5)).unwrap_err().to_string(),
        "the cache does not hold sample 5; it holds 1, listed in its samples.jsonl"
    );
}
