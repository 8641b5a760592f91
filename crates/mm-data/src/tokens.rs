//! Files of token ids: what they say of themselves, and random access to pieces of them.
#![expect(unsafe_code, reason = "mapping a file into memory is unsafe in memmap2")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::files::DataFile;
use crate::sample::Sample;
use crate::{DataError, RecordError};

/// Tokens of a piece where neither the caller nor the file says how many, as in sparsify.
const CTX_LEN: NonZeroUsize = NonZeroUsize::new(2048).expect("2048 is not 0");

/// How a token file stores an id: unsigned, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenDtype {
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
}

impl TokenDtype {
    /// The smaller one that holds every id below `vocab_size`.
    pub fn for_vocabulary(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes of an id.
    pub fn size(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// `u16` or `u32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::U16 => "u16",
            Self::U32 => "u32",
        }
    }
}

/// How to read token files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenOptions {
    /// Tokens of a sample. `None` takes what the file's sidecar says, else 2048.
    pub ctx_len: Option<NonZeroUsize>,
    /// How ids are stored. `None` takes what the file's sidecar says, else u16, as sparsify.
    pub dtype: Option<TokenDtype>,
}

/// What `NAME.bin.json` beside `NAME.bin` says of it. [`crate::TokenWriter`] writes one; sparsify's files have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenFileInfo {
    /// How ids are stored.
    pub dtype: TokenDtype,
    /// How many ids the file holds.
    pub tokens: u64,
    /// Every id is below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<u32>,
    /// The id that stands before each text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos: Option<u32>,
    /// The id every piece of `ctx_len` begins with, where pieces begin with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos: Option<u32>,
    /// Tokens of a piece, where the file was cut into pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctx_len: Option<NonZeroUsize>,
    /// The model or tokenizer whose ids they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// SHA-256 (hex) of the file. With it a data set's fingerprint needs no pass over the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl TokenFileInfo {
    /// Nothing known but how ids are stored.
    pub fn new(dtype: TokenDtype) -> Self {
        Self {
            dtype,
            tokens: 0,
            vocab_size: None,
            eos: None,
            bos: None,
            ctx_len: None,
            model: None,
            sha256: None,
        }
    }

    /// Where it lies for a token file.
    pub fn path_for(file: &Path) -> PathBuf {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".json");
        file.with_file_name(name)
    }

    /// Reads the sidecar of a token file; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not what [`crate::TokenWriter`] writes.
    pub fn load(file: &Path) -> Result<Option<Self>, DataError> {
        let path = Self::path_for(file);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(DataError::io("read", &path))?;
        serde_json::from_slice(&text).map(Some).map_err(|source| DataError::TokenSidecar { path, source })
    }
}

/// One or more token files, each cut into pieces of the same length. A file's last incomplete piece is left out.
///
/// The files are mapped: a piece is read from disk when it is asked for.
#[derive(Debug)]
pub(crate) struct TokenSet {
    files: Vec<TokenFile>,
    ctx_len: usize,
}

#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    map: Mmap,
    dtype: TokenDtype,
    vocab_size: Option<u32>,
    sha256: Option<String>,
    /// Number of its first piece in the data set.
    first: usize,
    pieces: usize,
}

impl TokenSet {
    pub(crate) fn open(files: &[DataFile], options: TokenOptions) -> Result<Self, DataError> {
        let mut ctx_len = options.ctx_len;
        let mut opened = Vec::with_capacity(files.len());
        for DataFile { path, .. } in files {
            let info = TokenFileInfo::load(path)?;
            let file = open_file(path, info.as_ref(), options.dtype)?;
            if let Some(said) = info.as_ref().and_then(|info| info.ctx_len) {
                let cut_for_good = info.as_ref().is_some_and(|info| info.bos.is_some());
                // The option decides, unless each piece begins with a BOS that belongs there only.
                if ctx_len.is_some_and(|asked| asked != said && (cut_for_good || options.ctx_len.is_none())) {
                    let asked = ctx_len.unwrap_or(said);
                    return Err(DataError::TokenFile {
                        path: path.clone(),
                        expected: format!("pieces of {asked} tokens"),
                        got: format!("pieces of {said}, as {} says", TokenFileInfo::path_for(path).display()),
                    });
                }
                ctx_len = ctx_len.or(Some(said));
            }
            opened.push(file);
        }
        let ctx_len = ctx_len.unwrap_or(CTX_LEN).get();
        let mut first = 0;
        for file in &mut opened {
            file.first = first;
            file.pieces = file.map.len() / file.dtype.size() / ctx_len;
            first += file.pieces;
        }
        Ok(Self { files: opened, ctx_len })
    }

    pub(crate) fn len(&self) -> usize {
        self.files.last().map_or(0, |file| file.first + file.pieces)
    }

    /// Tokens of a piece.
    pub(crate) fn ctx_len(&self) -> usize {
        self.ctx_len
    }

    /// How each file's ids are stored, and the hash its sidecar gives, in the order of the files.
    pub(crate) fn facts(&self) -> impl Iterator<Item = (TokenDtype, Option<&str>)> {
        self.files.iter().map(|file| (file.dtype, file.sha256.as_deref()))
    }

    fn file_of(&self, index: usize) -> &TokenFile {
        // Files without a piece share their `first` with the next one: the last of them is the one with pieces.
        &self.files[self.files.partition_point(|file| file.first <= index) - 1]
    }

    /// The file piece `index` is in, and its number there.
    pub(crate) fn place(&self, index: usize) -> (PathBuf, usize) {
        let file = self.file_of(index);
        (file.path.clone(), index - file.first)
    }

    pub(crate) fn get(&self, index: usize) -> Result<Sample, DataError> {
        let file = self.file_of(index);
        let row = index - file.first;
        let length = self.ctx_len * file.dtype.size();
        let bytes = &file.map[row * length..(row + 1) * length];
        let tokens: Vec<u32> = match file.dtype {
            TokenDtype::U16 => {
                bytes.chunks_exact(2).map(|id| u32::from(u16::from_le_bytes([id[0], id[1]]))).collect()
            }
            TokenDtype::U32 => {
                bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect()
            }
        };
        if let Some(vocab_size) = file.vocab_size
            && let Some(at) = tokens.iter().position(|&id| id >= vocab_size)
        {
            let position = (row * self.ctx_len + at) as u64;
            let source = RecordError::Token { position, got: tokens[at], vocab_size };
            return Err(DataError::Record { path: file.path.clone(), row, source });
        }
        Ok(Sample { tokens: Some(tokens), ..Sample::default() })
    }
}

/// Maps a file and holds it against its sidecar and the dtype asked for.
fn open_file(
    path: &Path,
    info: Option<&TokenFileInfo>,
    asked: Option<TokenDtype>,
) -> Result<TokenFile, DataError> {
    let wrong = |expected: String, got: String| DataError::TokenFile { path: path.to_owned(), expected, got };
    let sidecar = || TokenFileInfo::path_for(path).display().to_string();
    let said = info.map(|info| info.dtype);
    if let (Some(asked), Some(said)) = (asked, said)
        && asked != said
    {
        return Err(wrong(
            format!("tokens of {} as asked for", asked.name()),
            format!("tokens of {}, as {} says", said.name(), sidecar()),
        ));
    }
    let dtype = asked.or(said).unwrap_or(TokenDtype::U16);
    let handle = File::open(path).map_err(DataError::io("open", path))?;
    let bytes = handle.metadata().map_err(DataError::io("read", path))?.len();
    let size = dtype.size() as u64;
    if bytes % size != 0 {
        return Err(wrong(
            format!("a multiple of {size} bytes, the size of a token of {}", dtype.name()),
            format!("{bytes} bytes"),
        ));
    }
    if let Some(info) = info
        && info.tokens != bytes / size
    {
        return Err(wrong(
            format!("{} tokens, as {} says", info.tokens, sidecar()),
            format!("{} tokens of {}", bytes / size, dtype.name()),
        ));
    }
    let ids = [("eos", info.and_then(|info| info.eos)), ("bos", info.and_then(|info| info.bos))];
    if let Some(vocab_size) = info.and_then(|info| info.vocab_size)
        && let Some((name, id)) =
            ids.iter().find_map(|(name, id)| Some((name, id.filter(|&id| id >= vocab_size)?)))
    {
        return Err(wrong(format!("ids below {vocab_size}"), format!("{name} {id} in {}", sidecar())));
    }
    // SAFETY: the map is read-only, and this crate never changes a token file in place: a finished file is
    // replaced by renaming. Another program that truncates a mapped file ends the process, as with any
    // memory-mapped reader.
    let map = unsafe { Mmap::map(&handle) }.map_err(DataError::io("map", path))?;
    Ok(TokenFile {
        path: path.to_owned(),
        map,
        dtype,
        vocab_size: info.and_then(|info| info.vocab_size),
        sha256: info.and_then(|info| info.sha256.clone()),
        first: 0,
        pieces: 0,
    })
}
