//! [`Sae`]: an autoencoder and what it does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2};
use sae_types::{HookPoint, SparseCodes};

use crate::file::{self, Mapped};
use crate::kernels::{self, Compute, Decoder, Encoder, Scratch, Selection};
use crate::{SaeConfig, SaeError, WeightDtype, Weights};

/// A TopK sparse autoencoder. Its large matrices stay as they are stored, in a memory-mapped file or in memory.
#[derive(Debug)]
pub struct Sae {
    config: SaeConfig,
    tensors: Tensors,
    /// The biases as f32; small beside the matrices.
    encoder_bias: Vec<f32>,
    decoder_bias: Vec<f32>,
}

#[derive(Debug)]
enum Tensors {
    Mapped(Mapped),
    Owned(SaeTensors),
}

/// The four tensors of an autoencoder, row-major.
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
        Ok(Self { config, tensors: Tensors::Mapped(mapped), encoder_bias, decoder_bias })
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
    /// When `config` is out of range or a tensor has the wrong length.
    pub fn from_parts(config: SaeConfig, tensors: SaeTensors) -> Result<Self, SaeError> {
        config.validate()?;
        let lengths = [
            tensors.encoder_weight.len(),
            tensors.encoder_bias.len(),
            tensors.decoder_weight.len(),
            tensors.decoder_bias.len(),
        ];
        for ((tensor, expected), got) in file::TENSORS.into_iter().zip(file::shapes(&config)).zip(lengths) {
            if got != expected.iter().product::<usize>() {
                return Err(SaeError::Length { tensor, expected, got });
            }
        }
        let (encoder_bias, decoder_bias) = (tensors.encoder_bias.clone(), tensors.decoder_bias.clone());
        Ok(Self { config, tensors: Tensors::Owned(tensors), encoder_bias, decoder_bias })
    }

    /// Writes `cfg.json` and `sae.safetensors` into `folder`, all tensors in `dtype`, readable by msae and by sparsify (older
    /// versions of which assume F32). Conversion takes the memory of one converted matrix.
    ///
    /// Each file is written beside its place and renamed, so a failure leaves what was there, and nothing else.
    ///
    /// # Errors
    /// When a file cannot be written, or a weight does not fit `dtype`.
    pub fn save(&self, folder: &Path, dtype: WeightDtype) -> Result<(), SaeError> {
        let tensors = [0, 1, 2, 3].map(|index| self.tensor(index));
        file::save(folder, &self.config, tensors, dtype)
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

    /// How many latents a row keeps at most.
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

    fn tensor(&self, index: usize) -> Weights<'_> {
        let (latents, d_in) = (self.config.num_latents, self.config.d_in);
        let (rows, cols) = [(latents, d_in), (1, latents), (latents, d_in), (1, d_in)][index];
        match &self.tensors {
            Tensors::Mapped(mapped) => mapped.tensor(index, rows, cols),
            Tensors::Owned(tensors) => {
                let numbers = [
                    &tensors.encoder_weight,
                    &tensors.encoder_bias,
                    &tensors.decoder_weight,
                    &tensors.decoder_bias,
                ][index];
                Weights::from_f32(rows, cols, numbers)
            }
        }
    }

    /// What the [`kernels`] need to encode.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder {
            weight: self.encoder_weight(),
            bias: &self.encoder_bias,
            decoder_bias: &self.decoder_bias,
            selection: Selection::TopK(self.config.k),
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

    /// Vectors `[n, d_in]` of the rows of `codes`, which need not come from [`Sae::encode`]; sums are f32, in the order of
    /// the latents.
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
}
