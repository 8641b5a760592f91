//! The autoencoders of a run, checked against the model.

use std::collections::BTreeMap;
use std::path::Path;

use act_cache::{HookDescription, SaeSource};
use anyhow::{Result, bail};
use lmm_hooks::LlavaNext;
use model_kit::{FittingSae, SaeFolders};
use sae_core::Sae;
use sae_types::{Filters, HookPoint};
use stage_kit::hash_file;

/// An autoencoder or transcoder whose codes are stored.
#[derive(Debug)]
pub(crate) struct CachedSae {
    pub(crate) sae: Sae,
    /// Where it reads: its own hook point, or the input of that module.
    pub(crate) reads: HookPoint,
    source: SaeSource,
    /// Hash of its configuration, which holds what the weights do not: k, thresholds.
    pub(crate) config_sha256: String,
}

impl CachedSae {
    /// As the cache's manifest has it.
    pub(crate) fn describe(&self, hook: &HookPoint) -> HookDescription {
        let reads = (self.reads != *hook).then(|| self.reads.clone());
        let (width, k) = (self.sae.num_latents(), self.sae.k());
        HookDescription { sae: self.source.clone(), width, k, reads }
    }
}

/// Reads a filters file, in which every hook point has features.
pub(crate) fn read_filters(path: &Path) -> Result<Filters> {
    let filters = Filters::read(path, |bytes| serde_json::from_slice(bytes))?;
    if let Some(hook) = filters.hooks().find(|hook| filters.features(hook).is_none_or(<[_]>::is_empty)) {
        bail!("{} names no feature of {hook}", path.display());
    }
    Ok(filters)
}

/// Every autoencoder below `source`, a folder or Hub id, that the filters, if any, ask for.
pub(crate) fn load(
    source: &str,
    filters: Option<&Filters>,
    network: &LlavaNext,
) -> Result<BTreeMap<HookPoint, CachedSae>> {
    let found = SaeFolders::find(source)?.only(filters.into_iter().flat_map(Filters::hooks))?;
    let root = found.root();
    let mut saes = BTreeMap::new();
    for (hook, FittingSae { sae, folder, reads }) in found.load(network)? {
        if let Some(filters) = filters {
            filters.check_width(&hook, sae.num_latents())?;
        }
        // A Hub id stays one: the folder of its download is another on every machine.
        let below = folder.strip_prefix(root).unwrap_or(&folder);
        let path = Path::new(source).join(below).display().to_string();
        let sha256 = hash_file(&folder.join("sae.safetensors"))?;
        let config_sha256 = hash_file(&folder.join("cfg.json"))?;
        let source = SaeSource { path: path.trim_end_matches('/').to_owned(), sha256 };
        saes.insert(hook, CachedSae { sae, reads, source, config_sha256 });
    }
    Ok(saes)
}
