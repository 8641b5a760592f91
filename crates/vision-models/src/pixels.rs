//! From images to unit vectors: pixels are prepared while the model computes.

use std::path::Path;

use image::RgbImage;
use lmm_prep::{ImageProcessor, PrepError, PreprocessorConfig, Size};
use rayon::prelude::*;
use torch_nn::tch::{self, Device, Kind, Tensor};

use crate::VisionError;

/// Images or texts in one pass of a model. The hidden states of so many stay in a processor's cache where those of a large batch do not,
/// and results depend on how callers batch by roundings only.
pub(crate) const PASS: usize = 16;

/// Pixel values of one pass: flat, with their shape `[n, 3, height, width]`.
struct Prepared {
    values: Vec<f32>,
    shape: [i64; 4],
}

/// The pixel values of an image, `[3, height, width]`, f32 on the CPU.
pub(crate) fn whole(processor: &ImageProcessor, image: &RgbImage) -> Result<Tensor, VisionError> {
    let pixels = processor.whole(image)?;
    let shape: Vec<i64> = pixels.shape().iter().map(|&side| side as i64).collect();
    Ok(Tensor::from_slice(pixels.as_slice().expect("a new array is contiguous")).view(&shape[..]))
}

/// That every image comes out as a square of `side` pixels.
pub(crate) fn check_side(
    folder: &Path,
    preprocessor: &PreprocessorConfig,
    side: usize,
) -> Result<(), VisionError> {
    let square = Size { height: side as u32, width: side as u32 };
    match preprocessor.whole_size() {
        Some(size) if size == square => Ok(()),
        got => Err(VisionError::Folder {
            folder: folder.to_owned(),
            field: "crop_size, or size without a crop, of preprocessor_config.json",
            expected: format!("{square}, as config.json has it"),
            got: got.map_or_else(|| "a size that depends on the image".to_owned(), |size| size.to_string()),
        }),
    }
}

/// `[n, width]` f32 on `device`, rows of unit length: `features` of the pixels of all images, which come out of `processor` in
/// one size. The pixels of a pass are prepared on rayon's threads during the pass before it.
pub(crate) fn embed_overlapped(
    images: &[RgbImage],
    processor: &ImageProcessor,
    device: Device,
    kind: Kind,
    width: usize,
    features: impl Fn(&Tensor) -> Tensor,
) -> Result<Tensor, VisionError> {
    let passes: Vec<&[RgbImage]> = images.chunks(PASS).collect();
    let Some(first) = passes.first() else {
        return Ok(Tensor::zeros([0, width as i64], (Kind::Float, device)));
    };
    let mut embedded = Vec::with_capacity(passes.len());
    let mut next = Some(prepare(processor, first));
    for index in 1..=passes.len() {
        let Some(prepared) = next.take() else { break };
        let prepared = prepared?;
        let slot = &mut next;
        let out = rayon::in_place_scope(|scope| {
            if let Some(&images) = passes.get(index) {
                scope.spawn(move |_| *slot = Some(prepare(processor, images)));
            }
            let pixels = Tensor::from_slice(&prepared.values).view(prepared.shape);
            tch::no_grad(|| unit_length(&features(&pixels.to_device(device).to_kind(kind))))
        });
        embedded.push(out);
    }
    Ok(Tensor::cat(&embedded, 0))
}

fn prepare(processor: &ImageProcessor, images: &[RgbImage]) -> Result<Prepared, PrepError> {
    let arrays = images.par_iter().map(|image| processor.whole(image)).collect::<Result<Vec<_>, _>>()?;
    let shape = arrays.first().map_or([0; 3], |array| [0, 1, 2].map(|axis| array.shape()[axis] as i64));
    let mut values = Vec::with_capacity(images.len() * shape.iter().product::<i64>() as usize);
    for array in &arrays {
        values.extend_from_slice(array.as_slice().expect("a new array is contiguous"));
    }
    Ok(Prepared { values, shape: [images.len() as i64, shape[0], shape[1], shape[2]] })
}

/// Rows `[n, width]` divided by their lengths, in f32.
pub(crate) fn unit_length(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    &features / features.square().sum_dim_intlist(-1, true, Kind::Float).sqrt()
}
