//! [`Cache::verify`]: every byte of a cache against its manifest.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use sae_types::{FeatureId, HookPoint};

use crate::feature::FeatureSlice;
use crate::manifest::SAMPLES_FILE;
use crate::split::SplitFile;
use crate::{Cache, CacheError, Manifest, SplitManifest, files};

impl Cache {
    /// Reads every byte, as [`Cache::damage`] does.
    ///
    /// # Errors
    /// The first thing that breaks the format.
    pub fn verify(&self) -> Result<(), CacheError> {
        self.damage().into_iter().next().map_or(Ok(()), Err)
    }

    /// Reads every byte: hashes, order, samples, positions and values; and looks for files that do not belong there. The
    /// first thing wrong with each file, in the order of hook points and splits, then files that do not
    /// belong there.
    pub fn damage(&self) -> Vec<CacheError> {
        let mut damage: Vec<CacheError> = self.verify_tokens().err().into_iter().collect();
        for (hook, entry) in &self.manifest().hooks {
            let of_split = |split: &SplitManifest| self.verify_split(hook, split).err();
            damage.extend(entry.splits.par_iter().filter_map(of_split).collect::<Vec<_>>());
        }
        match self.foreign_files() {
            Ok(files) => damage.extend(files.into_iter().map(|path| CacheError::Foreign { path })),
            Err(error) => damage.push(error),
        }
        damage
    }

    fn verify_tokens(&self) -> Result<(), CacheError> {
        let Some((tokens, entry)) = self.tokens()?.zip(self.manifest().tokens.as_ref()) else {
            return Ok(());
        };
        check_hash(tokens.path(), &entry.sha256, tokens.sha256())
    }

    fn verify_split(&self, hook: &HookPoint, entry: &SplitManifest) -> Result<(), CacheError> {
        let split = self.open_split(entry)?;
        check_hash(split.path(), &entry.sha256, split.sha256())?;
        let check = |latent: usize| self.verify_feature(hook, &split, FeatureId(latent as u32));
        // The first in order, whichever thread is the faster.
        let flaws = split.latents().into_par_iter().map(check);
        flaws.find_first(Result::is_err).unwrap_or(Ok(()))
    }

    pub(crate) fn verify_feature(
        &self,
        hook: &HookPoint,
        split: &SplitFile,
        feature: FeatureId,
    ) -> Result<(), CacheError> {
        let slice = FeatureSlice::of_split(self, split, feature);
        let broken = |entry: usize, problem: String| {
            Err(CacheError::Entry { path: split.path().to_owned(), feature, entry, problem })
        };
        if !slice.is_empty() && !self.manifest().stores(hook, feature) {
            return broken(0, "the manifest says that this feature is not stored".to_owned());
        }
        let mut before = None;
        for (entry, activation) in slice.iter().enumerate() {
            let (sample, token, value) = (activation.sample, activation.token, activation.value);
            if before.is_some_and(|before| before >= (sample, token)) {
                return broken(entry, format!("sample {sample}, token {token} is out of order"));
            }
            before = Some((sample, token));
            match self.sample(sample) {
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

    /// Files that are not the manifest's: whatever else lies in the folder of a hook point, and safetensors files anywhere
    /// else in the cache. Ascending. Other files are none of the cache's business.
    pub(crate) fn foreign_files(&self) -> Result<Vec<PathBuf>, CacheError> {
        let Manifest { hooks, tokens, .. } = self.manifest();
        let splits = hooks.values().flat_map(|entry| &entry.splits).map(|split| &split.file);
        let own: HashSet<&String> = splits.chain(tokens.as_ref().map(|tokens| &tokens.file)).collect();
        let is_foreign = |name: &String| {
            let of_hook =
                name.split_once('/').is_some_and(|(folder, _)| hooks.keys().any(|h| h.as_str() == folder));
            !own.contains(name) && (of_hook || name.ends_with(".safetensors"))
        };
        let all = files::all_below(self.dir())?.into_iter();
        Ok(all.filter(|(name, _)| is_foreign(name)).map(|(_, path)| path).collect())
    }
}

fn check_hash(path: &Path, expected: &str, got: String) -> Result<(), CacheError> {
    if got == expected {
        return Ok(());
    }
    Err(CacheError::Hash { path: path.to_owned(), expected: expected.to_owned(), got })
}
