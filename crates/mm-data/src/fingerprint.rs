//! [`Fingerprint`]: what identifies a data set's content.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::DataError;

/// Hashes facts about a data set's files, one after another; [`crate::Dataset::fingerprint`] says which.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(crate) fn new(kind: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(format!("mm-data 1 {kind}\n"));
        Self(hasher)
    }

    /// A file known by name and size.
    pub(crate) fn file(&mut self, name: &str, path: &Path) -> Result<(), DataError> {
        let size = std::fs::metadata(path).map_err(DataError::io("read", path))?.len();
        // A name's length first, so that no name can pass for the next line.
        self.0.update(format!("{} {name} {size}\n", name.len()));
        Ok(())
    }

    /// A file and all its bytes.
    pub(crate) fn content(&mut self, name: &str, path: &Path) -> Result<(), DataError> {
        self.file(name, path)?;
        self.0.update(hash_of(path)?);
        Ok(())
    }

    /// A parquet file and its footer.
    pub(crate) fn parquet(&mut self, name: &str, path: &Path) -> Result<(), DataError> {
        self.file(name, path)?;
        self.0.update(Sha256::digest(footer(path).map_err(DataError::io("read the footer of", path))?));
        Ok(())
    }

    /// A token file whose hash is known, or else is taken of all its bytes.
    pub(crate) fn tokens(&mut self, name: &str, path: &Path, sha256: Option<&str>) -> Result<(), DataError> {
        self.file(name, path)?;
        match sha256 {
            Some(known) => self.line(known),
            None => self.line(&hex(&hash_of(path)?)),
        }
        Ok(())
    }

    /// A line of text.
    pub(crate) fn line(&mut self, text: &str) {
        self.0.update(format!("{text}\n"));
    }

    /// How many records, and which.
    pub(crate) fn indices(&mut self, indices: &[u32]) {
        self.line(&indices.len().to_string());
        for index in indices {
            self.0.update(index.to_le_bytes());
        }
    }

    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Bytes as lower-case hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a whole file.
fn hash_of(path: &Path) -> Result<[u8; 32], DataError> {
    let mut file = File::open(path).map_err(DataError::io("open", path))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(DataError::io("read", path))?;
    Ok(hasher.finalize().into())
}

/// The metadata at the end of a parquet file, whose length stands in the last eight bytes before `PAR1`.
fn footer(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut tail = [0; 8];
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut tail)?;
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])) + 8;
    file.seek(SeekFrom::Start(size.saturating_sub(length)))?;
    let mut footer = Vec::new();
    file.read_to_end(&mut footer)?;
    Ok(footer)
}
