//! [`Cache`] and [`HookCache`]: a cache folder, memory-mapped.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sae_types::{FeatureId, HookPoint, SampleId};

use crate::feature::FeatureSlice;
use crate::manifest::{MANIFEST_FILE, SAMPLES_FILE};
use crate::split::SplitFile;
use crate::{CacheError, HookManifest, Manifest, SampleRecord, hash};

/// An open cache. See the [crate documentation](crate) for what is checked when.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    manifest: Manifest,
    samples: Vec<SampleRecord>,
}

/// One hook point of an open cache, its splits mapped.
#[derive(Debug)]
pub struct HookCache<'c> {
    cache: &'c Cache,
    hook: HookPoint,
    entry: &'c HookManifest,
    splits: Vec<SplitFile>,
}

impl Cache {
    /// Opens the cache at `dir`.
    ///
    /// # Errors
    /// When the folder is no cache of a known version, or its manifest and samples do not fit each other.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        let manifest = Manifest::read(&dir.join(MANIFEST_FILE))?;
        let samples = read_samples(&dir.join(SAMPLES_FILE), &manifest)?;
        Ok(Self { dir: dir.to_owned(), manifest, samples })
    }

    /// What the cache is about.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Every sample, ascending.
    pub fn samples(&self) -> &[SampleRecord] {
        &self.samples
    }

    /// The record of a sample, if it was cached.
    pub fn sample(&self, sample: SampleId) -> Option<&SampleRecord> {
        // Most caches hold all samples from 0 on.
        if let Some(record) = self.samples.get(sample.index())
            && record.sample == sample
        {
            return Some(record);
        }
        let at = self.samples.binary_search_by_key(&sample, |record| record.sample).ok()?;
        Some(&self.samples[at])
    }

    /// The hook points there are.
    pub fn hooks(&self) -> impl Iterator<Item = &HookPoint> {
        self.manifest.hooks.keys()
    }

    /// Maps the splits of `hook`.
    ///
    /// # Errors
    /// When the cache does not hold the hook point, or a split is truncated or not as the manifest says.
    pub fn hook(&self, hook: &HookPoint) -> Result<HookCache<'_>, CacheError> {
        let entry = self.manifest.hooks.get(hook).ok_or_else(|| CacheError::UnknownHook {
            hook: hook.clone(),
            known: self.manifest.hooks.keys().cloned().collect(),
        })?;
        let open = |split: &crate::SplitManifest| {
            let path = self.dir.join(&split.file);
            SplitFile::open(&path, split.start..split.end, split.n, self.manifest.activation_dtype)
        };
        let splits = entry.splits.iter().map(open).collect::<Result<_, _>>()?;
        Ok(HookCache { cache: self, hook: hook.clone(), entry, splits })
    }

    /// Reads every byte: hashes, order, samples, positions and values.
    ///
    /// # Errors
    /// Names the first thing that breaks the format.
    pub fn verify(&self) -> Result<(), CacheError> {
        for hook in self.hooks() {
            let hook = self.hook(hook)?;
            let pairs: Vec<_> = hook.splits.iter().zip(&hook.entry.splits).collect();
            pairs.par_iter().try_for_each(|(split, entry)| {
                let got = split.sha256();
                if got != entry.sha256 {
                    let expected = entry.sha256.clone();
                    return Err(CacheError::Hash { path: split.path().to_owned(), expected, got });
                }
                split.latents().try_for_each(|latent| hook.verify_feature(split, latent))
            })?;
        }
        Ok(())
    }
}

impl<'c> HookCache<'c> {
    /// The hook point.
    pub fn hook(&self) -> &HookPoint {
        &self.hook
    }

    /// The cache it belongs to.
    pub fn cache(&self) -> &'c Cache {
        self.cache
    }

    /// How many latents the sparse autoencoder has.
    pub fn width(&self) -> usize {
        self.entry.width
    }

    /// How many latents are on per token, at most.
    pub fn k(&self) -> usize {
        self.entry.k
    }

    /// How many tokens went through the sparse autoencoder.
    pub fn n_tokens(&self) -> u64 {
        self.entry.tokens
    }

    /// The features that were stored wherever they were active: all of them, or those in the filters.
    pub fn stored(&self) -> Vec<FeatureId> {
        match &self.cache.manifest.filters {
            Some(filters) => {
                let wanted = filters.features(&self.hook).unwrap_or_default();
                wanted.iter().copied().filter(|feature| feature.index() < self.width()).collect()
            }
            None => (0..self.width() as u32).map(FeatureId).collect(),
        }
    }

    /// All activations of a feature.
    ///
    /// # Errors
    /// When the feature is beyond the width, or the cache's filters left it out.
    pub fn feature(&self, feature: FeatureId) -> Result<FeatureSlice<'_>, CacheError> {
        if feature.index() >= self.width() {
            return Err(CacheError::BeyondWidth { hook: self.hook.clone(), feature, width: self.width() });
        }
        if !self.cache.manifest.stores(&self.hook, feature) {
            return Err(CacheError::NotCached { hook: self.hook.clone(), feature });
        }
        Ok(self.slice(feature))
    }

    /// The features with at least one activation, ascending.
    pub fn features(&self) -> impl Iterator<Item = FeatureSlice<'_>> {
        (0..self.width() as u32)
            .map(|feature| self.slice(FeatureId(feature)))
            .filter(|slice| !slice.is_empty())
    }

    /// As [`HookCache::feature`], of a feature below the width.
    pub(crate) fn slice(&self, feature: FeatureId) -> FeatureSlice<'_> {
        let latent = feature.index();
        let at = self.splits.partition_point(|split| split.latents().end <= latent);
        let split = &self.splits[at];
        self.slice_of(split, feature, split.entries(latent))
    }

    fn slice_of<'a>(
        &'a self,
        split: &'a SplitFile,
        feature: FeatureId,
        entries: Range<usize>,
    ) -> FeatureSlice<'a> {
        FeatureSlice::new(
            self.cache,
            feature,
            &split.samples()[entries.clone()],
            split.tokens().slice(entries.clone()),
            split.values().slice(entries),
        )
    }

    fn verify_feature(&self, split: &SplitFile, latent: usize) -> Result<(), CacheError> {
        let feature = FeatureId(latent as u32);
        let slice = self.slice_of(split, feature, split.entries(latent));
        let broken = |entry: usize, problem: String| {
            Err(CacheError::Entry { path: split.path().to_owned(), feature, entry, problem })
        };
        if !slice.is_empty() && !self.cache.manifest.stores(&self.hook, feature) {
            return broken(0, "the filters leave this feature out".to_owned());
        }
        let mut before = None;
        for (entry, activation) in slice.iter().enumerate() {
            let (sample, token, value) = (activation.sample, activation.token, activation.value);
            if before.is_some_and(|before| before >= (sample, token)) {
                return broken(entry, format!("sample {sample}, token {token} is out of order"));
            }
            before = Some((sample, token));
            match self.cache.sample(sample) {
                None => return broken(entry, format!("sample {sample} is not in {SAMPLES_FILE}")),
                Some(record) if token.0 >= record.n_tokens => {
                    return broken(entry, format!("sample {sample} has no token {token}"));
                }
                Some(_) => {}
            }
            if value == 0.0 || !value.is_finite() {
                return broken(entry, format!("activation {value} is zero or not finite"));
            }
        }
        Ok(())
    }
}

fn read_samples(path: &Path, manifest: &Manifest) -> Result<Vec<SampleRecord>, CacheError> {
    let text = std::fs::read(path).map_err(CacheError::io("read", path))?;
    let got = hash::sha256(&text);
    if got != manifest.samples_sha256 {
        let expected = manifest.samples_sha256.clone();
        return Err(CacheError::Hash { path: path.to_owned(), expected, got });
    }
    let mut samples: Vec<SampleRecord> = Vec::new();
    for (i, line) in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let record: SampleRecord = serde_json::from_slice(line).map_err(|source| CacheError::Json {
            path: path.to_owned(),
            line: Some(i + 1),
            source,
        })?;
        if let Some(before) = samples.last()
            && before.sample >= record.sample
        {
            return Err(CacheError::SampleOrder { sample: record.sample, before: before.sample });
        }
        samples.push(record);
    }
    if samples.len() as u64 != manifest.counts.samples {
        return Err(CacheError::Field {
            path: path.to_owned(),
            field: "the number of lines".to_owned(),
            expected: format!("{} as in the manifest", manifest.counts.samples),
            got: samples.len().to_string(),
        });
    }
    Ok(samples)
}
