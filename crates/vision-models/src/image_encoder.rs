//! [`ImageEncoder`]: whichever model a folder holds, as a function from images to unit vectors.

use std::path::Path;

use image::RgbImage;
use lmm_prep::{
    ClipConfig, ClipVisionConfig, Dinov2Config, ImageProcessor, LlavaNextConfig, PreprocessorConfig,
    model_type,
};
use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{Linear, Weights};

use crate::pixels::{check_side, embed_overlapped};
use crate::{Dinov2, PooledClipVision, VisionError};

/// An image encoder: CLIP's image half with its projection, a bare CLIP tower, or DINOv2.
#[derive(Debug)]
pub struct ImageEncoder {
    tower: Tower,
    processor: ImageProcessor,
    width: usize,
    device: Device,
    kind: Kind,
}

#[derive(Debug)]
enum Tower {
    Projected(Box<PooledClipVision>, Linear),
    Clip(Box<PooledClipVision>),
    Dinov2(Box<Dinov2>),
}

impl ImageEncoder {
    /// Opens the model of a folder in the Hub's layout, kept on `device` in `kind`, by `model_type` of its `config.json`:
    ///
    /// | `model_type` | what an image becomes |
    /// |---|---|
    /// | `clip` | its projection into the space shared with texts |
    /// | `clip_vision_model`, `llava_next` | the class token of the vision tower, behind `post_layernorm` |
    /// | `dinov2` | the class token, behind `layernorm` |
    ///
    /// Of a `clip` neither text tower nor tokenizer is needed.
    ///
    /// # Errors
    /// When a file is absent or unsound, the model is none of these, tensors are missing, mis-shaped or (in the part that is
    /// used) left over, or images do not come out as the model takes them.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self, VisionError> {
        if model_type(folder)? != "clip" {
            return Self::open_tower(folder, device, kind);
        }
        let config = ClipConfig::load(folder)?;
        let (vision, width) = (&config.vision_config, config.projection_dim);
        let processor = processor_of(folder, vision)?;
        let weights = Weights::open(folder, device, kind)?;
        let root = weights.root();
        for unneeded in ["text_model", "text_projection", "logit_scale"] {
            root.skip(unneeded);
        }
        let pooled = PooledClipVision::load(&root.sub("vision_model"), vision);
        let (inner, outer) = (vision.hidden_size as i64, width as i64);
        let projection = Linear::load(&root.sub("visual_projection"), inner, outer, false);
        weights.finish()?;
        Ok(Self { tower: Tower::Projected(Box::new(pooled), projection), processor, width, device, kind })
    }

    /// The same, but of a `clip` its bare vision tower: the class token, behind `post_layernorm`, and no projection.
    ///
    /// # Errors
    /// As [`ImageEncoder::open`].
    pub fn open_tower(folder: &Path, device: Device, kind: Kind) -> Result<Self, VisionError> {
        let model = model_type(folder)?;
        let vision = match model.as_str() {
            "clip" => ClipConfig::load(folder)?.vision_config,
            "clip_vision_model" => ClipVisionConfig::load(folder)?,
            "llava_next" => LlavaNextConfig::load(folder)?.vision_config,
            "dinov2" => return Self::open_dinov2(folder, device, kind),
            _ => {
                return Err(VisionError::Folder {
                    folder: folder.to_owned(),
                    field: "model_type of config.json",
                    expected: "clip, clip_vision_model, llava_next or dinov2".to_owned(),
                    got: model,
                });
            }
        };
        let processor = processor_of(folder, &vision)?;
        let weights = Weights::open(folder, device, kind)?;
        let root = weights.root();
        // LLaVA-NeXT's two key layouts put the tower below a prefix.
        let prefix =
            weights.names().find_map(|name| name.split_once("vision_model.")).map_or("", |found| found.0);
        let at = format!("{prefix}vision_model");
        for name in weights.names().filter(|name| !name.starts_with(&at)) {
            root.skip(name);
        }
        let tower = Tower::Clip(Box::new(PooledClipVision::load(&root.sub(&at), &vision)));
        weights.finish()?;
        Ok(Self { tower, processor, width: vision.hidden_size, device, kind })
    }

    fn open_dinov2(folder: &Path, device: Device, kind: Kind) -> Result<Self, VisionError> {
        let config = Dinov2Config::load(folder)?;
        let preprocessor = PreprocessorConfig::load_whole(folder)?;
        // Any square will do that holds a patch: positions are stretched to it.
        let size = preprocessor.whole_size().filter(|size| size.height == size.width);
        let side = size.map_or(0, |size| size.height as usize);
        if side < config.patch_size {
            return Err(VisionError::Folder {
                folder: folder.to_owned(),
                field: "crop_size, or size without a crop, of preprocessor_config.json",
                expected: format!("a square of at least {} pixels", config.patch_size),
                got: preprocessor
                    .whole_size()
                    .map_or_else(|| "no fixed size".to_owned(), |size| size.to_string()),
            });
        }
        let weights = Weights::open(folder, device, kind)?;
        let tower = Tower::Dinov2(Box::new(Dinov2::load(&weights.root(), &config, side)));
        weights.finish()?;
        let processor = ImageProcessor::new(preprocessor);
        Ok(Self { tower, processor, width: config.hidden_size, device, kind })
    }

    /// Length of the vectors.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Images as vectors of unit length, `[n, width]`, f32 on the model's device. No gradients.
    ///
    /// Pixels of the next few images are prepared on rayon's threads while the model computes, 16 images at a time. An image's vector
    /// does not depend on the others but for rounding: where fewer are left, kernels may sum in another order.
    ///
    /// # Errors
    /// [`VisionError::Prep`] for an image without pixels, or one too thin to be resized.
    pub fn embed(&self, images: &[RgbImage]) -> Result<Tensor, VisionError> {
        let Self { tower, processor, width, device, kind } = self;
        embed_overlapped(images, processor, *device, *kind, *width, |pixels| match tower {
            Tower::Projected(tower, projection) => projection.forward(&tower.pooled(pixels)),
            Tower::Clip(tower) => tower.pooled(pixels),
            Tower::Dinov2(tower) => tower.pooled(pixels),
        })
    }
}

/// What makes the pixels that a CLIP tower takes.
fn processor_of(folder: &Path, vision: &ClipVisionConfig) -> Result<ImageProcessor, VisionError> {
    let preprocessor = PreprocessorConfig::load_whole(folder)?;
    check_side(folder, &preprocessor, vision.image_size)?;
    Ok(ImageProcessor::new(preprocessor))
}
