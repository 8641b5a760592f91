//! [`Buffer`]: the entries of one hook point until they are spilled as a sorted run.

use std::path::Path;

use rayon::slice::ParallelSliceMut;

use crate::split::TokenDtype;
use crate::split_writer::SplitWriter;
use crate::{ActivationDtype, CacheError};

/// One activation, with all its coordinates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) latent: u32,
    pub(crate) sample: u32,
    pub(crate) token: u32,
    pub(crate) value: f32,
}

/// Entries in the order of their samples and tokens, as many as there is room for.
#[derive(Debug)]
pub(crate) struct Buffer {
    entries: Vec<Entry>,
    capacity: usize,
}

impl Buffer {
    /// The fewest entries a buffer has room for.
    const SMALLEST: usize = 64;

    /// A buffer of at most `bytes`. The memory is taken as it is filled, where the operating system allows.
    pub(crate) fn new(bytes: usize) -> Self {
        let capacity = (bytes / size_of::<Entry>()).max(Self::SMALLEST);
        Self { entries: Vec::new(), capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() == self.capacity
    }

    pub(crate) fn has_room_for(&self, additional: usize) -> bool {
        self.capacity - self.entries.len() >= additional
    }

    /// Takes the memory, all at once: growing would hold the old and the new block together.
    pub(crate) fn reserve(&mut self) -> Result<(), CacheError> {
        let bytes = self.capacity * size_of::<Entry>();
        self.entries.try_reserve_exact(self.capacity).map_err(|_| CacheError::Memory { bytes })
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Writes the entries to `path` as a split of all `width` latents and empties the buffer. Gives their number and the
    /// file's hash.
    ///
    /// Samples and tokens only rise from one run to the next, so the entries of a latent in one run precede those in the
    /// next, and joining runs is appending.
    pub(crate) fn spill(
        &mut self,
        path: &Path,
        width: usize,
        activation_dtype: ActivationDtype,
    ) -> Result<(u64, String), CacheError> {
        // No two entries share their coordinates, so the order is the same however the sort goes about it.
        self.entries.par_sort_unstable_by_key(|entry| (entry.latent, entry.sample, entry.token));
        let largest = self.entries.iter().map(|entry| entry.token).max().unwrap_or(0);
        let n = self.entries.len() as u64;
        let token_dtype = TokenDtype::for_largest(largest);
        let mut split = SplitWriter::create(path, 0..width, n, token_dtype, activation_dtype)?;
        for entry in &self.entries {
            split.push(entry.latent as usize, entry.sample, entry.token, entry.value)?;
        }
        self.entries.clear();
        Ok((n, split.finish()?))
    }
}
