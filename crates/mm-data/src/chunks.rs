//! [`Chunker`]: texts of any length to pieces of one length.

use std::num::NonZeroUsize;

/// Cuts the token ids of texts into pieces of `ctx_len`, as sparsify's and delphi's `chunk_and_tokenize`: an EOS before
/// every text, a long text over several pieces, several short ones in one, and the last incomplete piece left out.
///
/// With a BOS every piece begins with it, and holds `ctx_len - 1` tokens of the texts. One piece is held in memory.
///
/// One difference: `chunk_and_tokenize` works on 2048 texts at a time and leaves out the incomplete piece of each such
/// batch. Here only the last of all is.
///
/// ```
/// use std::num::NonZeroUsize;
/// use mm_data::Chunker;
///
/// let mut pieces = Vec::new();
/// let mut chunker = Chunker::new(NonZeroUsize::new(4).unwrap(), Some(0), None);
/// for text in [&[1, 2][..], &[3], &[4, 5, 6]] {
///     chunker.push(text, |piece| Ok::<(), ()>(pieces.push(piece.to_vec())))?;
/// }
/// assert_eq!(pieces, [[0, 1, 2, 0], [3, 0, 4, 5]]);
/// assert_eq!(chunker.rest(), 1);
/// # Ok::<(), ()>(())
/// ```
#[derive(Clone, Debug)]
pub struct Chunker {
    ctx_len: usize,
    eos: Option<u32>,
    bos: Option<u32>,
    piece: Vec<u32>,
}

impl Chunker {
    /// Pieces of `ctx_len` tokens, with `eos` before each text and `bos` before each piece where they are given.
    ///
    /// # Panics
    /// When `ctx_len` is 1 and there is a `bos`: no text would find room.
    #[track_caller]
    pub fn new(ctx_len: NonZeroUsize, eos: Option<u32>, bos: Option<u32>) -> Self {
        let ctx_len = ctx_len.get();
        assert!(ctx_len > usize::from(bos.is_some()), "pieces of {ctx_len} token have room for a BOS only");
        Self { ctx_len, eos, bos, piece: Vec::with_capacity(ctx_len) }
    }

    /// Takes the ids of one text, without special tokens around it, and gives every piece that became full to `take`.
    ///
    /// # Errors
    /// What `take` reports; the text is cut short then, and the chunker is of no more use.
    pub fn push<E>(&mut self, ids: &[u32], mut take: impl FnMut(&[u32]) -> Result<(), E>) -> Result<(), E> {
        for &id in self.eos.iter().chain(ids) {
            if self.piece.is_empty() {
                self.piece.extend(self.bos);
            }
            self.piece.push(id);
            if self.piece.len() == self.ctx_len {
                take(&self.piece)?;
                self.piece.clear();
            }
        }
        Ok(())
    }

    /// How many tokens of the texts wait for the next piece; they are lost when no more text comes.
    pub fn rest(&self) -> usize {
        self.piece.len().saturating_sub(usize::from(self.bos.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(
        ctx_len: usize,
        eos: Option<u32>,
        bos: Option<u32>,
        texts: &[&[u32]],
    ) -> (Vec<Vec<u32>>, usize) {
        let mut found = Vec::new();
        let mut chunker = Chunker::new(NonZeroUsize::new(ctx_len).unwrap(), eos, bos);
        for text in texts {
            chunker
                .push(text, |piece| {
                    found.push(piece.to_vec());
                    Ok::<(), ()>(())
                })
                .unwrap();
        }
        (found, chunker.rest())
    }

    #[test]
    fn with_bos_before_each_piece() {
        let (found, rest) = pieces(4, Some(9), Some(8), &[&[1, 2, 3, 4, 5], &[], &[6]]);
        assert_eq!(found, [[8, 9, 1, 2], [8, 3, 4, 5], [8, 9, 9, 6]]);
        assert_eq!(rest, 0);
    }

    #[test]
    fn without_separator() {
        let (found, rest) = pieces(2, None, None, &[&[1], &[2, 3, 4, 5]]);
        assert_eq!(found, [[1, 2], [3, 4]]);
        assert_eq!(rest, 1);
        assert_eq!(pieces(5, None, None, &[&[1, 2, 3, 4]]).0, Vec::<Vec<u32>>::new());
    }

    #[test]
    fn an_error_ends_it() {
        let mut chunker = Chunker::new(NonZeroUsize::MIN, None, None);
        assert_eq!(chunker.push(&[1, 2], |piece| Err(piece[0])), Err(1));
    }

    #[test]
    #[should_panic(expected = "room for a BOS only")]
    fn no_room() {
        Chunker::new(NonZeroUsize::MIN, None, Some(1));
    }
}
