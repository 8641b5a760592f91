//! Encode, decode and gradients, one contract for every implementation.
//!
//! * **Encode**: `pre = relu((x - b_dec) · W_encᵀ + b_enc)`, then what the [`Selection`] keeps. Pre-activations are compared
//!   after rounding to f32; ties go to the lower latent; zeros are not codes. A NaN or +infinite pre-activation,
//!   or any NaN or infinity in `x`, is reported, never dropped. (`-inf` from finite `x` is what ReLU makes 0.)
//! * **Decode**: `b_dec + Σ value · W_dec[latent]`, in the order of the latents.
//! * **Gradients** of `b_dec + Σ value · W_dec[latent]` through the kept codes, sparse: only latents that are on have any.
//! * Results do not depend on [`Par`]: each number is summed in one fixed order, and what is kept under a total order
//!   does not depend on how the latents were split. They do depend on the [`Kernel`], within rounding, and a
//!   pre-activation's last bits on whether it came in a call (or a last block of 256 rows) of more than 8 rows.
//! * Buffers are the caller's [`Scratch`]; once they have grown to a shape, nothing is allocated.
//!
//! [`mod@reference`] is plain f64 and never tuned. The other implementations are one set of kernels written over the
//! registers of an instruction set. All that an architecture can have are compiled in every build, chosen at run time, and
//! one test grid runs every one the machine has.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into a function compiled for the registers, misses them"
)]

mod by_latent;
mod compute;
mod decode;
mod encode;
mod gradients;
mod lines;
mod operands;
pub mod reference;
mod rows;
mod simd;

use ndarray::{ArrayView2, ArrayViewMut2, ArrayViewMut3, Axis};
use sae_types::SparseCodes;

use self::compute::Call;
pub use self::compute::{Compute, Kernel, Par, Precision};
use self::gradients::Operands;
pub use self::gradients::{GradientSums, Gradients};
pub use self::operands::{Decoder, Encoder, Selection};
use self::simd::Simd;
use crate::SaeError;

/// Rows that [`encode`] works on at once. Rows cut at multiples of it and encoded apart have the same bits as together.
pub const ROWS_AT_ONCE: usize = encode::BLOCK;

/// Buffers of the kernels, which grow to the largest call and are kept.
#[derive(Debug, Default)]
pub struct Scratch {
    encode: encode::Scratch,
    decode: decode::Scratch,
    gradients: gradients::Scratch,
}

impl Scratch {
    /// No buffers yet.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Encodes the rows of `x` `[n, d_in]` into `out`, whose content and width are replaced.
///
/// # Errors
/// When `x` or a pre-activation is not finite; `out` is then unspecified.
///
/// # Panics
/// When the shapes of `encoder` and `x` disagree, or this machine does not have the kernel.
#[track_caller]
pub fn encode(
    compute: Compute,
    encoder: &Encoder<'_>,
    x: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
    out: &mut SparseCodes,
) -> Result<(), SaeError> {
    struct Encode<'a>(
        Compute,
        &'a Encoder<'a>,
        ArrayView2<'a, f32>,
        &'a mut encode::Scratch,
        &'a mut SparseCodes,
    );
    impl Call for Encode<'_> {
        type Output = Result<(), SaeError>;

        fn call<S: Simd>(self, simd: S) -> Self::Output {
            let Self(compute, encoder, x, scratch, out) = self;
            encode::encode(simd, compute.par, compute.precision, encoder, x, scratch, out)
        }
    }
    encoder.check(x);
    check_finite(x)?;
    let call = Encode(compute, encoder, x, &mut scratch.encode, out);
    match compute.kernel.dispatch(call) {
        Ok(result) => result,
        Err(Encode(compute, encoder, x, _, out)) => reference::encode(compute.precision, encoder, x, out),
    }
}

/// Decodes `codes` into `out` `[n, d_in]`, whose content is replaced.
///
/// # Panics
/// When the shapes of `decoder`, `codes` and `out` disagree, or this machine does not have the kernel.
#[track_caller]
pub fn decode(
    compute: Compute,
    decoder: &Decoder<'_>,
    codes: &SparseCodes,
    scratch: &mut Scratch,
    out: ArrayViewMut2<'_, f32>,
) {
    struct Decode<'a>(Par, &'a Decoder<'a>, &'a SparseCodes, &'a mut decode::Scratch, ArrayViewMut2<'a, f32>);
    impl Call for Decode<'_> {
        type Output = ();

        fn call<S: Simd>(self, simd: S) {
            let Self(par, decoder, codes, scratch, out) = self;
            decode::decode(simd, par, decoder, codes, usize::MAX, scratch, out);
        }
    }
    decoder.check(codes, out.dim());
    let call = Decode(compute.par, decoder, codes, &mut scratch.decode, out);
    if let Err(Decode(_, decoder, codes, _, out)) = compute.kernel.dispatch(call) {
        reference::decode(decoder, codes, usize::MAX, out);
    }
}

/// Decodes the first latents of `codes` for several lengths of dictionary, as nested (Matryoshka) autoencoders are trained
/// and read (Bussmann et al. 2025, arXiv 2503.17547): `out[i]` `[n, d_in]` is what [`decode`] makes of the latents below
/// `prefixes[i]`.
///
/// # Panics
/// When the shapes of `decoder`, `codes`, `prefixes` and `out` `[prefixes, n, d_in]` disagree, or this machine does not
/// have the kernel.
#[track_caller]
pub fn decode_prefixes(
    compute: Compute,
    decoder: &Decoder<'_>,
    codes: &SparseCodes,
    prefixes: &[usize],
    scratch: &mut Scratch,
    mut out: ArrayViewMut3<'_, f32>,
) {
    struct Decode<'a>(
        Par,
        &'a Decoder<'a>,
        &'a SparseCodes,
        usize,
        &'a mut decode::Scratch,
        ArrayViewMut2<'a, f32>,
    );
    impl Call for Decode<'_> {
        type Output = ();

        fn call<S: Simd>(self, simd: S) {
            let Self(par, decoder, codes, prefix, scratch, out) = self;
            decode::decode(simd, par, decoder, codes, prefix, scratch, out);
        }
    }
    assert_eq!(out.len_of(Axis(0)), prefixes.len(), "outputs against prefixes");
    for (out, &prefix) in out.outer_iter_mut().zip(prefixes) {
        decoder.check(codes, out.dim());
        let call = Decode(compute.par, decoder, codes, prefix, &mut scratch.decode, out);
        if let Err(Decode(_, decoder, codes, prefix, _, out)) = compute.kernel.dispatch(call) {
            reference::decode(decoder, codes, prefix, out);
        }
    }
}

/// Gradients of a loss whose gradient with respect to the decoded vectors is `d_out` `[n, d_in]`, through the codes that
/// `encoder` kept of `x` `[n, d_in]`. Written `z` for a code's activation and `dz` for its gradient,
///
/// ```text
/// dz        = d_out · W_dec[latent]                   dW_enc[latent] = Σ dz (x - b_dec)     db_enc[latent] = Σ dz
/// db_dec    = Σ d_out - Σ db_enc[latent] W_enc[latent]   dW_dec[latent] = Σ z d_out
/// ```
///
/// with sums over the rows where the latent is on, in order, in f32. Which latents are kept has no gradient, and neither has
/// rounding to [`Precision::Bf16`].
///
/// # Panics
/// When the shapes of the operands disagree, or this machine does not have the kernel.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn gradients(
    compute: Compute,
    encoder: &Encoder<'_>,
    decoder: &Decoder<'_>,
    x: ArrayView2<'_, f32>,
    codes: &SparseCodes,
    d_out: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
    out: &mut Gradients,
) {
    struct Differentiate<'a>(Par, Operands<'a>, &'a mut gradients::Scratch, &'a mut Gradients);
    impl Call for Differentiate<'_> {
        type Output = ();

        fn call<S: Simd>(self, simd: S) {
            let Self(par, operands, scratch, out) = self;
            gradients::gradients(simd, par, &operands, scratch, out);
        }
    }
    let operands = Operands { encoder, decoder, x, codes, d_out };
    operands.check();
    let call = Differentiate(compute.par, operands, &mut scratch.gradients, out);
    if let Err(Differentiate(_, operands, _, out)) = compute.kernel.dispatch(call) {
        reference::gradients(&operands, out);
    }
}

/// Adds to `out` the gradients that [`gradients`] computes of the same operands, for sums over several calls.
///
/// There is none for `b_dec`: its part `Σ d_out` takes one pass over the caller's own matrix, and its part
/// `-Σ db_enc[latent] W_enc[latent]` is needed once, of the finished sum.
///
/// # Panics
/// When the shapes of the operands disagree, or this machine does not have the kernel.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn accumulate_gradients(
    compute: Compute,
    encoder: &Encoder<'_>,
    decoder: &Decoder<'_>,
    x: ArrayView2<'_, f32>,
    codes: &SparseCodes,
    d_out: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
    out: &mut GradientSums,
) {
    struct Accumulate<'a>(Par, Operands<'a>, &'a mut gradients::Scratch, &'a mut GradientSums);
    impl Call for Accumulate<'_> {
        type Output = ();

        fn call<S: Simd>(self, simd: S) {
            let Self(par, operands, scratch, out) = self;
            gradients::accumulate(simd, par, &operands, scratch, out);
        }
    }
    let operands = Operands { encoder, decoder, x, codes, d_out };
    operands.check();
    out.check(encoder);
    let call = Accumulate(compute.par, operands, &mut scratch.gradients, out);
    if let Err(Accumulate(_, operands, _, out)) = compute.kernel.dispatch(call) {
        let mut gradients = Gradients::new();
        reference::gradients(&operands, &mut gradients);
        out.add(&gradients);
    }
}

fn check_finite(x: ArrayView2<'_, f32>) -> Result<(), SaeError> {
    for (row, values) in x.rows().into_iter().enumerate() {
        // Without an early end, which would keep the compiler from comparing a register at a time.
        let finite = values.iter().fold(true, |finite, value| finite & value.is_finite());
        if finite {
            continue;
        }
        if let Some((column, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(SaeError::InputNotFinite { row, column, value });
        }
    }
    Ok(())
}
