//! [`SourceArgs`]: a cache and the data set it was made of.

use std::path::{Path, PathBuf};

use act_cache::Cache;
use explain::ExplainError;
use mm_data::{Dataset, Field, OpenOptions, hub};
use sae_types::{FeatureId, HookPoint};
use stage_kit::{RunManifest, hash_file};

use crate::ExplainKitError;

/// A cache of images and its data set: flatten it into a binary's arguments.
#[derive(Debug, clap::Args)]
pub struct SourceArgs {
    /// Cache: a folder that sae-cache images wrote
    #[arg(long)]
    pub cache: PathBuf,
    /// The data set it was made of: parquet, an image folder, JSON, or a Hub id
    #[arg(long)]
    pub dataset: String,
    /// How it is read
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// How a cache's data set is read.
#[derive(Debug, clap::Args)]
pub struct ReadingArgs {
    /// Split of the data set; default: the one in the cache's manifest
    #[arg(long)]
    split: Option<String>,
    /// Folder that image paths in JSON are relative to; default: the JSON file's own
    #[arg(long)]
    image_root: Option<PathBuf>,
    /// Go on although the data set's fingerprint is not the one in the cache: each image is compared by its own hash
    #[arg(long)]
    allow_drift: bool,
}

/// Opens a cache for as long as the process lives, so that threads may hold parts of it.
///
/// # Errors
/// When it cannot be read.
pub fn open_cache(path: &Path) -> Result<&'static Cache, ExplainKitError> {
    Ok(Box::leak(Box::new(Cache::open(path)?)))
}

/// The features that a cache stores, by hook point.
///
/// # Errors
/// When a split of it cannot be read.
pub fn stored(cache: &'static Cache) -> Result<Vec<(&'static HookPoint, Vec<FeatureId>)>, ExplainKitError> {
    cache.hooks().map(|hook| Ok((hook, cache.hook(hook)?.stored()))).collect()
}

/// Refuses a cache that says nowhere which tokens show the whole image.
///
/// # Errors
/// When it is such a one; `path` is where it lies.
pub fn require_base_tile(cache: &Cache, path: &Path) -> Result<(), ExplainKitError> {
    if cache.manifest().token_layout.base.is_some() {
        return Ok(());
    }
    let problem = format!(
        "{} names no base tile, so that no heat map can be drawn: make it with `sae-cache images`; caches of text are explained \
         by `sae-explain text`",
        path.display()
    );
    Err(ExplainKitError::within(problem, ExplainError::NoBaseTile))
}

impl SourceArgs {
    /// Opens the data set with these fields, compares it with the cache, which [`open_cache`] has opened, and notes both in the
    /// manifest: as inputs, and by their hashes among the settings.
    ///
    /// # Errors
    /// When it cannot be read, or is another than the cache was made of and no flag allows that.
    pub fn open(
        &self,
        cache: &Cache,
        fields: &[Field],
        manifest: &mut RunManifest,
    ) -> Result<Dataset, ExplainKitError> {
        self.reading.open(&self.cache, cache, &self.dataset, fields, manifest)
    }
}

impl ReadingArgs {
    /// As [`SourceArgs::open`], of a cache at `path` and a data set called `name`.
    ///
    /// # Errors
    /// As [`SourceArgs::open`].
    pub fn open(
        &self,
        path: &Path,
        cache: &Cache,
        name: &str,
        fields: &[Field],
        manifest: &mut RunManifest,
    ) -> Result<Dataset, ExplainKitError> {
        let options = OpenOptions {
            split: self.split.clone().or_else(|| cache.manifest().dataset.split.clone()),
            fields: fields.to_vec(),
            image_root: self.image_root.clone(),
            ..OpenOptions::default()
        };
        let dataset = hub::open_dataset(name, &options)?;
        self.check_fingerprint(path, cache, name, dataset.fingerprint())?;
        note_cache(path, manifest)?;
        note(manifest, "dataset", name, dataset.fingerprint());
        Ok(dataset)
    }

    fn check_fingerprint(
        &self,
        path: &Path,
        cache: &Cache,
        name: &str,
        now: &str,
    ) -> Result<(), ExplainKitError> {
        let source = &cache.manifest().dataset;
        if source.fingerprint == now {
            return Ok(());
        }
        let problem = if source.fingerprint.is_empty() {
            "the cache does not say of which data set it was made".to_owned()
        } else {
            format!(
                "{name} is not the data set the cache was made of ({}): their fingerprints differ",
                source.name
            )
        };
        if self.allow_drift || source.fingerprint.is_empty() {
            tracing::warn!("{problem}; images with another hash than the cache's are left out");
            return Ok(());
        }
        let advice = format!(
            "see what differs with `sae-cache inspect {} --dataset {name}`, or pass --allow-drift",
            path.display()
        );
        Err(ExplainKitError::usage(format!("{problem}: {advice}")))
    }
}

/// Notes a cache as an input, and by the hash of its manifest among the settings.
///
/// # Errors
/// When its manifest cannot be read.
pub fn note_cache(path: &Path, manifest: &mut RunManifest) -> Result<(), ExplainKitError> {
    let sha256 = hash_file(&path.join("manifest.json"))?;
    note(manifest, "cache", &path.display().to_string(), &sha256);
    Ok(())
}

fn note(manifest: &mut RunManifest, role: &str, source: &str, sha256: &str) {
    manifest.input(role, source, sha256);
    manifest.settings.insert(format!("--{role} (fingerprint)"), sha256.to_owned());
}
