//! Writes the autoencoder of a shape as the folder that [`sae_core::Sae::load`] maps, a piece at a time.
//!
//! [`sae_core::Sae::save`] would need both matrices in memory. Here a tensor starts on a page, so that another program can
//! map the same numbers.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use half::bf16;
use sae_core::WeightDtype;
use serde_json::json;

use crate::Shape;
use crate::inputs::{self, BLOCK, seeds};

/// What tensors are aligned to.
const PAGE: usize = 4096;
/// Blocks made between two writes: 64 MiB of f32.
const BLOCKS: usize = 256;

/// Writes `cfg.json` and `sae.safetensors` into `folder`, which exists.
///
/// # Errors
/// When a file cannot be written.
pub fn write(shape: &Shape, dtype: WeightDtype, folder: &Path) -> Result<()> {
    let config = json!({
        "expansion_factor": shape.latents.div_ceil(shape.d_in), "normalize_decoder": false,
        "num_latents": shape.latents, "k": shape.k, "multi_topk": false, "d_in": shape.d_in,
    });
    std::fs::write(folder.join("cfg.json"), config.to_string())?;

    // The matrices of every shape are whole pages long, so all tensors but b_dec start on one.
    let tensors = [
        ("encoder.weight", vec![shape.latents, shape.d_in]),
        ("W_dec", vec![shape.latents, shape.d_in]),
        ("encoder.bias", vec![shape.latents]),
        ("b_dec", vec![shape.d_in]),
    ];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.size();
        let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // The length of the header, then the header, padded with spaces as the format allows.
    let padding = (8 + header.len()).next_multiple_of(PAGE) - 8 - header.len();
    header.extend(std::iter::repeat_n(' ', padding));

    let mut file = File::create(folder.join("sae.safetensors"))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let scale = inputs::scale(shape);
    for seed in [seeds::ENCODER_WEIGHT, seeds::DECODER_WEIGHT] {
        let mut buffer = vec![0; BLOCKS * BLOCK * dtype.size()];
        let mut left = shape.weights() * dtype.size();
        for piece in 0.. {
            let bytes = left.min(buffer.len());
            if bytes == 0 {
                break;
            }
            inputs::fill(dtype, scale, seed, piece * BLOCKS, &mut buffer[..bytes]);
            file.write_all(&buffer[..bytes])?;
            left -= bytes;
        }
    }
    for bias in [inputs::encoder_bias(shape), inputs::decoder_bias(shape)] {
        if dtype == WeightDtype::F32 {
            file.write_all(bytemuck::cast_slice(&bias))?;
        } else {
            let rounded: Vec<bf16> = bias.into_iter().map(bf16::from_f32).collect();
            file.write_all(bytemuck::cast_slice(&rounded))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sae_core::Sae;

    use super::*;
    use crate::SHAPES;

    #[test]
    fn the_library_reads_the_numbers_of_the_benches() {
        let shape = &SHAPES[0];
        for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
            let folder = tempfile::tempdir().unwrap();
            write(shape, dtype, folder.path()).unwrap();
            let sae = Sae::load(folder.path()).unwrap();
            assert_eq!((sae.d_in(), sae.num_latents(), sae.k()), (shape.d_in, shape.latents, shape.k));
            assert_eq!(sae.encoder_weight().bytes(), inputs::encoder_weight(shape, dtype).view().bytes());
            assert_eq!(sae.decoder_weight().bytes(), inputs::decoder_weight(shape, dtype).view().bytes());
        }
    }
}
