//! Read-only memory maps of cache files.
#![expect(unsafe_code, reason = "mapping a file into memory is unsafe in memmap2")]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::CacheError;

pub(crate) fn map(path: &Path) -> Result<Mmap, CacheError> {
    let file = File::open(path).map_err(CacheError::io("open", path))?;
    // SAFETY: the map is read-only, and this crate never changes a file in place: splits and runs are complete
    // before they are mapped, and a finished cache is replaced by renaming folders. Another program that
    // truncates a mapped file ends the process, as with any memory-mapped reader.
    unsafe { Mmap::map(&file) }.map_err(CacheError::io("map", path))
}
