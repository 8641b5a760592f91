//! [`Subject`]: an autoencoder at its place in the model.

use lmm_hooks::LlavaNext;
use ndarray::Array2;
use sae_core::Sae;
use sae_torch::TorchSaeError;
use sae_types::HookPoint;
use tch::{Device, Tensor};

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

    /// Puts its name to what `sae-torch` reports.
    pub(crate) fn failed(&self) -> impl FnOnce(TorchSaeError) -> EvalError + use<> {
        let name = self.name.clone();
        |source| EvalError::Encode { name, source: Box::new(source) }
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

/// Copies `[n, d]` f32 off the device.
pub(crate) fn array(tensor: &Tensor) -> Result<Array2<f32>, EvalError> {
    let read_back = |source| EvalError::ReadBack { what: "activations", source };
    let (rows, columns) = tensor.size2().map_err(read_back)?;
    let flat = Vec::<f32>::try_from(tensor.to_device(Device::Cpu).reshape([-1])).map_err(read_back)?;
    Ok(Array2::from_shape_vec((rows as usize, columns as usize), flat)
        .expect("as many numbers as the shape says"))
}
