//! The one table of shapes: real autoencoders, and the demo's.

/// The shape of an autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it is called in the results.
    pub name: &'static str,
    /// Length of the vectors.
    pub d_in: usize,
    /// Number of latents.
    pub latents: usize,
    /// Codes per vector.
    pub k: usize,
}

/// From the smallest to the largest.
pub const SHAPES: [Shape; 4] = [
    Shape { name: "shapes-lmm-s", d_in: 128, latents: 2_048, k: 16 },
    Shape { name: "gpt2-small", d_in: 768, latents: 24_576, k: 32 },
    Shape { name: "gemma-2-2b", d_in: 2_304, latents: 16_384, k: 64 },
    Shape { name: "llava-next-8b", d_in: 4_096, latents: 131_072, k: 256 },
];

/// Vectors in a call: one token of generation, a few, a picture's worth, a batch.
pub const TOKENS: [usize; 4] = [1, 16, 256, 2_048];

impl Shape {
    /// The shape of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    /// Numbers in one of its two matrices.
    pub const fn weights(&self) -> usize {
        self.d_in * self.latents
    }

    /// Multiplications and additions of the product of `tokens` vectors with `W_enc`.
    pub const fn flop(&self, tokens: usize) -> u64 {
        2 * tokens as u64 * self.weights() as u64
    }
}
