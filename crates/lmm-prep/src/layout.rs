//! Which position of an expanded token sequence is text, and which is which patch of which image.

use std::ops::Range;

/// The tokens of one image: first the base tile's patches row by row, then the unpadded canvas row by row, each of
/// its rows closed by one newline token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageSpan {
    /// Position of the first of them in the sequence.
    pub start: usize,
    /// Rows and columns of patches of the base tile, which shows the whole image (squashed to a square).
    pub base: (usize, usize),
    /// Rows and columns of patches of the high-resolution canvas after unpadding. Rows can be 0: a strip thinner than
    /// a patch leaves nothing.
    pub high: (usize, usize),
}

impl ImageSpan {
    /// How many tokens: `base.0 * base.1 + high.0 * (high.1 + 1)`.
    pub fn n_tokens(&self) -> usize {
        self.n_base() + self.high.0 * (self.high.1 + 1)
    }

    fn n_base(&self) -> usize {
        self.base.0 * self.base.1
    }

    /// Positions of all of the image's tokens.
    pub fn positions(&self) -> Range<usize> {
        self.start..self.start + self.n_tokens()
    }

    /// Positions of the base tile's tokens.
    pub fn base_positions(&self) -> Range<usize> {
        self.start..self.start + self.n_base()
    }
}

/// What one position of the sequence stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A token of the prompt.
    Text,
    /// A patch of the base tile.
    Base {
        /// Index of the image in the prompt.
        image: usize,
        /// Row of patches, from the top.
        row: usize,
        /// Column of patches, from the left.
        col: usize,
    },
    /// A patch of the high-resolution canvas.
    Tile {
        /// Index of the image in the prompt.
        image: usize,
        /// Row of patches after unpadding, from the top.
        row: usize,
        /// Column of patches after unpadding, from the left.
        col: usize,
    },
    /// The learnt embedding that ends a row of the high-resolution canvas.
    Newline {
        /// Index of the image in the prompt.
        image: usize,
        /// The row it ends.
        row: usize,
    },
}

/// Where the images lie in an expanded token sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenLayout {
    /// The images in order of position; their spans do not overlap.
    pub images: Vec<ImageSpan>,
    /// Length of the sequence.
    pub n_tokens: usize,
}

impl TokenLayout {
    /// What the token at `position` stands for. Positions count from 0 and include special tokens such as BOS.
    ///
    /// # Panics
    /// If `position` is not below [`TokenLayout::n_tokens`].
    #[track_caller]
    pub fn kind(&self, position: usize) -> TokenKind {
        assert!(position < self.n_tokens, "position {position} of a sequence of {} tokens", self.n_tokens);
        let after = self.images.partition_point(|span| span.start <= position);
        let Some(image) = after.checked_sub(1) else { return TokenKind::Text };
        let span = &self.images[image];
        let offset = position - span.start;
        if offset >= span.n_tokens() {
            return TokenKind::Text;
        }
        let Some(offset) = offset.checked_sub(span.n_base()) else {
            return TokenKind::Base { image, row: offset / span.base.1, col: offset % span.base.1 };
        };
        let (row, col) = (offset / (span.high.1 + 1), offset % (span.high.1 + 1));
        if col == span.high.1 {
            TokenKind::Newline { image, row }
        } else {
            TokenKind::Tile { image, row, col }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_one_kind_in_packing_order() {
        let layout = TokenLayout {
            images: vec![
                ImageSpan { start: 2, base: (2, 2), high: (3, 4) },
                ImageSpan { start: 21, base: (2, 2), high: (0, 4) },
                ImageSpan { start: 26, base: (2, 2), high: (1, 2) },
            ],
            n_tokens: 34,
        };
        let mut expected = vec![TokenKind::Text; 2];
        for (image, (span, text_after)) in layout.images.iter().zip([0, 1, 1]).enumerate() {
            for row in 0..span.base.0 {
                expected.extend((0..span.base.1).map(|col| TokenKind::Base { image, row, col }));
            }
            for row in 0..span.high.0 {
                expected.extend((0..span.high.1).map(|col| TokenKind::Tile { image, row, col }));
                expected.push(TokenKind::Newline { image, row });
            }
            expected.extend(vec![TokenKind::Text; text_after]);
        }
        assert_eq!(expected.len(), layout.n_tokens);
        let kinds: Vec<_> = (0..layout.n_tokens).map(|position| layout.kind(position)).collect();
        assert_eq!(kinds, expected);
    }

    #[test]
    #[should_panic(expected = "position 3 of a sequence of 3 tokens")]
    fn a_position_beyond_the_end_is_a_mistake() {
        TokenLayout { images: Vec::new(), n_tokens: 3 }.kind(3);
    }
}
