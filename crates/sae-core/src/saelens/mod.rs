//! The files of SAELens: `cfg.json` beside `sae_weights.safetensors`, of version 6 and of those before.
//!
//! Written against sae-lens 6.54.12 (`saes/{sae,topk_sae,jumprelu_sae,transcoder}.py`, `loading/pretrained_sae_loaders.py`). SAELens keeps
//! `W_enc` as `[d_in, d_sae]`, the transpose of ours; `W_dec [d_sae, d_in]` is as ours. What is read, and as what:
//!
//! | `architecture` | becomes |
//! |---|---|
//! | `topk` | TopK. SAELens takes the k largest and then ReLU, we ReLU and then the k largest: the same codes |
//! | `jumprelu` with one threshold for all latents | BatchTopK, which SAELens saves so, Matryoshka too. It keeps `pre > threshold`, strictly, as we do; a threshold below 0 is 0, because ReLU comes first |
//! | `jumprelu_transcoder`, `jumprelu_skip_transcoder`, likewise | a BatchTopK transcoder, with a skip connection |
//! | any other; thresholds that differ | refused: another kind of code |
//!
//! Folded into the weights, in f64:
//!
//! * `apply_b_dec_to_input: false`: `b_enc + W_enc b_dec`, because ours subtracts `b_dec`. Where `hook_name_out` names another place than
//!   `hook_name` it is a transcoder, which does not, and nothing is folded.
//! * `rescale_acts_by_decoder_norm: true`: encoder rows and biases times the length of the decoder's row, which becomes 1.
//! * `normalize_activations: expected_average_only_in`: the factor in `activation_scaler.json`, as SAELens folds it; without that
//!   file, and for any other normalisation, reading is refused.
//!
//! Written are `topk`, `jumprelu` with equal thresholds, and the transcoders above (before version 6: `jumprelu` with
//! `apply_b_dec_to_input: false`). A transcoder of TopK is a `topk` with `apply_b_dec_to_input: false`, because SAELens' own
//! transcoders are ReLU. A skip connection beside TopK has no place in SAELens and is refused.

mod config;
mod reference;

use std::borrow::Cow;
use std::path::Path;

use safetensors::{Dtype, View};

use self::config::Config;
pub use self::reference::reference;
use crate::file::{self, Mapped};
use crate::{Activation, Sae, SaeConfig, SaeError, SaeTensors, WeightDtype, Weights};

pub(crate) const WEIGHTS: &str = "sae_weights.safetensors";
/// In the first years SAELens wrote this one as well, all ones.
const SCALING: &str = "scaling_factor";

/// Which age of `cfg.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// All keys at one level.
    PreV6,
    /// Names in `metadata`, one configuration class per architecture.
    #[default]
    V6,
}

/// What `cfg.json` says of an autoencoder beyond its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Name of the model.
    pub model_name: Option<String>,
    /// Where it reads; by the model's own names here, by TransformerLens' in most files.
    pub hook_name: Option<String>,
    /// Where a transcoder's output belongs.
    pub hook_name_out: Option<String>,
    /// Name of the data set it was trained on.
    pub dataset_path: Option<String>,
    /// Tokens per sequence.
    pub context_size: Option<u64>,
    /// Whether sequences begin with BOS.
    pub prepend_bos: Option<bool>,
}

/// What [`load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// The autoencoder, in f32.
    pub sae: Sae,
    /// What else the file says.
    pub metadata: Metadata,
    /// Which age of file it is.
    pub version: Version,
    /// The keys whose effect was folded into the weights, which are then not the file's to the bit.
    pub folded: Vec<&'static str>,
}

/// Whether `folder` holds an autoencoder of SAELens.
pub fn is_saelens(folder: &Path) -> bool {
    folder.join(file::CONFIG).is_file() && folder.join(WEIGHTS).is_file()
}

/// Reads the autoencoder in `folder`. `k` is how many latents a row keeps on average, for `jumprelu` files that do not say it;
/// where the file does, the file's counts. Takes the memory of the whole autoencoder in f32.
///
/// # Errors
/// When a file is missing or damaged, or its kind is none of this crate's: the key, its value and the reason are named.
pub fn load(folder: &Path, k: Option<usize>) -> Result<Loaded, SaeError> {
    let (config, files) = open(folder)?;
    let threshold = config.threshold(&files)?;
    let sae_config = config.sae_config(k, threshold).map_err(|source| config.in_file(source))?;
    let mut tensors = Folding::of(&config, &files).tensors();
    if config.skip {
        tensors.skip_weight = Some(files.tensor(config.index("W_skip"), config.d_in, config.d_in).to_f32());
    }
    let normalize_decoder = unit_rows(&tensors.decoder_weight, config.d_in);
    let sae = Sae::from_parts(SaeConfig { normalize_decoder, ..sae_config }, tensors)?;
    Ok(Loaded { sae, folded: config.folded(), metadata: config.metadata, version: config.version })
}

/// Writes `sae` into `folder` for SAELens, all tensors in `dtype`, each file beside its place and then renamed. Gives what the
/// files cannot say and therefore leave out. `metadata.hook_name_out` of a transcoder should be given: by it the file
/// is told from an autoencoder's.
///
/// # Errors
/// When SAELens has no such kind, a file cannot be written, or a weight does not fit `dtype`.
pub fn save(
    sae: &Sae,
    folder: &Path,
    version: Version,
    metadata: &Metadata,
    dtype: WeightDtype,
) -> Result<Vec<String>, SaeError> {
    let (json, dropped) = config::write(sae.config(), version, metadata, dtype)?;
    let (d_in, d_sae) = (sae.d_in(), sae.num_latents());
    let threshold = match sae.config().activation {
        Activation::TopK => None,
        Activation::BatchTopK { threshold } => Some(vec![threshold; d_sae]),
    };
    let mut tensors = vec![
        Outgoing::new("W_enc", sae.encoder_weight(), vec![d_in, d_sae], dtype),
        Outgoing::new("b_enc", sae.encoder_bias(), vec![d_sae], dtype),
        Outgoing::new("W_dec", sae.decoder_weight(), vec![d_sae, d_in], dtype),
        Outgoing::new("b_dec", sae.decoder_bias(), vec![d_in], dtype),
    ];
    tensors[0].transposed = true;
    if let Some(threshold) = &threshold {
        tensors.push(Outgoing::new("threshold", Weights::from_f32(1, d_sae, threshold), vec![d_sae], dtype));
    }
    if let Some(skip) = sae.skip_weight() {
        tensors.push(Outgoing::new("W_skip", skip, vec![d_in, d_in], dtype));
    }
    for tensor in &tensors {
        if let Some(value) = tensor.weights.overflow(dtype) {
            return Err(SaeError::Overflow { tensor: tensor.name, value, dtype });
        }
    }
    file::write(folder, &json, WEIGHTS, tensors.into_iter().map(|tensor| (tensor.name, tensor)))?;
    Ok(dropped)
}

/// The configuration and the weights, mapped, of `folder`.
fn open(folder: &Path) -> Result<(Config, Mapped), SaeError> {
    let config = Config::read(folder)?;
    let path = folder.join(WEIGHTS);
    let (mut names, mut shapes) = config.tensors();
    if file::tensor_names(&path)?.iter().any(|name| name == SCALING) {
        names.push(SCALING);
        shapes.push(vec![config.d_sae]);
    }
    let files = file::map(path, &names, shapes)?;
    if names.last() == Some(&SCALING) {
        let scaling = files.tensor(names.len() - 1, 1, config.d_sae).to_f32();
        if let Some(other) = scaling.iter().find(|&&factor| factor != 1.0) {
            return Err(config.in_file(SaeError::Unsupported {
                field: SCALING,
                got: other.to_string(),
                reason: "only a factor of 1 is supported; SAELens itself no longer applies others",
            }));
        }
    }
    Ok((config, files))
}

fn unit_rows(rows: &[f32], d_in: usize) -> bool {
    rows.chunks_exact(d_in.max(1)).all(|row| {
        let square: f64 = row.iter().map(|&weight| f64::from(weight).powi(2)).sum();
        (square - 1.0).abs() < 1e-3
    })
}

/// The tensors of a file as ours are, everything the configuration does beyond ours put into them.
struct Folding {
    /// `W_enc` `[d_in, d_sae]`.
    encoder: Vec<f32>,
    encoder_bias: Vec<f32>,
    decoder: Vec<f32>,
    decoder_bias: Vec<f32>,
    d_sae: usize,
    d_in: usize,
    /// What inputs are multiplied with.
    scale: f64,
    rescale: bool,
    fold_bias: bool,
}

impl Folding {
    fn of(config: &Config, files: &Mapped) -> Self {
        let (d_in, d_sae) = (config.d_in, config.d_sae);
        Self {
            encoder: files.tensor(0, d_in, d_sae).to_f32(),
            encoder_bias: files.tensor(1, 1, d_sae).to_f32(),
            decoder: files.tensor(2, d_sae, d_in).to_f32(),
            decoder_bias: files.tensor(3, 1, d_in).to_f32(),
            d_sae,
            d_in,
            scale: config.scale,
            rescale: config.rescale,
            fold_bias: !config.apply_b_dec_to_input && !config.transcode,
        }
    }

    fn tensors(mut self) -> SaeTensors {
        let (d_in, d_sae) = (self.d_in, self.d_sae);
        let mut encoder_weight = vec![0.0; d_in * d_sae];
        for latent in 0..d_sae {
            let decoder = &mut self.decoder[latent * d_in..][..d_in];
            let square: f64 = decoder.iter().map(|&weight| f64::from(weight).powi(2)).sum();
            // A latent without direction is never active: its encoder becomes 0 as well.
            let length = if self.rescale { square.sqrt() / self.scale } else { 1.0 };
            let column = (0..d_in).map(|i| f64::from(self.encoder[i * d_sae + latent]));
            let mut bias = f64::from(self.encoder_bias[latent]);
            if self.fold_bias {
                let biases = self.decoder_bias.iter().map(|&bias| f64::from(bias));
                bias += column.clone().zip(biases).map(|(weight, bias)| weight * bias).sum::<f64>();
            }
            self.encoder_bias[latent] = (bias * length) as f32;
            let row = &mut encoder_weight[latent * d_in..][..d_in];
            for (out, weight) in row.iter_mut().zip(column) {
                *out = (weight * self.scale * length) as f32;
            }
            if length > 0.0 {
                for weight in decoder {
                    *weight = (f64::from(*weight) / self.scale / length) as f32;
                }
            }
        }
        for bias in &mut self.decoder_bias {
            *bias = (f64::from(*bias) / self.scale) as f32;
        }
        SaeTensors {
            encoder_weight,
            encoder_bias: self.encoder_bias,
            decoder_weight: self.decoder,
            decoder_bias: self.decoder_bias,
            skip_weight: None,
        }
    }
}

/// A tensor on its way into a file.
struct Outgoing<'a> {
    name: &'static str,
    weights: Weights<'a>,
    shape: Vec<usize>,
    dtype: WeightDtype,
    transposed: bool,
}

impl<'a> Outgoing<'a> {
    fn new(name: &'static str, weights: Weights<'a>, shape: Vec<usize>, dtype: WeightDtype) -> Self {
        Self { name, weights, shape, dtype, transposed: false }
    }
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            WeightDtype::F32 => Dtype::F32,
            WeightDtype::F16 => Dtype::F16,
            WeightDtype::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.weights.converted(self.dtype);
        if self.transposed {
            Cow::Owned(transpose(&bytes, self.weights.shape(), self.dtype.size()))
        } else {
            bytes
        }
    }

    fn data_len(&self) -> usize {
        self.weights.len() * self.dtype.size()
    }
}

/// Rows that are turned at once, so that each write fills a cache line.
const BLOCK: usize = 32;

/// `[cols, rows]` of elements of `size` bytes, from `[rows, cols]`.
fn transpose(bytes: &[u8], [rows, cols]: [usize; 2], size: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for first in (0..rows).step_by(BLOCK) {
        let block = first..(first + BLOCK).min(rows);
        for col in 0..cols {
            for row in block.clone() {
                let (to, from) = ((col * rows + row) * size, (row * cols + col) * size);
                out[to..to + size].copy_from_slice(&bytes[from..from + size]);
            }
        }
    }
    out
}
