//! A dense model of a cache, and small caches written from it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "for tests only")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use act_cache::{
    ActivationDtype, BaseTile, CacheDescription, CacheError, CacheWriter, DatasetSource, HookDescription,
    Manifest, SampleCodes, SampleRecord, WriterOptions,
};
use half::{bf16, f16};
use proptest::prelude::*;
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};

/// The base tile of every test sample with an image: tokens 1 to 4.
pub const BASE: BaseTile = BaseTile { start: 1, rows: 2, cols: 2 };

/// `values[token][latent]`, zero where off.
#[derive(Clone, Debug)]
pub struct DenseSample {
    pub sample: u32,
    pub values: Vec<Vec<f32>>,
}

#[derive(Clone, Debug)]
pub struct Dense {
    pub width: usize,
    pub samples: Vec<DenseSample>,
}

pub fn hook() -> HookPoint {
    HookPoint::layer(3)
}

pub fn description(width: usize) -> CacheDescription {
    let mut description = CacheDescription {
        model: "a model".to_owned(),
        dataset: DatasetSource { name: "a set".to_owned(), n_samples: 1000, ..DatasetSource::default() },
        ..CacheDescription::default()
    };
    description.token_layout.base = Some(BASE);
    description.hooks.insert(hook(), HookDescription { width, k: 4, ..HookDescription::default() });
    description
}

impl DenseSample {
    /// Samples of at least five tokens have an image; its content is told by the sample's number modulo 3.
    pub fn record(&self) -> SampleRecord {
        let n_tokens = self.values.len() as u32;
        let side = if n_tokens > 4 { 96 } else { 0 };
        SampleRecord {
            sample: SampleId(self.sample),
            n_tokens,
            width: side,
            height: side,
            image_sha256: (side > 0).then(|| format!("image {}", self.sample % 3)),
            ..SampleRecord::default()
        }
    }

    pub fn codes(&self, width: usize) -> (Vec<u32>, SparseCodes) {
        let mut codes = SparseCodes::new(width);
        for row in &self.values {
            let on = row.iter().enumerate().filter(|(_, value)| **value != 0.0);
            codes.push_row(on.map(|(latent, &value)| (FeatureId(latent as u32), value))).unwrap();
        }
        ((0..self.values.len() as u32).collect(), codes)
    }
}

impl Dense {
    /// `(sample, token, value)` of a latent.
    pub fn feature(&self, latent: usize) -> Vec<(u32, u32, f32)> {
        let mut found = Vec::new();
        for sample in &self.samples {
            for (token, row) in sample.values.iter().enumerate() {
                if row[latent] != 0.0 {
                    found.push((sample.sample, token as u32, row[latent]));
                }
            }
        }
        found
    }

    pub fn write(
        &self,
        dir: &Path,
        description: CacheDescription,
        options: WriterOptions,
    ) -> Result<Manifest, CacheError> {
        let mut writer = CacheWriter::create(dir, description, options)?;
        for sample in &self.samples {
            let (tokens, codes) = sample.codes(self.width);
            writer
                .push(&sample.record(), &[SampleCodes { hook: &hook(), tokens: &tokens, codes: &codes }])?;
        }
        writer.finish()
    }
}

/// A fixed cache of 10 latents: 6 samples of 5 tokens, about a third of all codes on.
pub fn small() -> Dense {
    let value = |sample: u32, token: u32, latent: u32| {
        let mixed = (sample * 31 + token * 17 + latent * 7) % 11;
        if mixed < 4 { mixed as f32 * 0.5 } else { 0.0 }
    };
    let samples = (0..6).map(|sample| DenseSample {
        sample,
        values: (0..5).map(|token| (0..10).map(|latent| value(sample, token, latent)).collect()).collect(),
    });
    Dense { width: 10, samples: samples.collect() }
}

/// Any cache of up to 11 latents, 7 samples and 7 tokens per sample.
pub fn dense() -> impl Strategy<Value = Dense> {
    dense_of_at_least(0)
}

/// The same with so many samples, and so many tokens in each, at least.
pub fn dense_of_at_least(least: usize) -> impl Strategy<Value = Dense> {
    let value = prop_oneof![3 => Just(0.0f32), 1 => (1u32..400).prop_map(|n| n as f32 / 64.0)];
    (1usize..12).prop_flat_map(move |width| {
        let row = prop::collection::vec(value.clone(), width);
        let values = prop::collection::vec(row, least..8);
        let samples = prop::collection::vec((1u32..5, values), least..8).prop_map(|samples| {
            let mut at = 0;
            let place = |(step, values)| {
                at += step;
                DenseSample { sample: at - 1, values }
            };
            samples.into_iter().map(place).collect()
        });
        samples.prop_map(move |samples| Dense { width, samples })
    })
}

pub fn dtype() -> impl Strategy<Value = ActivationDtype> {
    prop_oneof![Just(ActivationDtype::F32), Just(ActivationDtype::F16), Just(ActivationDtype::Bf16)]
}

/// What is read back of a stored value.
pub fn rounded(dtype: ActivationDtype, value: f32) -> f32 {
    match dtype {
        ActivationDtype::F32 => value,
        ActivationDtype::F16 => f16::from_f32(value).to_f32(),
        ActivationDtype::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// Every file below `dir` with its bytes.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}
