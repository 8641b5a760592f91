//! Files that survive a power cut, and folders next to others.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::CacheError;

/// Writes `bytes` to a file that appears whole, on disk to stay, in place of the one that is there.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    write(path, bytes)?.persist(path).map_err(|error| CacheError::io("write", path)(error.error))?;
    sync_folder(folder_of(path))
}

/// The same, unless there is a file already, whoever made it.
pub(crate) fn write_if_absent(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    if path.exists() {
        return Ok(());
    }
    match write(path, bytes)?.persist_noclobber(path) {
        Ok(_) => sync_folder(folder_of(path)),
        Err(_) if path.exists() => Ok(()),
        Err(error) => Err(CacheError::io("write", path)(error.error)),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// A file beside `path` with `bytes` in it.
fn write(path: &Path, bytes: &[u8]) -> Result<NamedTempFile, CacheError> {
    let folder = folder_of(path);
    let io = |source| CacheError::Io { action: "write", path: path.to_owned(), source };
    let mut file = NamedTempFile::new_in(folder).map_err(io)?;
    #[cfg(unix)]
    {
        // tempfile's own choice is 0600.
        use std::os::unix::fs::PermissionsExt as _;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(io)?;
    }
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io)?;
    Ok(file)
}

/// Makes the names in a folder stay.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), CacheError> {
    // Only Unix lets a folder be opened for this.
    if cfg!(unix) {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(CacheError::io("write to disk", folder))?;
    }
    Ok(())
}

/// Every file below `folder`, by its path in it, parts separated by `/`.
pub(crate) fn all_below(folder: &Path) -> Result<Vec<(String, PathBuf)>, CacheError> {
    let mut found = Vec::new();
    let mut folders = vec![(String::new(), folder.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let list = |source| CacheError::Io { action: "list", path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(list)? {
            let entry = entry.map_err(list)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().map_err(list)?.is_dir() {
                folders.push((format!("{name}/"), entry.path()));
            } else {
                found.push((name, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Refuses a place that holds something.
pub(crate) fn check_free(dir: &Path) -> Result<(), CacheError> {
    let taken = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => dir.exists(),
    };
    if taken { Err(CacheError::Exists { path: dir.to_owned() }) } else { Ok(()) }
}

/// A fresh folder on the same file system as `dir`, readable as any other folder.
pub(crate) fn hidden_sibling(dir: &Path) -> Result<TempDir, CacheError> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(CacheError::io("create", parent))?;
    let name = dir.file_name().map_or_else(|| "cache".to_owned(), |name| name.to_string_lossy().into_owned());
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    {
        // tempfile's own choice is 0700; the umask decides as for any folder.
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(std::fs::Permissions::from_mode(0o777));
    }
    builder.tempdir_in(parent).map_err(CacheError::io("create a folder in", parent))
}
