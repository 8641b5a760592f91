//! What the stages share: fixture files, the drawn picture, hashes.

use std::path::PathBuf;

use image::RgbImage;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) fn read(name: &str) -> Vec<u8> {
    let path = fixture(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&read(name)).unwrap()
}

/// The image that `picture` of `fixtures/common.py` draws.
pub(crate) fn picture(height: u32, width: u32, seed: u32) -> RgbImage {
    let mut image = RgbImage::new(width, height);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        for (c, value) in (0..).zip(&mut pixel.0) {
            let v = x * (3 + c) + y * (5 + 2 * c) + ((x * y) >> (2 + c)) + 31 * seed * (c + 1);
            *value = (v ^ (v >> 3)) as u8;
        }
    }
    image
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// An integer tensor and its shape.
pub(crate) fn integers(tensors: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<i32>) {
    let view = tensors.tensor(name).unwrap();
    let values = view.data().chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()));
    (view.shape().to_vec(), values.collect())
}
