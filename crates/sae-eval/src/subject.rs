//! [`Subject`]: an autoencoder at its place in the model, and what runs it.

use lmm_hooks::LlavaNext;
use ndarray::Array2;
use sae_core::Sae;
use sae_torch::TorchSae;
use sae_types::{HookPoint, SparseCodes};
use tch::{Device, Kind, Tensor};

use crate::EvalError;

/// An autoencoder or transcoder with its place in the model.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    pub(crate) name: String,
    pub(crate) input: HookPoint,
    pub(crate) output: HookPoint,
    pub(crate) sae: &'a Sae,
}

impl<'a> Subject<'a> {
    /// An autoencoder of what the module at `hook` gives. `name` is for people.
    ///
    /// # Panics
    /// When `sae` is a transcoder.
    #[track_caller]
    pub fn autoencoder(name: impl Into<String>, hook: HookPoint, sae: &'a Sae) -> Self {
        assert!(!sae.config().transcode, "a transcoder reads another hook point than it replaces");
        Self { name: name.into(), input: hook.clone(), output: hook, sae }
    }

    /// A transcoder that reads the tensor at `input` and predicts that at `output`, such as
    /// `model.layers.3.post_attention_layernorm` and `model.layers.3.mlp`, whose input it is.
    ///
    /// # Panics
    /// When `sae` is no transcoder.
    #[track_caller]
    pub fn transcoder(name: impl Into<String>, input: HookPoint, output: HookPoint, sae: &'a Sae) -> Self {
        assert!(sae.config().transcode, "an autoencoder reads the hook point that it replaces");
        Self { name: name.into(), input, output, sae }
    }

    /// Checks that the model has both hook points, as wide as the autoencoder.
    pub(crate) fn check(&self, model: &LlavaNext) -> Result<(), EvalError> {
        for point in [&self.input, &self.output] {
            let (name, point) = (self.name.clone(), point.clone());
            if model.is_vision(&point).map_err(EvalError::model)? {
                return Err(EvalError::VisionPoint { name, point });
            }
            let got = model.width(&point).map_err(EvalError::model)? as usize;
            let expected = self.sae.d_in();
            if got != expected {
                return Err(EvalError::Width { name, point, expected, got });
            }
        }
        Ok(())
    }
}

/// What runs an autoencoder: the kernels of `sae-core`, or libtorch where the activations are on a GPU.
#[derive(Debug)]
pub(crate) enum Runner<'a> {
    Kernels(&'a Sae),
    Torch(TorchSae),
}

/// What an autoencoder makes of activations.
pub(crate) struct Run {
    pub(crate) codes: SparseCodes,
    /// `[n, d_in]` f32.
    pub(crate) result: Array2<f32>,
    /// The same, where the activations are.
    pub(crate) tensor: Tensor,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(subject: &Subject<'a>, device: Device) -> Result<Self, EvalError> {
        if device == Device::Cpu {
            return Ok(Self::Kernels(subject.sae));
        }
        Self::torch(subject, device)
    }

    fn torch(subject: &Subject<'a>, device: Device) -> Result<Self, EvalError> {
        TorchSae::from_sae(subject.sae, device, Kind::Float)
            .map(Self::Torch)
            .map_err(|source| EvalError::Device { name: subject.name.clone(), source: Box::new(source) })
    }

    /// Encodes and decodes `x` `[n, d_in]` f32.
    pub(crate) fn run(&self, name: &str, x: &Tensor) -> Result<Run, EvalError> {
        match self {
            Self::Kernels(sae) => {
                let x = array(x)?;
                let (codes, result) = sae.reconstruct(x.view()).map_err(|source| EvalError::Encode {
                    name: name.to_owned(),
                    source: Box::new(source),
                })?;
                let (rows, columns) = (result.nrows() as i64, result.ncols() as i64);
                let flat = result.as_slice().expect("a new array is contiguous");
                let tensor = Tensor::from_slice(flat).reshape([rows, columns]);
                Ok(Run { codes, result, tensor })
            }
            Self::Torch(sae) => {
                let (codes, tensor) = sae.reconstruct(x);
                let codes = codes.to_codes(sae.num_latents()).map_err(|source| EvalError::Device {
                    name: name.to_owned(),
                    source: Box::new(source),
                })?;
                Ok(Run { codes, result: array(&tensor)?, tensor })
            }
        }
    }
}

/// Copies `[n, d]` f32 off the device.
pub(crate) fn array(tensor: &Tensor) -> Result<Array2<f32>, EvalError> {
    let read_back = |source| EvalError::ReadBack { what: "activations", source };
    let (rows, columns) = tensor.size2().map_err(read_back)?;
    let flat = Vec::<f32>::try_from(tensor.to_device(Device::Cpu).reshape([-1])).map_err(read_back)?;
    Ok(Array2::from_shape_vec((rows as usize, columns as usize), flat)
        .expect("as many numbers as the shape says"))
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
        for activation in [Activation::TopK, Activation::BatchTopK { threshold: 0.8 }] {
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
            (config.activation, config.skip_connection) = (activation, true);
            let sae = Sae::from_parts(config, tensors).unwrap();
            let subject = Subject::autoencoder("one", HookPoint::layer(0), &sae);
            let x = Tensor::from_slice(&draw(20 * d_in)).reshape([20, d_in as i64]);
            let kernels = Runner::new(&subject, Device::Cpu).unwrap().run("one", &x).unwrap();
            let torch = Runner::torch(&subject, Device::Cpu).unwrap().run("one", &x).unwrap();
            assert_eq!(kernels.codes.latents(), torch.codes.latents());
            assert_eq!(kernels.codes.offsets(), torch.codes.offsets());
            for run in [&kernels, &torch] {
                assert_eq!(array(&run.tensor).unwrap(), run.result);
            }
            let error =
                (&kernels.result - &torch.result).into_iter().fold(0.0, |most: f32, one| most.max(one.abs()));
            assert!(error < 1e-5, "{activation:?}: off by {error}");
        }
    }
}
