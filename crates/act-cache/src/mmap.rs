//! Read-only memory maps of cache files.
#![expect(unsafe_code, reason = "mapping a file into memory is unsafe in memmap2")]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::CacheError;

/// The bytes of a file, at an address aligned to 8 at least.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// Of a file that is mapped.
    Mapped(Mmap),
    /// In memory, so that tests need no file for every input: words, and how many of their bytes count.
    #[cfg(test)]
    Held(Vec<u64>, usize),
}

impl Bytes {
    pub(crate) fn map(path: &Path) -> Result<Self, CacheError> {
        map(path).map(Self::Mapped)
    }

    #[cfg(test)]
    pub(crate) fn held(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self::Held(words, bytes.len())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            #[cfg(test)]
            Self::Held(words, len) => &bytemuck::cast_slice(words)[..*len],
        }
    }
}

pub(crate) fn map(path: &Path) -> Result<Mmap, CacheError> {
    let file = File::open(path).map_err(CacheError::io("open", path))?;
    // SAFETY: the map is read-only, and this crate never changes a file in place: splits and runs are complete
    // before they are mapped, and a finished cache is replaced by renaming folders. Another program that
    // truncates a mapped file ends the process, as with any memory-mapped reader.
    unsafe { Mmap::map(&file) }.map_err(CacheError::io("map", path))
}

/// Tells the system that the pages of a map will not be needed soon. They are read again if they are.
pub(crate) fn release(bytes: &Bytes) {
    match bytes {
        #[cfg(unix)]
        Bytes::Mapped(map) => {
            // SAFETY: the map is shared and read-only, so that a page given back is read again from its file.
            let released = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // Advice that is not taken costs memory that can be reclaimed anyway.
            let _ = released;
        }
        #[cfg(not(unix))]
        Bytes::Mapped(_) => {}
        #[cfg(test)]
        Bytes::Held(..) => {}
    }
}
