//! delphi's `config.json`, beside the splits of each hook point.
//!
//! Mirrors `CacheConfig` of eai-delphi 0.1.3 (`delphi/config.py`) with the `model_name` that `LatentCache.save_config` adds.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::CacheError;
use crate::files::write_durably;

pub(super) const CONFIG_FILE: &str = "config.json";

/// In the order delphi writes them. Unknown keys are ignored, absent ones empty: only names are taken from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct DelphiConfig {
    pub(super) dataset_repo: String,
    pub(super) dataset_split: String,
    pub(super) dataset_name: String,
    pub(super) dataset_column: String,
    pub(super) batch_size: u64,
    pub(super) cache_ctx_len: u64,
    pub(super) n_tokens: u64,
    pub(super) n_splits: u64,
    pub(super) model_name: String,
}

impl DelphiConfig {
    /// The file of a hook point's folder, if there is one.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CacheError> {
        let path = folder.join(CONFIG_FILE);
        match std::fs::read(&path) {
            Ok(text) => Self::parse(&path, &text).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::io("read", path)(error)),
        }
    }

    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self, CacheError> {
        serde_json::from_slice(text).map_err(|source| CacheError::Json {
            path: path.to_owned(),
            line: None,
            source,
        })
    }

    /// As `json.dump(config, file, indent=4)` writes it.
    pub(super) fn write(&self, folder: &Path) -> Result<(), CacheError> {
        let path = folder.join(CONFIG_FILE);
        let mut text = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        self.serialize(&mut serde_json::Serializer::with_formatter(&mut text, indent))
            .map_err(|source| CacheError::Json { path: path.clone(), line: None, source })?;
        write_durably(&path, &text)
    }
}
