//! Entries of one hook point on their way to the splits: a buffer, and sorted runs spilled to one file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;
use rayon::slice::ParallelSliceMut;

use crate::{CacheError, mmap};

/// One activation, with all its coordinates.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) latent: u32,
    pub(crate) sample: u32,
    pub(crate) token: u32,
    pub(crate) value: f32,
}

/// Sorted runs in the order they were pushed: the samples of one run all precede those of the next.
pub(crate) struct Runs {
    buffer: Vec<Entry>,
    path: PathBuf,
    file: Option<BufWriter<File>>,
    /// Entries within the file.
    spilled: Vec<Range<usize>>,
}

/// Runs complete and ready to be joined.
pub(crate) struct SortedRuns {
    last: Vec<Entry>,
    map: Option<Mmap>,
    spilled: Vec<Range<usize>>,
}

impl Runs {
    /// Spills to `path` when told to.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { buffer: Vec::new(), path, file: None, spilled: Vec::new() }
    }

    /// How many entries are held in memory.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Makes room for `additional` entries, growing by at least a quarter of what is there.
    pub(crate) fn reserve(&mut self, additional: usize) {
        if self.buffer.capacity() - self.buffer.len() < additional {
            self.buffer.reserve_exact(additional.max(self.buffer.len() / 4));
        }
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.buffer.push(entry);
    }

    /// Writes the buffer as a run and gives its memory back.
    pub(crate) fn spill(&mut self) -> Result<(), CacheError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        sort(&mut self.buffer);
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = File::create(&self.path).map_err(CacheError::io("create", &self.path))?;
                none.insert(BufWriter::new(file))
            }
        };
        file.write_all(bytemuck::cast_slice(&self.buffer)).map_err(CacheError::io("write", &self.path))?;
        let start = self.spilled.last().map_or(0, |run| run.end);
        self.spilled.push(start..start + self.buffer.len());
        self.buffer = Vec::new();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<SortedRuns, CacheError> {
        sort(&mut self.buffer);
        let map = match self.file.take() {
            Some(mut file) => {
                file.flush().map_err(CacheError::io("write", &self.path))?;
                Some(mmap::map(&self.path)?)
            }
            None => None,
        };
        Ok(SortedRuns { last: self.buffer, map, spilled: self.spilled })
    }
}

impl SortedRuns {
    /// Per run the entries of latents `start .. end`.
    pub(crate) fn latents(&self, start: usize, end: usize) -> Vec<&[Entry]> {
        let entries: &[Entry] = self.map.as_deref().map_or(&[], bytemuck::cast_slice);
        let spilled = self.spilled.iter().map(|run| &entries[run.clone()]);
        let cut =
            |run: &'_ [Entry], latent: usize| run.partition_point(|entry| (entry.latent as usize) < latent);
        spilled
            .chain([self.last.as_slice()])
            .map(|run| &run[cut(run, start)..cut(run, end)])
            .filter(|run| !run.is_empty())
            .collect()
    }
}

/// No two entries share their coordinates, so the order is the same however the sort goes about it.
fn sort(entries: &mut [Entry]) {
    entries.par_sort_unstable_by_key(|entry| (entry.latent, entry.sample, entry.token));
}
