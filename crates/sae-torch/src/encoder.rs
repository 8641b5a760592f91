//! [`Encoder`]: an autoencoder where the activations are, on a CPU without libtorch's dense matrices.

use ndarray::{Array2, ArrayView2};
use sae_core::{Sae, SaeError};
use sae_types::SparseCodes;
use tch::{Device, Kind, Tensor};

use crate::{TorchSae, TorchSaeError};

/// What runs an autoencoder on activations that libtorch holds: on a CPU the kernels of `sae-core`, which make no matrix
/// `[tokens, num_latents]` and give the same bits for any number of threads; on any other device libtorch.
#[derive(Debug)]
pub enum Encoder<'a> {
    /// On a CPU.
    Kernels(&'a Sae),
    /// On any other device.
    Torch(TorchSae),
}

impl<'a> Encoder<'a> {
    /// An encoder for activations on `device`, to which the weights go as f32 unless it is a CPU.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(sae: &'a Sae, device: Device) -> Result<Self, TorchSaeError> {
        if device == Device::Cpu {
            return Ok(Self::Kernels(sae));
        }
        Self::torch(sae, device)
    }

    fn torch(sae: &Sae, device: Device) -> Result<Self, TorchSaeError> {
        TorchSae::from_sae(sae, device, Kind::Float).map(Self::Torch)
    }

    /// The codes of the rows of `x` `[n, d_in]`, of any float dtype.
    ///
    /// # Errors
    /// When an activation is not finite, or the device fails.
    ///
    /// # Panics
    /// When `x` is not `[n, d_in]`.
    #[track_caller]
    pub fn encode(&self, x: &Tensor) -> Result<SparseCodes, TorchSaeError> {
        match self {
            Self::Kernels(sae) => {
                let (shape, rows) = read(x)?;
                sae.encode(view(shape, &rows)).map_err(encode)
            }
            Self::Torch(sae) => sae.encode(x).to_codes(sae.num_latents()),
        }
    }

    /// The codes of the rows of `x` `[n, d_in]`, of any float dtype, and what they stand for, `[n, d_in]` f32 on the device of
    /// `x`, with the skip connection where there is one.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    ///
    /// # Panics
    /// As [`Encoder::encode`].
    #[track_caller]
    pub fn reconstruct(&self, x: &Tensor) -> Result<(SparseCodes, Tensor), TorchSaeError> {
        match self {
            Self::Kernels(sae) => {
                let (shape, rows) = read(x)?;
                let (codes, result) = sae.reconstruct(view(shape, &rows)).map_err(encode)?;
                Ok((codes, tensor(&result)))
            }
            Self::Torch(sae) => {
                let (codes, result) = sae.reconstruct(x);
                Ok((codes.to_codes(sae.num_latents())?, result))
            }
        }
    }
}

fn encode(source: SaeError) -> TorchSaeError {
    TorchSaeError::Encode { source }
}

/// Copies `[n, d]` to f32 numbers in order.
fn read(x: &Tensor) -> Result<([usize; 2], Vec<f32>), TorchSaeError> {
    let read_back = |source| TorchSaeError::ReadBack { what: "activations", source };
    let (rows, columns) = x.size2().map_err(read_back)?;
    let flat = Vec::try_from(x.to_kind(Kind::Float).reshape([-1])).map_err(read_back)?;
    Ok(([rows as usize, columns as usize], flat))
}

fn view(shape: [usize; 2], flat: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape(shape, flat).expect("as many numbers as the shape says")
}

fn tensor(array: &Array2<f32>) -> Tensor {
    let flat = array.as_slice().expect("a new array is contiguous");
    Tensor::from_slice(flat).reshape([array.nrows() as i64, array.ncols() as i64])
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use sae_core::{Activation, SaeConfig, SaeTensors};

    use super::*;

    #[test]
    fn libtorch_runs_what_the_kernels_run() {
        tch::set_num_threads(1);
        let (d_in, latents) = (12, 60);
        for (activation, transcode) in [
            (Activation::TopK, false),
            (Activation::BatchTopK { threshold: 0.8 }, false),
            (Activation::TopK, true),
        ] {
            let mut random = ChaCha8Rng::seed_from_u64(3);
            let mut draw = |n: usize| (0..n).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let tensors = SaeTensors {
                encoder_weight: draw(latents * d_in),
                encoder_bias: draw(latents),
                decoder_weight: draw(latents * d_in),
                decoder_bias: draw(d_in),
                skip_weight: Some(draw(d_in * d_in)),
            };
            let mut config = SaeConfig::new(d_in, latents, 7);
            (config.activation, config.skip_connection, config.transcode) = (activation, true, transcode);
            let sae = Sae::from_parts(config, tensors).unwrap();
            let x = Tensor::from_slice(&draw(20 * d_in)).reshape([20, d_in as i64]);
            let kernels = Encoder::new(&sae, Device::Cpu).unwrap();
            assert!(matches!(kernels, Encoder::Kernels(_)));
            let torch = Encoder::torch(&sae, Device::Cpu).unwrap();
            let (codes, result) = kernels.reconstruct(&x).unwrap();
            let (other_codes, other_result) = torch.reconstruct(&x).unwrap();
            assert_eq!(codes, kernels.encode(&x).unwrap());
            assert_eq!(other_codes, torch.encode(&x).unwrap());
            assert_eq!(codes.latents(), other_codes.latents());
            assert_eq!(codes.offsets(), other_codes.offsets());
            let error = (result - other_result).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{activation:?}: off by {error}");
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_named() {
        let tensors = SaeTensors {
            encoder_weight: vec![1.0; 4],
            encoder_bias: vec![0.0; 2],
            decoder_weight: vec![1.0; 4],
            decoder_bias: vec![0.0; 2],
            skip_weight: None,
        };
        let sae = Sae::from_parts(SaeConfig::new(2, 2, 1), tensors).unwrap();
        let x = Tensor::from_slice(&[1.0_f32, 2.0, f32::NAN, 4.0]).reshape([2, 2]);
        for encoder in [Encoder::new(&sae, Device::Cpu).unwrap(), Encoder::torch(&sae, Device::Cpu).unwrap()]
        {
            let error = encoder.encode(&x).unwrap_err();
            assert_eq!(error.row(), Some(1), "{error:?}");
        }
    }
}
