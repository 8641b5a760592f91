//! [`Sae`]: an autoencoder and what it does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use sae_types::{HookPoint, SparseCodes};

use crate::file::{self, Mapped};
use crate::kernels::{self, Compute, Decoder, Encoder, Scratch, Selection};
use crate::{Activation, SaeConfig, SaeError, WeightDtype, Weights};

/// Rows of `W_skip` that one task multiplies with, and converts.
const SKIP_BLOCK: usize = 256;

/// A sparse autoencoder or transcoder. Its large matrices stay as they are stored, in a memory-mapped file or in memory.
#[derive(Debug)]
pub struct Sae {
    config: SaeConfig,
    tensors: Tensors,
    /// The biases as f32; small beside the matrices.
    encoder_bias: Vec<f32>,
    decoder_bias: Vec<f32>,
    /// What encoding subtracts: `b_dec`, or a transcoder's zeros.
    centre: Vec<f32>,
}

#[derive(Debug)]
enum Tensors {
    Mapped(Mapped),
    Owned(SaeTensors),
}

/// The tensors of an autoencoder, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct SaeTensors {
    /// `W_enc` `[num_latents, d_in]`.
    pub encoder_weight: Vec<f32>,
    /// `b_enc` `[num_latents]`.
    pub encoder_bias: Vec<f32>,
    /// `W_dec` `[num_latents, d_in]`, one row per latent.
    pub decoder_weight: Vec<f32>,
    /// `b_dec` `[d_in]`.
    pub decoder_bias: Vec<f32>,
    /// `W_skip` `[d_in, d_in]`, there exactly when the configuration has a skip connection.
    pub skip_weight: Option<Vec<f32>>,
}

impl Sae {
    /// Opens the autoencoder in `folder`, which holds `cfg.json` and `sae.safetensors`.
    ///
    /// The weights are memory-mapped, so this costs no memory to speak of. While the value lives the file must not be
    /// truncated or rewritten in place (reading it could then end the process); replacing it by renaming is fine.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of a kind that is not supported, or when they contradict each other. Every
    /// header field is checked before it is used.
    pub fn load(folder: &Path) -> Result<Self, SaeError> {
        let (config, mapped) = file::load(folder)?;
        let encoder_bias = mapped.tensor(1, 1, config.num_latents).to_f32();
        let decoder_bias = mapped.tensor(3, 1, config.d_in).to_f32();
        Ok(Self::new(config, Tensors::Mapped(mapped), encoder_bias, decoder_bias))
    }

    fn new(config: SaeConfig, tensors: Tensors, encoder_bias: Vec<f32>, decoder_bias: Vec<f32>) -> Self {
        let centre = if config.transcode { vec![0.0; config.d_in] } else { decoder_bias.clone() };
        Self { config, tensors, encoder_bias, decoder_bias, centre }
    }

    /// The autoencoders of a checkpoint folder by hook point: every `<hook point>/cfg.json` below `root`, or `root` itself
    /// when it holds `cfg.json` and is named by a hook point (or is `seed<N>` in a folder so named).
    ///
    /// # Errors
    /// When there is none, when the name of `root` is needed and no hook point, or when a hook point has one per seed.
    pub fn find(root: &Path) -> Result<BTreeMap<HookPoint, PathBuf>, SaeError> {
        file::find(root)
    }

    /// Makes an autoencoder of tensors in memory.
    ///
    /// # Errors
    /// When `config` is out of range, a tensor has the wrong length, or there is a skip weight where `config` has no skip
    /// connection, or the other way round.
    pub fn from_parts(config: SaeConfig, tensors: SaeTensors) -> Result<Self, SaeError> {
        config.validate()?;
        if tensors.skip_weight.is_some() != config.skip_connection {
            return Err(SaeError::SkipWeight { skip_connection: config.skip_connection });
        }
        let lengths = [
            tensors.encoder_weight.len(),
            tensors.encoder_bias.len(),
            tensors.decoder_weight.len(),
            tensors.decoder_bias.len(),
            tensors.skip_weight.as_ref().map_or(0, Vec::len),
        ];
        for ((tensor, expected), got) in file::TENSORS.into_iter().zip(file::shapes(&config)).zip(lengths) {
            if got != expected.iter().product::<usize>() {
                return Err(SaeError::Length { tensor, expected, got });
            }
        }
        let (encoder_bias, decoder_bias) = (tensors.encoder_bias.clone(), tensors.decoder_bias.clone());
        Ok(Self::new(config, Tensors::Owned(tensors), encoder_bias, decoder_bias))
    }

    /// Writes `cfg.json` and `sae.safetensors` into `folder`, all tensors in `dtype`. A plain autoencoder is readable by msae and
    /// by sparsify (older versions of which assume F32), a transcoder or skip connection by sparsify, BatchTopK by neither.
    /// Conversion takes the memory of one converted matrix.
    ///
    /// Each file is written beside its place and renamed, so a failure leaves what was there, and nothing else.
    ///
    /// # Errors
    /// When a file cannot be written, or a weight does not fit `dtype`.
    pub fn save(&self, folder: &Path, dtype: WeightDtype) -> Result<(), SaeError> {
        let mut tensors = [0, 1, 2, 3].map(|index| self.tensor(index)).to_vec();
        tensors.extend(self.skip_weight());
        file::save(folder, &self.config, &tensors, dtype)
    }

    /// Shape and kind.
    pub fn config(&self) -> &SaeConfig {
        &self.config
    }

    /// Number of latents.
    pub fn num_latents(&self) -> usize {
        self.config.num_latents
    }

    /// Length of the vectors it reads and writes.
    pub fn d_in(&self) -> usize {
        self.config.d_in
    }

    /// How many latents a row keeps: at most (TopK), or on average (BatchTopK).
    pub fn k(&self) -> usize {
        self.config.k
    }

    /// `W_enc` `[num_latents, d_in]` as stored.
    pub fn encoder_weight(&self) -> Weights<'_> {
        self.tensor(0)
    }

    /// `b_enc` `[1, num_latents]` as stored.
    pub fn encoder_bias(&self) -> Weights<'_> {
        self.tensor(1)
    }

    /// `W_dec` `[num_latents, d_in]` as stored, one row per latent.
    pub fn decoder_weight(&self) -> Weights<'_> {
        self.tensor(2)
    }

    /// `b_dec` `[1, d_in]` as stored.
    pub fn decoder_bias(&self) -> Weights<'_> {
        self.tensor(3)
    }

    /// `W_skip` `[d_in, d_in]` as stored, where there is a skip connection.
    pub fn skip_weight(&self) -> Option<Weights<'_>> {
        self.config.skip_connection.then(|| self.tensor(4))
    }

    /// Tensor `index` of [`file::TENSORS`].
    fn tensor(&self, index: usize) -> Weights<'_> {
        let (latents, d_in) = (self.config.num_latents, self.config.d_in);
        let (rows, cols) = [(latents, d_in), (1, latents), (latents, d_in), (1, d_in), (d_in, d_in)][index];
        match &self.tensors {
            Tensors::Mapped(mapped) => mapped.tensor(index, rows, cols),
            Tensors::Owned(tensors) => {
                let numbers = [
                    &tensors.encoder_weight[..],
                    &tensors.encoder_bias,
                    &tensors.decoder_weight,
                    &tensors.decoder_bias,
                    tensors.skip_weight.as_deref().unwrap_or_default(),
                ][index];
                Weights::from_f32(rows, cols, numbers)
            }
        }
    }

    /// What the [`kernels`] need to encode: all above the threshold where the activation is BatchTopK, and no `b_dec` to
    /// subtract where it is a transcoder.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder {
            weight: self.encoder_weight(),
            bias: &self.encoder_bias,
            decoder_bias: &self.centre,
            selection: match self.config.activation {
                Activation::TopK => Selection::TopK(self.config.k),
                Activation::BatchTopK { threshold } => Selection::Threshold(threshold),
            },
        }
    }

    /// What the [`kernels`] need to decode.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder { weight: self.decoder_weight(), bias: &self.decoder_bias }
    }

    /// Codes of the rows of `x` `[n, d_in]`, with the best kernel on the current rayon pool. Sums are f32, ties go to the
    /// lower latent, and the result does not depend on the number of threads.
    ///
    /// # Errors
    /// When `x` or a pre-activation is not finite; the first offending row is named.
    ///
    /// # Panics
    /// When `x` does not have `d_in` columns.
    #[track_caller]
    pub fn encode(&self, x: ArrayView2<'_, f32>) -> Result<SparseCodes, SaeError> {
        self.encode_with(x, Compute::default())
    }

    /// As [`Sae::encode`], with kernel, threads and precision chosen. Callers in a loop keep buffers with [`kernels::encode`].
    ///
    /// # Errors
    /// As [`Sae::encode`].
    ///
    /// # Panics
    /// As [`Sae::encode`].
    #[track_caller]
    pub fn encode_with(&self, x: ArrayView2<'_, f32>, compute: Compute) -> Result<SparseCodes, SaeError> {
        let mut codes = SparseCodes::with_capacity(self.num_latents(), x.nrows(), x.nrows() * self.k());
        kernels::encode(compute, &self.encoder(), x, &mut Scratch::new(), &mut codes)?;
        Ok(codes)
    }

    /// `b_dec + Σ value · W_dec[latent]` `[n, d_in]` of the rows of `codes`, which need not come from [`Sae::encode`]; sums are
    /// f32, in the order of the latents. A skip connection, which goes past the codes, is in [`Sae::reconstruct`].
    ///
    /// # Panics
    /// When `codes` are of another width.
    #[track_caller]
    pub fn decode(&self, codes: &SparseCodes) -> Array2<f32> {
        self.decode_with(codes, Compute::default())
    }

    /// As [`Sae::decode`], with kernel and threads chosen.
    ///
    /// # Panics
    /// As [`Sae::decode`].
    #[track_caller]
    pub fn decode_with(&self, codes: &SparseCodes, compute: Compute) -> Array2<f32> {
        let mut out = Array2::zeros((codes.n_rows(), self.d_in()));
        kernels::decode(compute, &self.decoder(), codes, &mut Scratch::new(), out.view_mut());
        out
    }
    /// The codes of the rows of `x` `[n, d_in]` and what they stand for `[n, d_in]`: what is decoded, plus `x · W_skipᵀ` where
    /// there is a skip connection. Of an autoencoder the result is a reconstruction of `x`; a transcoder is given a module's
    /// input and predicts its output.
    ///
    /// # Errors
    /// As [`Sae::encode`].
    ///
    /// # Panics
    /// As [`Sae::encode`].
    #[track_caller]
    pub fn reconstruct(&self, x: ArrayView2<'_, f32>) -> Result<(SparseCodes, Array2<f32>), SaeError> {
        let codes = self.encode(x)?;
        let mut out = self.decode(&codes);
        if let Some(weight) = self.skip_weight() {
            add_product(x, weight, &mut out);
        }
        Ok((codes, out))
    }
}

/// `out += x · weightᵀ`, in f32. By columns of `out`, so that each row of the weight is converted once, and threads change
/// no bit.
fn add_product(x: ArrayView2<'_, f32>, weight: Weights<'_>, out: &mut Array2<f32>) {
    let columns: Vec<_> = out.axis_chunks_iter_mut(Axis(1), SKIP_BLOCK).collect();
    columns.into_par_iter().enumerate().for_each(|(block, mut out)| {
        let (first, len) = (block * SKIP_BLOCK, out.ncols());
        let mut scratch = Vec::new();
        let rows = weight.rows_f32(first..first + len, &mut scratch);
        let rows = ArrayView2::from_shape((len, x.ncols()), rows).expect("rows as long as those of x");
        general_mat_mul(1.0, &x, &rows.t(), 1.0, &mut out);
    });
}
