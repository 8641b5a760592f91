//! The token ids of a cache: [`TokensWriter`] and [`CachedTokens`].

use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;

use crate::header::{Header, Layout};
use crate::mmap::Bytes;
use crate::tensor_file::TensorFile;
use crate::{CacheError, hash, mmap};

pub(crate) const TOKENS_FILE: &str = "tokens.safetensors";

const OFFSETS: &str = "sample_offsets";
const TOKEN_ID: &str = "token_id";

/// Writes the token ids of one sample after the other.
pub(crate) struct TokensWriter {
    file: TensorFile,
    n_samples: u64,
    n_tokens: u64,
    samples_written: u64,
    tokens_written: u64,
}

impl TokensWriter {
    /// Starts the file of `n_samples` samples that have `n_tokens` tokens in all.
    pub(crate) fn create(path: &Path, n_samples: u64, n_tokens: u64) -> Result<Self, CacheError> {
        let layout = Layout::new(&[
            (OFFSETS, Dtype::U64, vec![n_samples as usize + 1]),
            (TOKEN_ID, Dtype::U32, vec![n_tokens as usize]),
        ]);
        let mut file = TensorFile::create(path, &layout)?;
        file.write(0, &0u64.to_le_bytes())?;
        Ok(Self { file, n_samples, n_tokens, samples_written: 0, tokens_written: 0 })
    }

    /// Adds the ids of the next sample.
    pub(crate) fn push(&mut self, ids: &[u32]) -> Result<(), CacheError> {
        self.file.write(1, bytemuck::cast_slice(ids))?;
        self.samples_written += 1;
        self.tokens_written += ids.len() as u64;
        self.file.write(0, &self.tokens_written.to_le_bytes())
    }

    /// Completes the file, on disk to stay, and gives its hash.
    ///
    /// # Panics
    /// When there were not as many samples and tokens as told.
    pub(crate) fn finish(self) -> Result<String, CacheError> {
        let path = self.file.path().to_owned();
        let told = (self.n_samples, self.n_tokens);
        assert_eq!(
            (self.samples_written, self.tokens_written),
            told,
            "samples and tokens of {}",
            path.display()
        );
        self.file.finish()?;
        Ok(hash::sha256(&mmap::map(&path)?))
    }
}

/// The token ids of all samples, memory-mapped.
#[derive(Debug)]
pub struct CachedTokens {
    path: PathBuf,
    map: Bytes,
    offsets: Range<usize>,
    ids: Range<usize>,
}

impl CachedTokens {
    /// Maps the ids of samples with `lengths` tokens.
    pub(crate) fn open(path: &Path, lengths: impl ExactSizeIterator<Item = u32>) -> Result<Self, CacheError> {
        Self::of_bytes(path, Bytes::map(path)?, lengths)
    }

    /// As [`CachedTokens::open`], of the bytes of the file.
    pub(crate) fn of_bytes(
        path: &Path,
        map: Bytes,
        lengths: impl ExactSizeIterator<Item = u32>,
    ) -> Result<Self, CacheError> {
        let header = Header::read(path, &map)?;
        let offsets = header.column(OFFSETS, Dtype::U64, lengths.len().checked_add(1))?;
        let starts: &[u64] = bytemuck::cast_slice(&map[offsets.clone()]);
        let mut end = 0;
        let mut fits = starts[0] == 0;
        for (&got, length) in starts[1..].iter().zip(lengths) {
            end += u64::from(length);
            fits &= got == end;
        }
        if !fits {
            return Err(CacheError::Tensor {
                path: path.to_owned(),
                tensor: OFFSETS,
                problem: "does not fit the numbers of tokens in samples.jsonl".to_owned(),
                expected: "0 and the running sum of n_tokens".to_owned(),
            });
        }
        let ids = header.column(TOKEN_ID, Dtype::U32, usize::try_from(end).ok())?;
        Ok(Self { path: path.to_owned(), offsets, ids, map })
    }

    /// The ids of the `line`-th sample of samples.jsonl, `[n_tokens]`.
    ///
    /// # Panics
    /// When there is no such sample.
    #[track_caller]
    pub fn of_line(&self, line: usize) -> &[u32] {
        let offsets: &[u64] = bytemuck::cast_slice(&self.map[self.offsets.clone()]);
        let ids: &[u32] = bytemuck::cast_slice(&self.map[self.ids.clone()]);
        &ids[offsets[line] as usize..offsets[line + 1] as usize]
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn sha256(&self) -> String {
        hash::sha256(&self.map)
    }
}
