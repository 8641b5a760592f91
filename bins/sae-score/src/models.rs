//! The folders of models that scores are made with, and what tells one model from another.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use glob::Pattern;
use mm_data::hub::{self, RepoKind};
use model_kit::TorchArgs;
use rayon::prelude::*;
use stage_kit::{RunManifest, hash_bytes, hash_file};

/// Finds a model, of which `files` are read, and notes as what decides a score: its content, and the dtype it computes in.
///
/// # Errors
/// When it is not there, or cannot be read.
pub(crate) fn find(
    flag: &str,
    name: &str,
    files: &[&str],
    torch: TorchArgs,
    manifest: &mut RunManifest,
) -> Result<PathBuf> {
    let folder = hub::resolve(name, RepoKind::Model, files)?;
    let sha256 = fingerprint(&folder, files)?;
    manifest.settings.insert(format!("{flag} (SHA-256 of its files)"), sha256.clone());
    manifest.settings.insert("--dtype".to_owned(), torch.dtype.to_string());
    manifest.input(flag.trim_start_matches('-'), &folder.display(), sha256);
    Ok(folder)
}

/// One SHA-256 of all files of a folder that match, weights included: a model and one that was trained on from it have the same
/// configuration.
fn fingerprint(folder: &Path, files: &[&str]) -> Result<String> {
    let patterns = files.iter().map(|file| Pattern::new(file)).collect::<Result<Vec<_>, _>>()?;
    let failed = || format!("cannot read {}", folder.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        let name = entry.with_context(failed)?.file_name().to_string_lossy().into_owned();
        if patterns.iter().any(|pattern| pattern.matches(&name)) {
            names.push(name);
        }
    }
    names.sort();
    let line =
        |name: &String| -> Result<String> { Ok(format!("{} {name}\n", hash_file(&folder.join(name))?)) };
    let lines = names.par_iter().map(line).collect::<Result<Vec<_>>>()?;
    Ok(hash_bytes(lines.concat().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_tell_models_apart_and_what_is_not_read_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let now = || fingerprint(folder.path(), &["config.json", "*.safetensors*"]).unwrap();
        write("config.json", "{}");
        write("model.safetensors", "0123");
        let first = now();
        write("README.md", "about it");
        assert_eq!(now(), first);
        write("model.safetensors", "0124");
        assert_ne!(now(), first);
        write("model.safetensors", "0123");
        assert_eq!(now(), first);
        std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("a.safetensors"))
            .unwrap();
        assert_ne!(now(), first);
    }
}
