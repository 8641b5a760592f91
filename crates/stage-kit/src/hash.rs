//! SHA-256 of files, as run manifests give it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::KitError;

/// The SHA-256 of a file's bytes, in lower-case hex. Reads it in pieces.
///
/// # Errors
/// When the file cannot be read.
pub fn hash_file(path: &Path) -> Result<String, KitError> {
    let mut file = File::open(path).map_err(KitError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).map_err(KitError::io("read", path))?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// One SHA-256 for several files, that of their hashes in this order.
///
/// # Errors
/// When one cannot be read.
pub fn hash_files(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<String, KitError> {
    let hashes = paths.into_iter().map(|path| hash_file(path.as_ref())).collect::<Result<Vec<_>, _>>()?;
    Ok(hash_bytes(hashes.join("\n").as_bytes()))
}

/// The SHA-256 of bytes, in lower-case hex.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::with_capacity(2 * digest.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_file(&path).unwrap(), abc);
        assert_eq!(hash_bytes(b"abc"), abc);
        let other = folder.path().join("other");
        std::fs::write(&other, "abd").unwrap();
        let both = hash_files([&path, &other]).unwrap();
        assert_eq!(both, hash_bytes(format!("{abc}\n{}", hash_bytes(b"abd")).as_bytes()));
        assert_ne!(both, hash_files([&other, &path]).unwrap());
        let error = hash_file(&folder.path().join("none")).unwrap_err();
        assert!(error.to_string().starts_with("cannot open "), "{error}");
    }
}
