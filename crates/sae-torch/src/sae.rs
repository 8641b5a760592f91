//! [`TorchSae`]: an autoencoder's parameters on a device, encode and decode.

use sae_core::{Activation, Sae, SaeConfig, SaeTensors, WeightDtype, Weights};
use tch::{Device, Kind, Tensor, no_grad};

use crate::bags::Bags;
use crate::{TopK, TorchSaeError};

/// Bytes that dense pre-activations may take at once, unless [`TorchSae::with_dense_budget`] says otherwise.
const DENSE_BUDGET: usize = 256 << 20;

/// A sparse autoencoder or transcoder on a libtorch device.
///
/// `x` is centred in f32 and then computed in the parameters' dtype. Methods panic where libtorch fails: shapes and devices
/// that do not fit, memory running out. All are differentiable in `x` and in the parameters unless they say otherwise.
#[derive(Debug)]
pub struct TorchSae {
    config: SaeConfig,
    parameters: Parameters,
    dense_budget: usize,
}

/// The tensors of an autoencoder, of one dtype on one device.
#[derive(Debug)]
pub struct Parameters {
    /// `W_enc` `[num_latents, d_in]`.
    pub encoder_weight: Tensor,
    /// `b_enc` `[num_latents]`.
    pub encoder_bias: Tensor,
    /// `W_dec` `[num_latents, d_in]`, one row per latent.
    pub decoder_weight: Tensor,
    /// `b_dec` `[d_in]`.
    pub decoder_bias: Tensor,
    /// `W_skip` `[d_in, d_in]`, there exactly when the configuration has a skip connection.
    pub skip_weight: Option<Tensor>,
}

impl TorchSae {
    /// Uploads the weights of `sae` from the bytes they are stored in and converts them to `kind` on the device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn from_sae(sae: &Sae, device: Device, kind: Kind) -> Result<Self, TorchSaeError> {
        let (latents, d_in) = (sae.num_latents() as i64, sae.d_in() as i64);
        let upload = |tensor, weights: Weights<'_>, shape: &[i64]| {
            let stored = match weights.dtype() {
                WeightDtype::F32 => Kind::Float,
                WeightDtype::F16 => Kind::Half,
                WeightDtype::Bf16 => Kind::BFloat16,
            };
            Tensor::f_from_data_size(weights.bytes(), shape, stored)
                .and_then(|tensor| tensor.f_to_device(device))
                .and_then(|tensor| tensor.f_to_kind(kind))
                .map_err(|source| TorchSaeError::Place {
                    tensor,
                    bytes: weights.bytes().len(),
                    device,
                    source,
                })
        };
        let parameters = Parameters {
            encoder_weight: upload("encoder.weight", sae.encoder_weight(), &[latents, d_in])?,
            encoder_bias: upload("encoder.bias", sae.encoder_bias(), &[latents])?,
            decoder_weight: upload("W_dec", sae.decoder_weight(), &[latents, d_in])?,
            decoder_bias: upload("b_dec", sae.decoder_bias(), &[d_in])?,
            skip_weight: sae
                .skip_weight()
                .map(|weight| upload("W_skip", weight, &[d_in, d_in]))
                .transpose()?,
        };
        Ok(Self { config: sae.config().clone(), parameters, dense_budget: DENSE_BUDGET })
    }

    /// Makes an autoencoder of tensors, which it shares with the caller.
    ///
    /// # Errors
    /// When `config` is out of range.
    ///
    /// # Panics
    /// When a tensor's shape does not follow from `config`, or there is a skip weight where `config` has no skip connection, or
    /// the other way round.
    #[track_caller]
    pub fn from_parameters(config: SaeConfig, parameters: Parameters) -> Result<Self, TorchSaeError> {
        config.validate().map_err(|source| TorchSaeError::Parameters { source })?;
        let (latents, d_in) = (config.num_latents as i64, config.d_in as i64);
        assert_eq!(parameters.encoder_weight.size(), [latents, d_in], "shape of encoder.weight");
        assert_eq!(parameters.encoder_bias.size(), [latents], "shape of encoder.bias");
        assert_eq!(parameters.decoder_weight.size(), [latents, d_in], "shape of W_dec");
        assert_eq!(parameters.decoder_bias.size(), [d_in], "shape of b_dec");
        let skip = parameters.skip_weight.as_ref().map(Tensor::size);
        assert_eq!(skip, config.skip_connection.then(|| vec![d_in, d_in]), "shape of W_skip");
        Ok(Self { config, parameters, dense_budget: DENSE_BUDGET })
    }

    /// Copies the parameters off the device, as f32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_sae(&self) -> Result<Sae, TorchSaeError> {
        let read = |what, tensor: &Tensor| {
            let flat = no_grad(|| tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]));
            Vec::<f32>::try_from(flat).map_err(|source| TorchSaeError::ReadBack { what, source })
        };
        let parameters = &self.parameters;
        let tensors = SaeTensors {
            encoder_weight: read("encoder.weight", &parameters.encoder_weight)?,
            encoder_bias: read("encoder.bias", &parameters.encoder_bias)?,
            decoder_weight: read("W_dec", &parameters.decoder_weight)?,
            decoder_bias: read("b_dec", &parameters.decoder_bias)?,
            skip_weight: parameters.skip_weight.as_ref().map(|weight| read("W_skip", weight)).transpose()?,
        };
        Sae::from_parts(self.config.clone(), tensors).map_err(|source| TorchSaeError::Parameters { source })
    }

    /// Encodes in chunks of tokens whose dense pre-activations `[chunk, num_latents]` take at most `bytes`, but of at
    /// least one token. 256 MiB unless set.
    pub fn with_dense_budget(mut self, bytes: usize) -> Self {
        self.dense_budget = bytes;
        self
    }

    pub(crate) fn dense_budget(&self) -> usize {
        self.dense_budget
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

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.parameters.encoder_weight.device()
    }

    /// What the parameters are stored and multiplied in.
    pub fn kind(&self) -> Kind {
        self.parameters.encoder_weight.kind()
    }

    /// `W_enc` `[num_latents, d_in]`.
    pub fn encoder_weight(&self) -> &Tensor {
        &self.parameters.encoder_weight
    }

    /// `b_enc` `[num_latents]`.
    pub fn encoder_bias(&self) -> &Tensor {
        &self.parameters.encoder_bias
    }

    /// `W_dec` `[num_latents, d_in]`, one row per latent.
    pub fn decoder_weight(&self) -> &Tensor {
        &self.parameters.decoder_weight
    }

    /// `b_dec` `[d_in]`.
    pub fn decoder_bias(&self) -> &Tensor {
        &self.parameters.decoder_bias
    }

    /// `W_skip` `[d_in, d_in]`, where there is a skip connection.
    pub fn skip_weight(&self) -> Option<&Tensor> {
        self.parameters.skip_weight.as_ref()
    }

    /// The parameters, to change in place.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// `x - b_dec` `[n, d_in]`, subtracted in f32 (or wider, as the parameters are), in the parameters' dtype. A transcoder
    /// subtracts nothing.
    ///
    /// # Panics
    /// When `x` is not `[n, d_in]`.
    #[track_caller]
    pub fn centre(&self, x: &Tensor) -> Tensor {
        assert!(
            matches!(x.size()[..], [_, columns] if columns == self.d_in() as i64),
            "x is {:?}, expected [n, {}]",
            x.size(),
            self.d_in()
        );
        if self.config.transcode {
            return x.to_kind(self.kind());
        }
        let wide = self.wide();
        (x.to_kind(wide) - self.decoder_bias().to_kind(wide)).to_kind(self.kind())
    }

    /// f32, or what is wider.
    fn wide(&self) -> Kind {
        if self.kind() == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// The activations that each row of `x` `[n, d_in]`, which may be of any float dtype, keeps: the k largest, or with BatchTopK
    /// all above the threshold, as many columns as the row with the most has, zeros in the others.
    ///
    /// NaN in a row comes out as a NaN among its largest activations, which [`TopK::to_codes`] reports.
    ///
    /// # Panics
    /// When `x` is not `[n, d_in]`.
    #[track_caller]
    pub fn encode(&self, x: &Tensor) -> TopK {
        self.encode_edited(x, |dense, _| dense)
    }

    /// As [`TorchSae::encode`], but what is kept is chosen among activations that `edit` changed. It is given the activations
    /// after ReLU `[rows, num_latents]` of some rows of `x`, which are its own, and the number of the first of these rows.
    ///
    /// # Panics
    /// As [`TorchSae::encode`], and when `edit` gives a tensor of another shape.
    #[track_caller]
    pub fn encode_edited(&self, x: &Tensor, edit: impl Fn(Tensor, i64) -> Tensor) -> TopK {
        let centred = self.centre(x);
        let columns = self.encoder_weight().tr();
        let dense = |rows: &Tensor, start| {
            let dense = edit(self.encoder_bias().addmm(rows, &columns).relu_(), start);
            assert_eq!(dense.size(), [rows.size()[0], self.num_latents() as i64], "edited activations");
            dense
        };
        match self.config.activation {
            Activation::BatchTopK { threshold } => self.above(&centred, threshold, dense),
            _ => self.in_chunks(&centred, self.num_latents() as i64, |rows, start| {
                first_of(&dense(rows, start), self.k())
            }),
        }
    }

    /// The `count` largest activations of each row of `centred` = [`TorchSae::centre`]`(x)`.
    ///
    /// # Panics
    /// When `count` is more than the number of latents.
    #[track_caller]
    pub fn encode_centred(&self, centred: &Tensor, count: usize) -> TopK {
        self.largest(centred, self.encoder_weight(), self.encoder_bias(), count)
    }

    /// As [`TorchSae::encode_centred`], but only among `latents` `[m]`, i64 and distinct.
    ///
    /// # Panics
    /// When `count` is more than m.
    #[track_caller]
    pub fn encode_among(&self, centred: &Tensor, latents: &Tensor, count: usize) -> TopK {
        let weight = self.encoder_weight().index_select(0, latents);
        let bias = self.encoder_bias().index_select(0, latents);
        let TopK { indices, values } = self.largest(centred, &weight, &bias, count);
        let indices = latents.index_select(0, &indices.reshape([-1])).reshape(indices.size());
        TopK { indices, values }
    }

    #[track_caller]
    fn largest(&self, centred: &Tensor, weight: &Tensor, bias: &Tensor, count: usize) -> TopK {
        let latents = bias.size()[0];
        assert!(count as i64 <= latents, "{count} of {latents} latents");
        let columns = weight.tr();
        let encode = |rows: &Tensor, _| {
            // The product is this function's own, so that ReLU may overwrite it.
            first_of(&bias.addmm(rows, &columns).relu_(), count)
        };
        self.in_chunks(centred, latents, encode)
    }

    /// All of the `activations` of rows above `threshold`.
    #[track_caller]
    fn above(&self, centred: &Tensor, threshold: f32, activations: impl Fn(&Tensor, i64) -> Tensor) -> TopK {
        let encode = |rows: &Tensor, start| {
            let dense = activations(rows, start);
            // Compared as wide as the threshold is. NaN counts as above, to be reported.
            let off = dense.to_kind(self.wide()).le(f64::from(threshold));
            let dense = dense.masked_fill(&off, 0.0);
            let widest = if rows.size()[0] == 0 { 0 } else { dense.count_nonzero(1).max().int64_value(&[]) };
            let (values, indices) = dense.topk(widest, 1, true, true);
            TopK { indices, values }
        };
        self.in_chunks(centred, self.num_latents() as i64, encode)
    }

    /// Encodes rows of `latents` pre-activations within the dense budget; `encode` is told the number of its first row.
    fn in_chunks(&self, centred: &Tensor, latents: i64, encode: impl Fn(&Tensor, i64) -> TopK) -> TopK {
        let n = centred.size()[0];
        let row_bytes = latents as usize * self.kind().elt_size_in_bytes();
        let chunk = i64::try_from(self.dense_budget / row_bytes.max(1)).unwrap_or(i64::MAX).max(1);
        if n <= chunk {
            return encode(centred, 0);
        }
        let parts: Vec<TopK> = (0..n)
            .step_by(chunk as usize)
            .map(|start| encode(&centred.narrow(0, start, chunk.min(n - start)), start))
            .collect();
        TopK::join(&parts)
    }

    /// `b_dec + Σ value · W_dec[index]` `[n, d_in]`, in the parameters' dtype.
    ///
    /// # Panics
    /// When an index is beyond the width, or the codes are on another device or of another dtype.
    #[track_caller]
    pub fn decode(&self, codes: &TopK) -> Tensor {
        self.decode_without_bias(codes) + self.decoder_bias()
    }

    /// `x · W_skipᵀ` `[n, d_in]`, in the parameters' dtype, where there is a skip connection.
    ///
    /// # Panics
    /// When `x` is not `[n, d_in]`.
    #[track_caller]
    pub fn skip(&self, x: &Tensor) -> Option<Tensor> {
        self.skip_weight().map(|weight| x.to_kind(self.kind()).matmul(&weight.tr()))
    }

    /// The codes of `x` `[n, d_in]` and what they stand for `[n, d_in]`: what is decoded, plus `x · W_skipᵀ` where there is a skip
    /// connection. Of an autoencoder the result is a reconstruction of `x`; a transcoder is given a module's input and
    /// predicts its output.
    ///
    /// # Panics
    /// When `x` is not `[n, d_in]`.
    #[track_caller]
    pub fn reconstruct(&self, x: &Tensor) -> (TopK, Tensor) {
        let codes = self.encode(x);
        let decoded = self.decode(&codes);
        let out = match self.skip(x) {
            Some(skip) => decoded + skip,
            None => decoded,
        };
        (codes, out)
    }

    /// `Σ value · W_dec[index]` `[n, d_in]`, in the parameters' dtype.
    ///
    /// # Panics
    /// As [`TorchSae::decode`].
    #[track_caller]
    pub fn decode_without_bias(&self, codes: &TopK) -> Tensor {
        let n = codes.indices.size()[0];
        if codes.indices.numel() == 0 {
            return Tensor::zeros([n, self.d_in() as i64], (self.kind(), self.device()));
        }
        Bags::new(codes).sum_rows(self.decoder_weight())
    }
}

/// The `count` largest of each row.
fn first_of(dense: &Tensor, count: usize) -> TopK {
    let (values, indices) = dense.topk(count as i64, 1, true, true);
    TopK { indices, values }
}
