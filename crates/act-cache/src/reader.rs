//! [`Cache`] and [`HookCache`]: a cache folder, memory-mapped.

use std::path::{Path, PathBuf};

use sae_types::{FeatureId, HookPoint, SampleId};

use crate::feature::FeatureSlice;
use crate::manifest::{MANIFEST_FILE, SAMPLES_FILE};
use crate::split::SplitFile;
use crate::tokens::CachedTokens;
use crate::{CacheError, HookManifest, Manifest, SampleRecord, SplitManifest, hash};

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
    n_image_tokens: u64,
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

    /// A cache whose files are in memory.
    #[cfg(test)]
    pub(crate) fn of_parts(manifest: Manifest, samples: Vec<SampleRecord>) -> Self {
        Self { dir: PathBuf::from("cache"), manifest, samples }
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
        let splits = entry.splits.iter().map(|split| self.open_split(split)).collect::<Result<_, _>>()?;
        let layout = &self.manifest.token_layout;
        let unlisted = self.samples.iter().filter(|record| record.image_tokens.is_empty());
        let on_base: u64 =
            unlisted.filter_map(|record| record.base_tokens(layout)).map(|base| base.len() as u64).sum();
        let n_image_tokens = (entry.image_tokens + on_base).min(entry.tokens);
        Ok(HookCache { cache: self, hook: hook.clone(), entry, splits, n_image_tokens })
    }

    pub(crate) fn open_split(&self, split: &SplitManifest) -> Result<SplitFile, CacheError> {
        let path = self.dir.join(&split.file);
        SplitFile::open(&path, split.start..split.end, split.n, self.manifest.activation_dtype)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Maps the token ids, if the cache keeps them.
    ///
    /// # Errors
    /// When the file is missing or does not fit samples.jsonl.
    pub fn tokens(&self) -> Result<Option<CachedTokens>, CacheError> {
        let Some(entry) = &self.manifest.tokens else { return Ok(None) };
        let lengths = self.samples.iter().map(|record| record.n_tokens);
        CachedTokens::open(&self.dir.join(&entry.file), lengths).map(Some)
    }
}

impl<'c> HookCache<'c> {
    /// As [`Cache::hook`], of splits in memory.
    #[cfg(test)]
    pub(crate) fn of_splits(cache: &'c Cache, hook: &HookPoint, splits: Vec<SplitFile>) -> Self {
        let entry = &cache.manifest.hooks[hook];
        Self { cache, hook: hook.clone(), entry, splits, n_image_tokens: entry.image_tokens }
    }

    /// Reads every entry, as [`Cache::verify`] does, hashes aside.
    #[cfg(test)]
    pub(crate) fn verify_entries(&self) -> Result<(), CacheError> {
        self.splits.iter().try_for_each(|split| {
            let check =
                |latent: usize| self.cache.verify_feature(&self.hook, split, FeatureId(latent as u32));
            split.latents().try_for_each(check)
        })
    }

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

    /// How many latents are on per token: at most, or of BatchTopK on average; 0 where an import did not know.
    pub fn k(&self) -> usize {
        self.entry.k
    }

    /// How many tokens went through the sparse autoencoder.
    pub fn n_tokens(&self) -> u64 {
        self.entry.tokens
    }

    /// How many of [`HookCache::n_tokens`] are an image's, as [`SampleRecord::is_image_token`] tells them.
    pub fn n_image_tokens(&self) -> u64 {
        self.n_image_tokens
    }

    /// The features that were stored wherever they were active: all of them, or those in the filters, without lost ones.
    pub fn stored(&self) -> Vec<FeatureId> {
        let lost = &self.entry.lost;
        let stored =
            |feature: &FeatureId| feature.index() < self.width() && lost.binary_search(feature).is_err();
        match &self.cache.manifest.filters {
            Some(filters) => {
                filters.features(&self.hook).unwrap_or_default().iter().copied().filter(stored).collect()
            }
            None => (0..self.width() as u32).map(FeatureId).filter(stored).collect(),
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

    pub(crate) fn splits(&self) -> &[SplitFile] {
        &self.splits
    }

    /// As [`HookCache::feature`], of a feature below the width.
    pub(crate) fn slice(&self, feature: FeatureId) -> FeatureSlice<'_> {
        let latent = feature.index();
        let at = self.splits.partition_point(|split| split.latents().end <= latent);
        let split = &self.splits[at];
        FeatureSlice::of_split(self.cache, split, feature)
    }

    /// The file that holds `latent`, one below the width.
    pub(crate) fn split_path(&self, latent: usize) -> &Path {
        let at = self.splits.partition_point(|split| split.latents().end <= latent);
        self.splits[at].path()
    }
}

fn read_samples(path: &Path, manifest: &Manifest) -> Result<Vec<SampleRecord>, CacheError> {
    parse_samples(path, &std::fs::read(path).map_err(CacheError::io("read", path))?, manifest)
}

/// The records in the bytes of samples.jsonl.
pub(crate) fn parse_samples(
    path: &Path,
    text: &[u8],
    manifest: &Manifest,
) -> Result<Vec<SampleRecord>, CacheError> {
    let got = hash::sha256(text);
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
