//! [`TokenWriter`]: token ids to a file that sparsify's `MemmapDataset` and this crate read.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::DataError;
use crate::fingerprint::hex;
use crate::tokens::{TokenDtype, TokenFileInfo};

/// Streams token ids into `NAME.bin`, raw and little endian, and says in `NAME.bin.json` what they are.
///
/// Both are written as `.{name}.part` beside their place and appear when [`TokenWriter::finish`] returns; dropped
/// before, it leaves nothing.
#[derive(Debug)]
pub struct TokenWriter {
    target: PathBuf,
    part: PathBuf,
    /// `None` once finished.
    file: Option<BufWriter<File>>,
    info: TokenFileInfo,
    hasher: Sha256,
    buffer: Vec<u8>,
}

impl TokenWriter {
    /// Starts a file; its folder must exist. `tokens` and `sha256` of `info` are counted here.
    ///
    /// # Errors
    /// When the file cannot be made, or `info`'s dtype cannot hold the ids of its vocabulary.
    pub fn create(path: &Path, info: TokenFileInfo) -> Result<Self, DataError> {
        if let Some(vocab_size) = info.vocab_size
            && info.dtype == TokenDtype::U16
            && TokenDtype::for_vocabulary(vocab_size as usize) == TokenDtype::U32
        {
            return Err(DataError::TokenFile {
                path: path.to_owned(),
                expected: "a vocabulary of at most 65536 ids, for u16".to_owned(),
                got: format!("{vocab_size} ids"),
            });
        }
        let part = part_of(path);
        let file = File::create(&part).map_err(DataError::io("create", &part))?;
        Ok(Self {
            target: path.to_owned(),
            part,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            info: TokenFileInfo { tokens: 0, sha256: None, ..info },
            hasher: Sha256::new(),
            buffer: Vec::new(),
        })
    }

    /// Appends ids.
    ///
    /// # Errors
    /// When an id is not below the vocabulary's size or what the dtype holds, or writing fails.
    pub fn push(&mut self, ids: &[u32]) -> Result<(), DataError> {
        let limit = match self.info.dtype {
            TokenDtype::U16 => 1 << 16,
            TokenDtype::U32 => 1 << 32,
        };
        let limit = self.info.vocab_size.map_or(limit, |size| limit.min(u64::from(size)));
        if let Some(at) = ids.iter().position(|&id| u64::from(id) >= limit) {
            return Err(DataError::TokenFile {
                path: self.target.clone(),
                expected: format!("ids below {limit}"),
                got: format!("{} as token {}", ids[at], self.info.tokens + at as u64),
            });
        }
        self.buffer.clear();
        match self.info.dtype {
            TokenDtype::U16 => self.buffer.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            TokenDtype::U32 => self.buffer.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
        }
        self.hasher.update(&self.buffer);
        self.info.tokens += ids.len() as u64;
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(&self.buffer).map_err(DataError::io("write", &self.part))
    }

    /// How many ids were appended.
    pub fn tokens(&self) -> u64 {
        self.info.tokens
    }

    /// Writes what is left and gives both files their names.
    ///
    /// # Errors
    /// When writing or renaming fails.
    pub fn finish(mut self) -> Result<TokenFileInfo, DataError> {
        if let Some(file) = self.file.take() {
            let file =
                file.into_inner().map_err(|error| DataError::io("write", &self.part)(error.into_error()))?;
            file.sync_all().map_err(DataError::io("write", &self.part))?;
        }
        let mut info = self.info.clone();
        info.sha256 = Some(hex(&std::mem::take(&mut self.hasher).finalize()));
        let sidecar = TokenFileInfo::path_for(&self.target);
        let part = part_of(&sidecar);
        let mut text =
            serde_json::to_string(&info).map_err(|error| DataError::io("write", &sidecar)(error.into()))?;
        text.push('\n');
        fs::write(&part, text).map_err(DataError::io("write", &part))?;
        // The sidecar first: without it u32 would be read as u16.
        fs::rename(&part, &sidecar).map_err(DataError::io("rename to", &sidecar))?;
        fs::rename(&self.part, &self.target).map_err(DataError::io("rename to", &self.target))?;
        Ok(info)
    }
}

impl Drop for TokenWriter {
    fn drop(&mut self) {
        // Gone already after a finish.
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(part_of(&TokenFileInfo::path_for(&self.target)));
    }
}

fn part_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.part"))
}
