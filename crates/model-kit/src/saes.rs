//! [`SaeFolders`]: the autoencoders that a flag names, found, noted, and read to fit a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lmm_hooks::LlavaNext;
use mm_data::hub::{self, RepoKind};
use sae_core::Sae;
use sae_types::HookPoint;
use stage_kit::{RunManifest, hash_file};

use crate::ModelError;

/// What of a Hub repository autoencoders need.
const SAE_FILES: [&str; 2] = ["*cfg.json", "*sae.safetensors"];

/// The folders of autoencoders by hook point, not yet read.
#[derive(Clone, Debug)]
pub struct SaeFolders {
    /// The argument.
    saes: String,
    root: PathBuf,
    folders: BTreeMap<HookPoint, PathBuf>,
}

/// An autoencoder or transcoder whose width is the model's.
#[derive(Debug)]
pub struct FittingSae {
    /// It.
    pub sae: Sae,
    /// Where it lies.
    pub folder: PathBuf,
    /// Where it reads: its own hook point, or the input of that module.
    pub reads: HookPoint,
}

impl SaeFolders {
    /// Finds all autoencoders below a folder, or of a Hub id, which is downloaded if need be.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(saes: &str) -> Result<Self, ModelError> {
        let root = hub::resolve(saes, RepoKind::Model, &SAE_FILES)
            .map_err(|source| ModelError::FindSaes { saes: saes.to_owned(), source: Box::new(source) })?;
        let folders = Sae::find(&root)
            .map_err(|source| ModelError::ReadSae { folder: root.clone(), source: Box::new(source) })?;
        Ok(Self { saes: saes.to_owned(), root, folders })
    }

    /// Those at the hook points named, or all where none is named.
    ///
    /// # Errors
    /// When there is none at a hook point named.
    pub fn only<'h>(mut self, named: impl IntoIterator<Item = &'h HookPoint>) -> Result<Self, ModelError> {
        let named: Vec<&HookPoint> = named.into_iter().collect();
        if let Some(&hook) = named.iter().find(|hook| !self.folders.contains_key(**hook)) {
            let known = self.folders.into_keys().collect();
            return Err(ModelError::NoSae { saes: self.saes, hook: hook.clone(), known });
        }
        self.folders.retain(|hook, _| named.is_empty() || named.contains(&hook));
        Ok(self)
    }

    /// The folders.
    pub fn folders(&self) -> &BTreeMap<HookPoint, PathBuf> {
        &self.folders
    }

    /// The folder that all of them are below.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Notes weights and configurations, which hold what weights do not (k, thresholds, what a transcoder is), by their hashes.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn note(&self, run: &mut RunManifest) -> Result<(), ModelError> {
        for (hook, folder) in &self.folders {
            for (role, file) in [("sae", "sae.safetensors"), ("cfg.json of", "cfg.json")] {
                let hash = hash_file(&folder.join(file));
                let hash = hash.map_err(|source| ModelError::Hash { source: Box::new(source) })?;
                run.input(&format!("{role} {hook}"), &folder.display(), hash);
            }
        }
        Ok(())
    }

    /// Reads them all.
    ///
    /// # Errors
    /// When one cannot be read or is of another width than the model, or the model lacks its hook point or the input of a transcoder's
    /// module.
    pub fn load(&self, network: &LlavaNext) -> Result<BTreeMap<HookPoint, FittingSae>, ModelError> {
        let mut saes = BTreeMap::new();
        for (hook, folder) in &self.folders {
            let sae = Sae::load(folder)
                .map_err(|source| ModelError::ReadSae { folder: folder.clone(), source: Box::new(source) })?;
            let unknown = |source| ModelError::SaeHook { folder: folder.clone(), source: Box::new(source) };
            let expected = network.width(hook).map_err(unknown)?;
            if sae.d_in() as i64 != expected {
                let (folder, hook, got) = (folder.clone(), hook.clone(), sae.d_in());
                return Err(ModelError::SaeWidth { folder, hook, expected, got });
            }
            let reads = if sae.config().transcode {
                network.input_point(hook).map_err(unknown)?
            } else {
                hook.clone()
            };
            saes.insert(hook.clone(), FittingSae { sae, folder: folder.clone(), reads });
        }
        Ok(saes)
    }
}

#[cfg(test)]
mod tests {
    use sae_core::{SaeConfig, SaeTensors, WeightDtype};

    use super::*;

    fn write(folder: &Path, k: usize) {
        let tensors = SaeTensors {
            encoder_weight: vec![0.5; 6],
            encoder_bias: vec![0.0; 3],
            decoder_weight: vec![1.0; 6],
            decoder_bias: vec![0.0; 2],
            skip_weight: None,
        };
        let sae = Sae::from_parts(SaeConfig::new(2, 3, k), tensors).unwrap();
        sae.save(folder, WeightDtype::F32).unwrap();
    }

    #[test]
    fn what_is_found_is_told_apart_by_weights_and_configuration() {
        let root = tempfile::tempdir().unwrap();
        let saes = root.path().to_str().unwrap();
        for layer in [1, 2] {
            write(&root.path().join(format!("model.layers.{layer}")), 1);
        }
        let found = SaeFolders::find(saes).unwrap();
        assert_eq!(found.folders().len(), 2);
        assert_eq!(found.clone().only([]).unwrap().folders().len(), 2);
        let second = HookPoint::layer(2);
        let only = found.clone().only([&second]).unwrap();
        assert_eq!(only.folders().keys().collect::<Vec<_>>(), [&second]);
        let error = found.only([&HookPoint::layer(7)]).unwrap_err().to_string();
        assert!(error.contains("for model.layers.7, it has model.layers.1, model.layers.2"), "{error}");

        let noted = |found: &SaeFolders| {
            let mut run = RunManifest::start("test", "0");
            found.note(&mut run).unwrap();
            run.inputs.iter().map(|input| (input.role.clone(), input.sha256.clone())).collect::<Vec<_>>()
        };
        let before = noted(&only);
        // The same weights, another k.
        write(&root.path().join("model.layers.2"), 2);
        let after = noted(&only);
        assert_eq!(before[0], after[0]);
        assert_eq!(
            (before[1].0.as_str(), after[1].0.as_str()),
            ("cfg.json of model.layers.2", "cfg.json of model.layers.2")
        );
        assert_ne!(before[1].1, after[1].1);
    }
}
