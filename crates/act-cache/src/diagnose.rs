//! [`Cache::findings`]: what should be known of a cache, without reading its activations.

use std::collections::HashSet;
use std::path::Path;

use sae_types::HookPoint;

use crate::finding::{Finding, Severity};
use crate::manifest::{MANIFEST_FILE, SAMPLES_FILE};
use crate::{Cache, CacheError, HookManifest};

impl Finding {
    /// A broken file of the cache in `dir`.
    pub fn damage(dir: &Path, error: &CacheError) -> Self {
        let (severity, advice) = match error {
            CacheError::Foreign { .. } => {
                (Severity::Warning, "nothing reads it: remove it, or make the cache anew if it belongs there")
            }
            _ => (Severity::Error, "make the cache anew, or copy the file again from where it is sound"),
        };
        let place = error.path().map_or(dir, |path| path.strip_prefix(dir).unwrap_or(path));
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let problem = match error {
            CacheError::Io { action, .. } => format!("cannot {action} it{cause}"),
            CacheError::Header { .. } => format!("has no sound safetensors header{cause}"),
            CacheError::Tensor { tensor, problem, expected, .. } => {
                format!("tensor {tensor} {problem}, expected {expected}")
            }
            CacheError::Hash { expected, got, .. } => {
                format!("has SHA-256 {got}, the manifest says {expected}")
            }
            CacheError::Entry { feature, entry, problem, .. } => {
                format!("feature {feature}, entry {entry}: {problem}")
            }
            CacheError::Foreign { .. } => "is not in the manifest".to_owned(),
            _ => format!("{error}{cause}"),
        };
        Self { severity, place: place.display().to_string(), problem, advice: advice.to_owned() }
    }
}

impl Cache {
    /// What should be known of the cache, worst first: files that are missing, truncated, or not the manifest's; counts that
    /// do not add up; splits whose dtypes differ; hook points and features that are never active; features that were lost.
    /// Looks at headers and offsets only; [`Cache::damage`] reads the rest.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let manifest = self.manifest();
        let mut find = |severity, place: &str, problem: String, advice: &str| {
            let (place, advice) = (place.to_owned(), advice.to_owned());
            findings.push(Finding { severity, place, problem, advice });
        };
        let activations: u64 = manifest.hooks.values().map(activations).sum();
        if manifest.counts.activations != activations {
            let problem = format!(
                "counts.activations is {}, the splits have {activations}",
                manifest.counts.activations
            );
            find(
                Severity::Error,
                MANIFEST_FILE,
                problem,
                "the manifest was changed by hand: make the cache anew",
            );
        }
        let tokens: u64 = self.samples().iter().map(|record| u64::from(record.n_tokens)).sum();
        if manifest.counts.tokens != tokens {
            let problem = format!("counts.tokens is {}, the samples have {tokens}", manifest.counts.tokens);
            find(
                Severity::Error,
                MANIFEST_FILE,
                problem,
                "the manifest was changed by hand: make the cache anew",
            );
        }
        if manifest.dataset.fingerprint.is_empty() {
            let problem = "names no fingerprint of the data set".to_owned();
            find(Severity::Note, MANIFEST_FILE, problem, "that it changed shows in its samples only");
        }
        let mut seen = HashSet::new();
        let images = self.samples().iter().filter_map(|record| record.image_sha256.as_deref());
        let again = images.filter(|image| !seen.insert(*image)).count();
        if again > 0 {
            let problem = format!("{again} samples show an image that an earlier one shows");
            find(
                Severity::Note,
                SAMPLES_FILE,
                problem,
                "leave duplicates out of rankings, as is the default",
            );
        }
        let unlisted = self.samples().iter().filter(|r| r.has_image() && r.image_tokens.is_empty()).count();
        if unlisted > 0 {
            let problem = format!("{unlisted} samples do not say which tokens are their image's");
            let advice = "only the base tile counts as image in densities and ratios; make the cache anew";
            find(Severity::Note, SAMPLES_FILE, problem, advice);
        }
        let counts: HashSet<usize> = manifest.hooks.values().map(|entry| entry.splits.len()).collect();
        if counts.len() > 1 {
            let of = manifest.hooks.iter().map(|(hook, entry)| format!("{hook} {}", entry.splits.len()));
            let problem = format!(
                "hook points differ in their number of splits: {}",
                of.collect::<Vec<_>>().join(", ")
            );
            find(Severity::Note, MANIFEST_FILE, problem, "msae and delphi take one number for all");
        }
        for (hook, entry) in &manifest.hooks {
            findings.extend(self.hook_findings(hook, entry));
        }
        match self.foreign_files() {
            Ok(files) => {
                let foreign = files.into_iter().map(|path| CacheError::Foreign { path });
                findings.extend(foreign.map(|error| Finding::damage(self.dir(), &error)));
            }
            Err(error) => findings.push(Finding::damage(self.dir(), &error)),
        }
        if let Err(error) = self.tokens() {
            findings.push(Finding::damage(self.dir(), &error));
        }
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings
    }

    fn hook_findings(&self, hook: &HookPoint, entry: &HookManifest) -> Vec<Finding> {
        let broken: Vec<CacheError> =
            entry.splits.iter().filter_map(|split| self.open_split(split).err()).collect();
        if !broken.is_empty() {
            return broken.iter().map(|error| Finding::damage(self.dir(), error)).collect();
        }
        let layer = match self.hook(hook) {
            Ok(layer) => layer,
            Err(error) => return vec![Finding::damage(self.dir(), &error)],
        };
        let mut findings = Vec::new();
        let mut find = |severity, problem: String, advice: &str| {
            let (place, advice) = (hook.to_string(), advice.to_owned());
            findings.push(Finding { severity, place, problem, advice });
        };
        let mut splits = layer.splits().iter().zip(&entry.splits);
        if let Some((first, of_first)) = splits.next()
            && let Some((_, other)) = splits.find(|(split, _)| split.token_dtype() != first.token_dtype())
        {
            let problem = format!("{} and {} store tokens in different dtypes", of_first.file, other.file);
            let advice = "they were written by different programs or runs: make the cache anew";
            find(Severity::Warning, problem, advice);
        }
        if !entry.lost.is_empty() {
            let problem = format!(
                "{} features were lost before this cache was made, the first is {}",
                entry.lost.len(),
                entry.lost[0]
            );
            find(Severity::Warning, problem, "make the cache anew from the model if you need them");
        }
        if entry.tokens == 0 {
            find(Severity::Warning, "no token was encoded".to_owned(), "check the data set and the flags");
        } else if activations(entry) == 0 {
            let problem = format!("no feature is active on any of {} tokens", entry.tokens);
            find(Severity::Warning, problem, "check that the autoencoder was trained at this hook point");
        } else {
            let stored = layer.stored().len();
            let silent = stored.saturating_sub(layer.features().count());
            let share = silent as f64 / stored.max(1) as f64;
            let severity = if share > 0.5 { Severity::Warning } else { Severity::Note };
            if silent > 0 {
                let problem =
                    format!("{silent} of {stored} features ({:.1} %) are never active", 100.0 * share);
                find(severity, problem, "expected of few samples or of dead latents");
            }
        }
        findings
    }
}

fn activations(entry: &HookManifest) -> u64 {
    entry.splits.iter().map(|split| split.n).sum()
}
