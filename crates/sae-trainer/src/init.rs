//! Where parameters start: drawn from a seed, or an autoencoder that is trained further.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::{Activation, Sae, SaeTensors};

use crate::backend::dot;
use crate::config::Selection;
use crate::{TrainerConfig, TrainerError};

/// Lengths this far from 1 are no rounding.
const UNIT_TOLERANCE: f64 = 1e-2;

/// See [`Trainer::new`](crate::Trainer::new).
pub(crate) fn draw(config: &TrainerConfig) -> SaeTensors {
    let (latents, d_in) = (config.num_latents, config.d_in);
    let bound = 1.0 / (d_in as f32).sqrt();
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    let encoder_weight: Vec<f32> = (0..latents * d_in).map(|_| random.random_range(-bound..bound)).collect();
    let mut decoder_weight =
        if config.transcode { vec![0.0; latents * d_in] } else { encoder_weight.clone() };
    if config.unit_rows() {
        for row in decoder_weight.chunks_mut(d_in) {
            let length = dot(row, row).sqrt();
            if length > 0.0 {
                for number in row {
                    *number = (f64::from(*number) / length) as f32;
                }
            }
        }
    }
    SaeTensors {
        encoder_weight,
        encoder_bias: vec![0.0; latents],
        decoder_weight,
        decoder_bias: vec![0.0; d_in],
        skip_weight: config.skip_connection.then(|| vec![0.0; d_in * d_in]),
    }
}

/// `b_enc = -W_enc · centre`.
pub(crate) fn centre_encoder(tensors: &mut SaeTensors, centre: &[f32]) {
    for (bias, row) in tensors.encoder_bias.iter_mut().zip(tensors.encoder_weight.chunks(centre.len())) {
        *bias = -dot(row, centre) as f32;
    }
}

/// The parameters of `sae`, as f32.
///
/// # Errors
/// When it is not what `config` says.
pub(crate) fn of_sae(config: &TrainerConfig, sae: &Sae) -> Result<SaeTensors, TrainerError> {
    let of = sae.config();
    let same = |field, expected: String, got: String| {
        if expected == got { Ok(()) } else { Err(TrainerError::FineTune { field, expected, got }) }
    };
    let kind = |activation: &Activation| match activation {
        Activation::TopK => Selection::TopK,
        _ => Selection::BatchTopK,
    };
    same("d_in", config.d_in.to_string(), of.d_in.to_string())?;
    same("num_latents", config.num_latents.to_string(), of.num_latents.to_string())?;
    same("activation", format!("{:?}", config.activation), format!("{:?}", kind(&of.activation)))?;
    same("transcode", config.transcode.to_string(), of.transcode.to_string())?;
    same("skip_connection", config.skip_connection.to_string(), of.skip_connection.to_string())?;
    let tensors = SaeTensors {
        encoder_weight: sae.encoder_weight().to_f32(),
        encoder_bias: sae.encoder_bias().to_f32(),
        decoder_weight: sae.decoder_weight().to_f32(),
        decoder_bias: sae.decoder_bias().to_f32(),
        skip_weight: sae.skip_weight().map(|weight| weight.to_f32()),
    };
    if config.unit_rows() {
        for (latent, row) in tensors.decoder_weight.chunks(config.d_in).enumerate() {
            let length = dot(row, row).sqrt();
            if length != 0.0 && (length - 1.0).abs() > UNIT_TOLERANCE {
                return Err(TrainerError::FineTune {
                    field: "normalize_decoder",
                    expected: "rows of W_dec of length 1".to_owned(),
                    got: format!("the length {length} for latent {latent}"),
                });
            }
        }
    }
    Ok(tensors)
}
