//! Where parameters start: drawn from a seed, or an autoencoder that is trained further.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::{Activation, Sae, SaeTensors, Weights};

use crate::backend::dot;
use crate::config::Selection;
use crate::{TrainerConfig, TrainerError};

/// Lengths this far from 1 are no rounding.
const UNIT_TOLERANCE: f64 = 1e-2;

/// See [`Trainer::new`](crate::Trainer::new). The rows of the latents `own`, which are the same whatever else is drawn.
pub(crate) fn draw(config: &TrainerConfig, own: Range<usize>) -> SaeTensors {
    let (latents, d_in) = (own.len(), config.d_in);
    let bound = 1.0 / (d_in as f32).sqrt();
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    // Each number takes one word.
    random.set_word_pos((own.start * d_in) as u128);
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

/// The parameters of `sae`, as f32, the rows of the latents `own`.
///
/// # Errors
/// When it is not what `config` says.
pub(crate) fn of_sae(
    config: &TrainerConfig,
    sae: &Sae,
    own: Range<usize>,
) -> Result<SaeTensors, TrainerError> {
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
    let rows = |weights: Weights<'_>| weights.rows_f32(own.clone(), &mut Vec::new()).to_vec();
    let tensors = SaeTensors {
        encoder_weight: rows(sae.encoder_weight()),
        encoder_bias: sae.encoder_bias().to_f32()[own.clone()].to_vec(),
        decoder_weight: rows(sae.decoder_weight()),
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
                    got: format!("the length {length} for latent {}", own.start + latent),
                });
            }
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_drawn_as_among_all() {
        let config = TrainerConfig::new(33, 1000, 4, 10);
        let all = draw(&config, 0..1000);
        for own in [0..1, 1..2, 499..707, 999..1000] {
            let part = draw(&config, own.clone());
            let rows = own.start * 33..own.end * 33;
            assert_eq!(part.encoder_weight, all.encoder_weight[rows.clone()], "{own:?}");
            assert_eq!(part.decoder_weight, all.decoder_weight[rows], "{own:?}");
        }
    }
}
