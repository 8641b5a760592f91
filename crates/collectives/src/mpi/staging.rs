//! [`Staging`]: the memory that MPI reads from and writes to.

use std::ffi::c_int;

use crate::call::WORDS;

/// Owned by the backend, so that it can be left to MPI for good when a request does not end: MPI may write into it at any later time.
#[derive(Debug, Default)]
pub(super) struct Staging {
    /// What this rank gives; 64-bit words, which every element type can lie in.
    pub(super) own: Vec<u64>,
    own_bytes: usize,
    /// What comes back.
    pub(super) all: Vec<u64>,
    /// Lengths of parts of `all`, in bytes, in the order of ranks.
    pub(super) counts: Vec<c_int>,
    /// Where those parts start.
    pub(super) places: Vec<c_int>,
    /// Announcements, apart from data.
    pub(super) own_words: Vec<u64>,
    pub(super) all_words: Vec<u64>,
}

impl Staging {
    /// Copies `bytes` to where MPI reads.
    pub(super) fn put_own(&mut self, bytes: &[u8]) {
        grow(&mut self.own, bytes.len());
        self.own_bytes = bytes.len();
        bytemuck::cast_slice_mut(&mut self.own)[..bytes.len()].copy_from_slice(bytes);
    }

    /// The bytes of the last [`Staging::put_own`], or what MPI made of them.
    pub(super) fn own(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.own)[..self.own_bytes]
    }

    /// All memory that MPI writes to.
    pub(super) fn all(&self) -> &[u8] {
        bytemuck::cast_slice(&self.all)
    }

    /// Makes room for `bytes` bytes of all ranks.
    pub(super) fn make_room(&mut self, bytes: usize) {
        grow(&mut self.all, bytes);
    }

    /// Makes room for one part of each size.
    pub(super) fn make_room_for_parts(&mut self, sizes: &[usize]) {
        self.counts.clear();
        self.places.clear();
        let mut next = 0;
        for size in sizes {
            self.counts.push(*size as c_int);
            self.places.push(next as c_int);
            next += size;
        }
        self.make_room(next);
    }

    pub(super) fn put_words(&mut self, words: [u64; WORDS], size: usize) {
        self.own_words.clear();
        self.own_words.extend_from_slice(&words);
        self.all_words.resize(WORDS * size, 0);
    }
}

fn grow(words: &mut Vec<u64>, bytes: usize) {
    // One word at least, so that the address is real where there is nothing to move.
    let len = bytes.div_ceil(8).max(1);
    if words.len() < len {
        words.resize(len, 0);
    }
}
