//! Inputs that need no stage to have run: images, made-up autoencoders, copies of the model with one thing changed.

use std::fs;

use sae_core::{Sae, SaeConfig, SaeTensors, WeightDtype};
use sae_types::HookPoint;
use serde_json::Value;

use crate::Scratch;

/// A 96 x 96 picture in PNM, which every image decoder reads: a bright square on dark ground.
fn square(left: usize) -> Vec<u8> {
    let mut bytes = b"P6\n96 96\n255\n".to_vec();
    for pixel in 0..96 * 96 {
        let (row, column) = (pixel / 96, pixel % 96);
        let inside = (30..60).contains(&row) && (left..left + 30).contains(&column);
        bytes.extend_from_slice(if inside { &[220, 40, 40] } else { &[40, 40, 60] });
    }
    bytes
}

impl Scratch {
    /// Writes an image folder of `n` pictures.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn images(&self, name: &str, n: usize) {
        fs::create_dir(self.path(name)).expect("a new folder");
        for number in 0..n {
            // Decoders go by the content, not by the ending.
            let file = self.path(name).join(format!("{number:03}.png"));
            fs::write(file, square(number * 7 % 60)).expect("a picture");
        }
    }

    /// Writes an autoencoder that was never trained: `latents` seeded directions, `k` of them on.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn sae(&self, folder: &str, hook: &HookPoint, d_in: usize, latents: usize, k: usize) {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let weight: Vec<f32> = (0..latents * d_in).map(|_| next()).collect();
        let tensors = SaeTensors {
            encoder_weight: weight.clone(),
            encoder_bias: vec![0.0; latents],
            decoder_weight: weight,
            decoder_bias: vec![0.0; d_in],
            skip_weight: None,
        };
        let sae = Sae::from_parts(SaeConfig::new(d_in, latents, k), tensors).expect("a sound autoencoder");
        sae.save(&self.path(folder).join(hook.as_str()), WeightDtype::F32).expect("writing an autoencoder");
    }

    /// Makes `broken`, the embedded model with another `config.json`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn model_with_config(&self, change: impl FnOnce(&mut Value)) {
        let mut config = self.json("model/config.json");
        change(&mut config);
        self.model_with("config.json", config.to_string().as_bytes());
    }

    /// Makes `broken`, the embedded model with other weights.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn model_with_weights(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut weights = fs::read(self.path("model/model.safetensors")).expect("the model's weights");
        change(&mut weights);
        self.model_with("model.safetensors", &weights);
    }

    fn model_with(&self, name: &str, bytes: &[u8]) {
        let model = self.path("model").canonicalize().expect("the model");
        fs::create_dir(self.path("broken")).expect("a new folder");
        for entry in fs::read_dir(model).expect("the model's files") {
            let file = entry.expect("an entry").path();
            let to = self.path("broken").join(file.file_name().expect("a name"));
            std::os::unix::fs::symlink(file, to).expect("a link");
        }
        let path = self.path("broken").join(name);
        fs::remove_file(&path).expect("removing a link");
        fs::write(path, bytes).expect("a changed file");
    }
}
