//! The autoencoders of a run, checked against the model.

use std::collections::BTreeMap;
use std::path::Path;

use act_cache::{HookDescription, SaeSource};
use anyhow::{Context, Result, bail, ensure};
use lmm_hooks::LlavaNext;
use mm_data::hub::{self, RepoKind};
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

/// Reads a filters file.
pub(crate) fn read_filters(path: &Path) -> Result<Filters> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read filters {}", path.display()))?;
    let filters: Filters =
        serde_json::from_str(&text).with_context(|| format!("{} is no filters file", path.display()))?;
    ensure!(!filters.is_empty(), "{} names no hook point", path.display());
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
    model: &Path,
) -> Result<BTreeMap<HookPoint, CachedSae>> {
    let root = hub::resolve(source, RepoKind::Model, &["*cfg.json", "*sae.safetensors"])?;
    let mut found = Sae::find(&root)?;
    if let Some(filters) = filters {
        for hook in filters.hooks() {
            ensure!(
                found.contains_key(hook),
                "filters name {hook}, but {} has no SAE for it",
                root.display()
            );
        }
        found.retain(|hook, _| filters.features(hook).is_some());
    }
    let mut saes = BTreeMap::new();
    for (hook, folder) in found {
        let sae = Sae::load(&folder)?;
        let width = network.width(&hook)?;
        ensure!(
            sae.d_in() as i64 == width,
            "{} reads vectors of {}, but {hook} of {} gives {width}",
            folder.display(),
            sae.d_in(),
            model.display()
        );
        if let Some(filters) = filters {
            filters.check_width(&hook, sae.num_latents())?;
        }
        // A Hub id stays one: the folder of its download is another on every machine.
        let below = folder.strip_prefix(&root).unwrap_or(&folder);
        let path = Path::new(source).join(below).display().to_string();
        let sha256 = hash_file(&folder.join("sae.safetensors"))?;
        let config_sha256 = hash_file(&folder.join("cfg.json"))?;
        let source = SaeSource { path: path.trim_end_matches('/').to_owned(), sha256 };
        let reads = if sae.config().transcode { network.input_point(&hook)? } else { hook.clone() };
        saes.insert(hook, CachedSae { sae, reads, source, config_sha256 });
    }
    Ok(saes)
}
