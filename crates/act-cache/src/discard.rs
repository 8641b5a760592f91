//! [`discard_parts`]: parts that are not needed any more.

use std::path::Path;

use crate::CacheError;
use crate::part::{LOCK_FILE, lock, shards};

/// Removes the folder `parts` with everything in it, if it is there. It is renamed first, so that half of it never bears its
/// name; what a kill leaves of that is removed by the next call.
///
/// # Errors
/// When another process writes a part, or the folder cannot be listed, renamed or removed.
pub fn discard_parts(parts: &Path) -> Result<(), CacheError> {
    let name = parts.file_name().unwrap_or_default().to_string_lossy();
    let gone = parts.with_file_name(format!(".{name}.gone"));
    if gone.exists() {
        std::fs::remove_dir_all(&gone).map_err(CacheError::io("remove", &gone))?;
    }
    if !parts.exists() {
        return Ok(());
    }
    let mut locks = Vec::new();
    for shard in shards(parts)? {
        let path = shard.folder(parts);
        locks.push(lock(&path.join(LOCK_FILE))?.ok_or(CacheError::Locked { path })?);
    }
    std::fs::rename(parts, &gone).map_err(CacheError::io("rename", parts))?;
    std::fs::remove_dir_all(&gone).map_err(CacheError::io("remove", gone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheDescription, CacheJob, HookDescription, PartWriter, Shard};

    #[test]
    fn parts_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("cache.parts");
        let mut description = CacheDescription::default();
        let about = HookDescription { width: 8, k: 2, ..HookDescription::default() };
        description.hooks.insert(sae_types::HookPoint::layer(1), about);
        let writer = PartWriter::open(&parts, &CacheJob::new(description), Shard::WHOLE, 1 << 20).unwrap();
        let error = discard_parts(&parts).unwrap_err();
        assert!(matches!(error, CacheError::Locked { .. }), "{error}");
        assert!(parts.exists());
        drop(writer);
        std::fs::create_dir_all(folder.path().join(".cache.parts.gone/0-of-1")).unwrap();
        discard_parts(&parts).unwrap();
        discard_parts(&parts).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
