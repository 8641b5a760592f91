//! Segment Anything: from an image and a box or points to the masks of what they mean.
//!
//! [`Sam`] is one checkpoint (`facebook/sam-vit-base`, `-large`, `-huge`), equal to transformers 4.57's `SamModel` and
//! `SamProcessor`. An image is embedded once, which takes nearly all the time, and then answers any number of prompts.
//!
//! ```no_run
//! use torch_nn::tch::{Device, Kind};
//! use vision_models::sam::{BoxPrompt, Sam};
//!
//! # let folder = std::path::Path::new("sam-vit-base");
//! # let picture = image::RgbImage::new(640, 480);
//! let sam = Sam::open(folder, Device::Cpu, Kind::Float)?;
//! let image = sam.embed(&picture)?;
//! let cup = BoxPrompt { left: 100.0, top: 80.0, right: 180.0, bottom: 200.0 };
//! let masks = sam.masks(&image, &[cup], false)?;
//! assert_eq!(masks[0].pixels.len(), 640 * 480);
//! # Ok::<(), vision_models::VisionError>(())
//! ```
//!
//! The stages are public, too: [`SamProcessor`], [`Sam::image_embedding`], [`PromptEncoder`], [`Sam::low_res_masks`] and
//! [`full_size_masks`].

mod attention;
mod config;
mod decoder;
mod encoder;
mod masks;
mod processor;
mod prompts;
mod transformer;

use std::collections::BTreeMap;
use std::path::Path;

use image::RgbImage;
use lmm_prep::PrepError;
use torch_nn::tch::{Device, Kind, Tensor, no_grad};
use torch_nn::{Scope, Weights};

use crate::VisionError;

pub use config::{SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig};
pub use decoder::MaskDecoder;
pub use encoder::ImageEncoder;
pub use masks::{SamMask, full_size_masks};
pub use processor::{SamProcessor, SamProcessorConfig, SamSizes};
pub use prompts::{BoxPrompt, PointLabel, PointPrompt, PromptEncoder, SamPrompt};

/// A Segment Anything model with its processor.
#[derive(Debug)]
pub struct Sam {
    config: SamConfig,
    processor: SamProcessor,
    encoder: ImageEncoder,
    prompts: PromptEncoder,
    decoder: MaskDecoder,
    /// The encodings of the image embedding's places: `[1, grid · grid, width]`.
    places: Tensor,
    device: Device,
}

/// An image that prompts can be asked about.
#[derive(Debug)]
pub struct SamImage {
    /// `[1, channels, grid, grid]`, on the model's device and in its dtype.
    pub embedding: Tensor,
    /// The image's own size, and the one it was embedded in.
    pub sizes: SamSizes,
}

impl Sam {
    /// Opens a model folder in the Hub's layout: `config.json`, `preprocessor_config.json` and safetensors.
    ///
    /// # Errors
    /// When a file is missing or not understood, or the weights do not fit the configuration.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self, VisionError> {
        let config = SamConfig::load(folder)?;
        let processor = SamProcessorConfig::load(folder)?;
        let pad_size = processor.pad_size;
        let side = config.vision_config.image_size as u32;
        if (pad_size.height, pad_size.width) != (side, side) {
            return Err(VisionError::Prep(PrepError::Conflict {
                folder: folder.to_owned(),
                left: format!("config.json has vision_config.image_size = {side}"),
                right: format!("preprocessor_config.json pads images to pad_size = {pad_size}"),
            }));
        }
        Self::from_weights(config, processor, &Weights::open(folder, device, kind)?)
    }

    /// Makes the model of a checkpoint's tensors, all of them.
    ///
    /// # Errors
    /// When one is missing, of another shape or left over.
    pub fn from_weights(
        config: SamConfig,
        processor: SamProcessorConfig,
        weights: &Weights,
    ) -> Result<Self, VisionError> {
        let (encoder, prompts, decoder) = parts(&weights.root(), &config);
        weights.finish()?;
        let places = no_grad(|| prompts.patches());
        let device = weights.device();
        let processor = SamProcessor::new(processor);
        Ok(Self { config, processor, encoder, prompts, decoder, places, device })
    }

    /// The configuration.
    pub fn config(&self) -> &SamConfig {
        &self.config
    }

    /// What prepares images.
    pub fn processor(&self) -> &SamProcessor {
        &self.processor
    }

    /// What encodes prompts.
    pub fn prompt_encoder(&self) -> &PromptEncoder {
        &self.prompts
    }

    /// Prepares and embeds an image.
    ///
    /// # Errors
    /// When it has no pixels, or is so thin that nothing would be left of it.
    pub fn embed(&self, image: &RgbImage) -> Result<SamImage, VisionError> {
        let (pixels, sizes) = self.processor.pixels(image)?;
        Ok(SamImage { embedding: self.image_embedding(&pixels), sizes })
    }

    /// The same for several images in one pass, whose memory grows with their number.
    ///
    /// # Errors
    /// As [`Sam::embed`], before anything is embedded.
    pub fn embed_batch(&self, images: &[RgbImage]) -> Result<Vec<SamImage>, VisionError> {
        let prepared =
            images.iter().map(|image| self.processor.pixels(image)).collect::<Result<Vec<_>, _>>()?;
        if prepared.is_empty() {
            return Ok(Vec::new());
        }
        let pixels: Vec<&Tensor> = prepared.iter().map(|(pixels, _)| pixels).collect();
        let embeddings = self.image_embedding(&Tensor::cat(&pixels, 0));
        let of = |(index, (_, sizes)): (usize, &(Tensor, SamSizes))| SamImage {
            embedding: embeddings.narrow(0, index as i64, 1),
            sizes: *sizes,
        };
        Ok(prepared.iter().enumerate().map(of).collect())
    }

    /// The embedding `[n, channels, grid, grid]` of pixels `[n, 3, side, side]` as [`SamProcessor::pixels`] makes them.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn image_embedding(&self, pixels: &Tensor) -> Tensor {
        no_grad(|| self.encoder.forward(&pixels.to_device(self.device)))
    }

    /// Scores of masks `[prompts, masks, 4 · grid, 4 · grid]`, positive where a mask is, and the IoU each is thought to have
    /// `[prompts, masks]`, for an image embedding `[1, channels, grid, grid]` and what [`PromptEncoder::sparse`] and
    /// [`PromptEncoder::dense`] made of prompts. One mask per prompt, or with `multimask` the several it may mean (3).
    ///
    /// All prompts at once, for each of which the decoder takes some 30 MiB of memory at 1024 pixels in f32.
    ///
    /// # Panics
    /// When the shapes are others.
    #[track_caller]
    pub fn low_res_masks(
        &self,
        embedding: &Tensor,
        sparse: &Tensor,
        dense: &Tensor,
        multimask: bool,
    ) -> (Tensor, Tensor) {
        no_grad(|| self.decoder.forward(embedding, &self.places, sparse, dense, multimask))
    }
}

fn parts(root: &Scope<'_>, config: &SamConfig) -> (ImageEncoder, PromptEncoder, MaskDecoder) {
    let encoder = ImageEncoder::load(&root.sub("vision_encoder"), &config.vision_config);
    let decoder = MaskDecoder::load(&root.sub("mask_decoder"), &config.mask_decoder_config);
    (encoder, PromptEncoder::load(root, config), decoder)
}

/// Names and shapes of every tensor that a model of this configuration reads, as transformers writes them.
pub fn parameter_shapes(config: &SamConfig) -> BTreeMap<String, Vec<i64>> {
    Weights::asked_for(|root| {
        parts(root, config);
    })
}

#[cfg(test)]
mod tests;
