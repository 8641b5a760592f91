//! [`CacheWriter`]: codes in, sample after sample; a complete cache out, or nothing.

use std::path::{Path, PathBuf};

use sae_types::SampleId;
use serde_json::Value;
use tempfile::TempDir;

use crate::files::{check_free, hidden_sibling};
use crate::{
    ActivationDtype, CacheDescription, CacheError, CacheJob, Manifest, PartWriter, SampleCodes, SampleRecord,
    Shard, check, merge,
};

/// Where the only part grows, within the hidden folder.
const PARTS_FOLDER: &str = ".parts";

/// How a cache is written. None of it but `dtype` and `n_splits` shows in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// Into how many files each hook point's latents are split.
    pub n_splits: usize,
    /// How activations are stored. Those that round to zero in 16 bits are left out.
    pub dtype: ActivationDtype,
    /// Bytes that buffered codes may take; more are sorted and spilled to disk.
    pub memory_budget: usize,
}

impl Default for WriterOptions {
    /// 5 splits, f32, 1 GiB.
    fn default() -> Self {
        Self { n_splits: 5, dtype: ActivationDtype::F32, memory_budget: 1 << 30 }
    }
}

/// Writes a cache in one go. For work that must survive a kill, or that several processes share, there are
/// [`PartWriter`] and [`merge()`].
///
/// All happens in a hidden folder beside the target, renamed by [`CacheWriter::finish`] and removed if that is never reached.
#[derive(Debug)]
pub struct CacheWriter {
    dir: PathBuf,
    temp: TempDir,
    part: PartWriter,
    next: SampleId,
}

impl CacheWriter {
    /// Starts a cache that will stand at `dir`, which must not exist or be empty.
    ///
    /// # Errors
    /// When `dir` holds something, the description or the options make no cache, or files cannot be made.
    pub fn create(
        dir: &Path,
        description: CacheDescription,
        options: WriterOptions,
    ) -> Result<Self, CacheError> {
        let WriterOptions { n_splits, dtype, memory_budget } = options;
        let job = CacheJob { n_splits, dtype, ..CacheJob::new(description) };
        check::job(&job)?;
        check_free(dir)?;
        let temp = hidden_sibling(dir)?;
        let part = PartWriter::open(&temp.path().join(PARTS_FOLDER), &job, Shard::WHOLE, memory_budget)?;
        Ok(Self { dir: dir.to_owned(), temp, part, next: SampleId(0) })
    }

    /// Adds a sample, as [`PartWriter::push`] does.
    ///
    /// # Errors
    /// As [`PartWriter::push`].
    pub fn push(&mut self, record: &SampleRecord, codes: &[SampleCodes<'_>]) -> Result<(), CacheError> {
        self.part.push(record, None, codes)?;
        self.next = SampleId(record.sample.0.saturating_add(1));
        self.part.advance(self.next, &Value::Null)?;
        Ok(())
    }

    /// Makes the cache of what was pushed and moves it to its place.
    ///
    /// # Errors
    /// When files cannot be written, or something appeared at the cache's place; nothing is left behind then.
    pub fn finish(self) -> Result<Manifest, CacheError> {
        let Self { dir, temp, part, next } = self;
        let parts = temp.path().join(PARTS_FOLDER);
        part.finish(next, &Value::Null)?;
        let manifest = merge(&parts, temp.path())?;
        std::fs::remove_dir_all(&parts).map_err(CacheError::io("remove", parts))?;
        // Renaming replaces an empty folder and fails on any other.
        std::fs::rename(temp.path(), &dir).map_err(CacheError::io("move the finished cache to", &dir))?;
        let _ = temp.keep();
        Ok(manifest)
    }
}
