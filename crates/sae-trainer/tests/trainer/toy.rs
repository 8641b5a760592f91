//! Vectors whose dictionary is known, and what tests ask of trainers and autoencoders.

use ndarray::Array2;
use sae_core::{Sae, SaeTensors};
use sae_trainer::{Trainer, TrainerConfig};
use tch::{Device, Kind, Tensor};

pub(crate) const D_IN: i64 = 32;
pub(crate) const ATOMS: i64 = 40;
pub(crate) const ACTIVE: i64 = 3;

/// `[n, 32]` vectors, each the sum of 3 of 40 directions with weights in [1, 2), and an offset common to all.
pub(crate) struct Toy {
    pub(crate) dictionary: Tensor,
    pub(crate) offset: Tensor,
}

impl Toy {
    pub(crate) fn new() -> Self {
        // Toys are too small to share out, and a test run has a process per core already.
        tch::set_num_threads(1);
        tch::manual_seed(11);
        let dictionary = Tensor::randn([ATOMS, D_IN], (Kind::Float, Device::Cpu));
        let dictionary = &dictionary / dictionary.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
        Self { dictionary, offset: Tensor::randn([D_IN], (Kind::Float, Device::Cpu)) * 5.0 }
    }

    pub(crate) fn batch(&self, n: i64) -> Tensor {
        let options = (Kind::Float, Device::Cpu);
        let (_, atoms) = Tensor::rand([n, ATOMS], options).topk(ACTIVE, 1, true, true);
        let weights = Tensor::rand([n, ACTIVE], options) + 1.0;
        let codes = Tensor::zeros([n, ATOMS], options).scatter(1, &atoms, &weights);
        codes.matmul(&self.dictionary) + &self.offset
    }
}

pub(crate) fn config(steps: u64) -> TrainerConfig {
    let mut config = TrainerConfig::new(D_IN as usize, 2 * ATOMS as usize, ACTIVE as usize, steps);
    config.lr = Some(5e-3);
    config.dead_feature_threshold = 5_000;
    config
}

pub(crate) fn tensors(sae: &Sae) -> SaeTensors {
    SaeTensors {
        encoder_weight: sae.encoder_weight().to_f32(),
        encoder_bias: sae.encoder_bias().to_f32(),
        decoder_weight: sae.decoder_weight().to_f32(),
        decoder_bias: sae.decoder_bias().to_f32(),
        skip_weight: sae.skip_weight().map(|weight| weight.to_f32()),
    }
}

pub(crate) fn decoder(trainer: &Trainer) -> Tensor {
    let weight = trainer.to_sae().unwrap().decoder_weight().to_f32();
    Tensor::from_slice(&weight).reshape([-1, D_IN])
}

pub(crate) fn decoder_row_lengths(trainer: &Trainer) -> Tensor {
    decoder(trainer).norm_scalaropt_dim(2, [1_i64].as_slice(), false)
}

/// Rows as sae-core reads them.
pub(crate) fn array(tensor: &Tensor) -> Array2<f32> {
    let size = tensor.size();
    let flat: Vec<f32> = Vec::try_from(tensor.to_kind(Kind::Float).reshape([-1])).unwrap();
    Array2::from_shape_vec((size[0] as usize, size[1] as usize), flat).unwrap()
}

/// The fraction of the variance of `y` that `decoded` leaves unexplained.
pub(crate) fn fvu(y: &Array2<f32>, decoded: &Array2<f32>) -> f64 {
    let mut reconstruction = sae_core::metrics::Reconstruction::new();
    reconstruction.push(y.view(), decoded.view());
    reconstruction.fvu().unwrap()
}

/// `sae` with another k.
pub(crate) fn with_k(sae: &Sae, k: usize) -> Sae {
    let mut config = sae.config().clone();
    config.k = k;
    Sae::from_parts(config, tensors(sae)).unwrap()
}

/// All numbers of an autoencoder.
pub(crate) fn numbers(sae: &Sae) -> Vec<f32> {
    let SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight } = tensors(sae);
    let parts = [encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight.unwrap_or_default()];
    parts.concat()
}
