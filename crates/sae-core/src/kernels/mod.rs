//! Encode and decode, one contract for every implementation.
//!
//! * **Encode**: `pre = relu((x - b_dec) · W_encᵀ + b_enc)`, then the k largest of each row. Pre-activations are compared
//!   after rounding to f32; ties go to the lower latent; zeros are not codes. A NaN or +infinite pre-activation,
//!   or any NaN or infinity in `x`, is reported, never dropped. (`-inf` from finite `x` is what ReLU makes 0.)
//! * **Decode**: `b_dec + Σ value · W_dec[latent]`.
//! * Results do not depend on [`Par`]: each pre-activation is summed in one fixed order, and the k largest under
//!   a total order do not depend on how the latents were split.
//!
//! [`mod@reference`] is plain f64 and never tuned. [`portable`] is what [`Kernel::best`] names today. Both are compiled in every
//! build, and one test grid runs both.

pub mod portable;
pub mod reference;

use std::cmp::Ordering;

use ndarray::{ArrayView2, ArrayViewMut2};
use sae_types::{FeatureId, SparseCodes};

use crate::{SaeError, Weights};

/// Which implementation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// [`mod@reference`].
    Reference,
    /// [`portable`].
    Portable,
}

impl Kernel {
    /// Every implementation this machine can run.
    pub fn available() -> &'static [Self] {
        &[Self::Reference, Self::Portable]
    }

    /// The fastest implementation this machine can run.
    pub fn best() -> Self {
        Self::Portable
    }
}

/// How many threads work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Par {
    /// The calling thread alone.
    Serial,
    /// The threads of the current rayon pool.
    Rayon,
}

impl Par {
    fn workers(self) -> usize {
        match self {
            Self::Serial => 1,
            Self::Rayon => rayon::current_num_threads(),
        }
    }
}

/// Kernel and threads of a call; the best kernel on the current rayon pool unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// Which implementation runs.
    pub kernel: Kernel,
    /// How many threads work.
    pub par: Par,
}

impl Default for Compute {
    fn default() -> Self {
        Self { kernel: Kernel::best(), par: Par::Rayon }
    }
}

/// What encoding needs.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// `W_enc` `[num_latents, d_in]`.
    pub weight: Weights<'a>,
    /// `b_enc` `[num_latents]`.
    pub bias: &'a [f32],
    /// `b_dec` `[d_in]`.
    pub decoder_bias: &'a [f32],
    /// How many latents a row keeps at most, `1 ..= num_latents`.
    pub k: usize,
}

impl Encoder<'_> {
    #[track_caller]
    fn check(&self, x: ArrayView2<'_, f32>) {
        let [num_latents, d_in] = self.weight.shape();
        assert_eq!(self.bias.len(), num_latents, "b_enc against rows of W_enc");
        assert_eq!(self.decoder_bias.len(), d_in, "b_dec against columns of W_enc");
        assert_eq!(x.ncols(), d_in, "columns of x against columns of W_enc");
        assert!((1..=num_latents).contains(&self.k), "k is {}, expected 1 to {num_latents}", self.k);
    }
}

/// What decoding needs.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    /// `W_dec` `[num_latents, d_in]`, one row per latent.
    pub weight: Weights<'a>,
    /// `b_dec` `[d_in]`.
    pub bias: &'a [f32],
}

impl Decoder<'_> {
    #[track_caller]
    fn check(&self, codes: &SparseCodes, out: &ArrayViewMut2<'_, f32>) {
        let [num_latents, d_in] = self.weight.shape();
        assert_eq!(self.bias.len(), d_in, "b_dec against columns of W_dec");
        assert_eq!(codes.num_latents(), num_latents, "width of the codes against rows of W_dec");
        assert_eq!(out.dim(), (codes.n_rows(), d_in), "shape of the output");
    }
}

/// The k largest of each row: row `i` holds `counts[i]` codes at `i * k`, ascending by latent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopKRows {
    k: usize,
    counts: Vec<usize>,
    codes: Vec<Code>,
}

/// One latent and its activation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Code {
    value: f32,
    latent: u32,
}

impl Code {
    /// Larger values first, then lower latents: a total order, also with NaN.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature sorts ask for")]
    fn rank(&self, other: &Self) -> Ordering {
        other.value.total_cmp(&self.value).then(self.latent.cmp(&other.latent))
    }
}

impl TopKRows {
    /// No rows; the buffers grow with the first call that writes here and are kept.
    pub fn new() -> Self {
        Self::default()
    }

    fn reset(&mut self, rows: usize, k: usize) {
        self.k = k;
        self.counts.clear();
        self.counts.resize(rows, 0);
        self.codes.clear();
        self.codes.resize(rows * k, Code::default());
    }

    /// Appends the rows to `out`.
    ///
    /// # Panics
    /// When `out` is narrower than the autoencoder the rows come from.
    #[track_caller]
    pub fn append_to(&self, out: &mut SparseCodes) {
        for (row, &count) in self.counts.iter().enumerate() {
            let codes = &self.codes[row * self.k..row * self.k + count];
            let pushed = out.push_row(codes.iter().map(|code| (FeatureId(code.latent), code.value)));
            // The kernels hand out ascending latents with finite positive values.
            assert!(pushed.is_ok(), "codes wider than their target: {pushed:?}");
        }
    }
}

/// Encodes the rows of `x` `[n, d_in]` into `out`, with buffers kept in `scratch`.
///
/// # Errors
/// When `x` or a pre-activation is not finite; `out` is then unspecified.
///
/// # Panics
/// When the shapes of `encoder` and `x` disagree.
#[track_caller]
pub fn encode(
    compute: Compute,
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
    scratch: &mut portable::Scratch,
    out: &mut TopKRows,
) -> Result<(), SaeError> {
    encoder.check(x);
    check_finite(x)?;
    match compute.kernel {
        Kernel::Reference => reference::encode(encoder, x, out),
        Kernel::Portable => portable::encode(compute.par, encoder, x, scratch, out),
    }
}

/// Decodes `codes` into `out` `[n, d_in]`, whose content is replaced.
///
/// # Panics
/// When the shapes of `decoder`, `codes` and `out` disagree.
#[track_caller]
pub fn decode(compute: Compute, decoder: &Decoder<'_>, codes: &SparseCodes, out: ArrayViewMut2<'_, f32>) {
    decoder.check(codes, &out);
    match compute.kernel {
        Kernel::Reference => reference::decode(decoder, codes, out),
        Kernel::Portable => portable::decode(compute.par, decoder, codes, out),
    }
}

fn check_finite(x: ArrayView2<'_, f32>) -> Result<(), SaeError> {
    for (row, values) in x.rows().into_iter().enumerate() {
        if let Some((column, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(SaeError::InputNotFinite { row, column, value });
        }
    }
    Ok(())
}
