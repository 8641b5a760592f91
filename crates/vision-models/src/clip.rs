//! CLIP: an image tower and a text tower that meet in one space.

mod text;
mod vision;

use std::collections::BTreeMap;
use std::path::Path;

use image::RgbImage;
use lmm_prep::{ClipConfig, ImageProcessor, PreprocessorConfig, Tokenizer, TokenizerClass};
use torch_nn::tch::{self, Device, Kind, Tensor};
use torch_nn::{Linear, Scope, Weights};

use crate::VisionError;
use crate::pixels::{PASS, check_side, embed_overlapped, unit_length, whole};

pub use text::{ClipText, TokenBatch};
pub use vision::{ClipVision, PooledClipVision, parameter_shapes, state_index};

/// Both towers with their projections: tensors in, tensors out.
#[derive(Debug)]
pub struct ClipModel {
    vision: PooledClipVision,
    text: ClipText,
    visual_projection: Linear,
    text_projection: Linear,
    logit_scale: Tensor,
}

impl ClipModel {
    /// Takes a scope that holds `vision_model`, `text_model`, the two projections and `logit_scale`.
    pub fn load(scope: &Scope<'_>, config: &ClipConfig) -> Self {
        let (vision, text) = (&config.vision_config, &config.text_config);
        let projected = config.projection_dim as i64;
        let projection = |name, width: usize| Linear::load(&scope.sub(name), width as i64, projected, false);
        Self {
            vision: PooledClipVision::load(&scope.sub("vision_model"), vision),
            text: ClipText::load(&scope.sub("text_model"), text),
            visual_projection: projection("visual_projection", vision.hidden_size),
            text_projection: projection("text_projection", text.hidden_size),
            logit_scale: scope.tensor("logit_scale", &[]),
        }
    }

    /// Names and shapes of every tensor that transformers 4.57 writes when it saves a `CLIPModel` of this configuration.
    pub fn parameter_shapes(config: &ClipConfig) -> BTreeMap<String, Vec<i64>> {
        let projected = config.projection_dim as i64;
        let mut shapes = BTreeMap::from([
            ("logit_scale".to_owned(), Vec::new()),
            ("visual_projection.weight".to_owned(), vec![projected, config.vision_config.hidden_size as i64]),
            ("text_projection.weight".to_owned(), vec![projected, config.text_config.hidden_size as i64]),
        ]);
        let towers = [
            ("vision_model", parameter_shapes(&config.vision_config)),
            ("text_model", text::text_shapes(&config.text_config)),
        ];
        for (tower, tensors) in towers {
            shapes.extend(tensors.into_iter().map(|(name, shape)| (format!("{tower}.{name}"), shape)));
        }
        shapes
    }

    /// The image tower.
    pub fn vision(&self) -> &PooledClipVision {
        &self.vision
    }

    /// The text tower.
    pub fn text(&self) -> &ClipText {
        &self.text
    }

    /// `pixels [n, 3, side, side]` in the shared space, `[n, projection]`, not of unit length: transformers'
    /// `get_image_features`. Differentiable.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn image_features(&self, pixels: &Tensor) -> Tensor {
        self.visual_projection.forward(&self.vision.pooled(pixels))
    }

    /// The tokens of the last hidden state of `pixels [n, 3, side, side]`, each taken through the last norm and the projection as
    /// the class token is: `[n, 1 + patches, projection]`. Only the class token was trained to mean something there, unless the
    /// model's training says otherwise. Differentiable.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn token_features(&self, pixels: &Tensor) -> Tensor {
        self.visual_projection.forward(&self.vision.normed_tokens(pixels))
    }

    /// Texts in the shared space, `[n, projection]`, not of unit length: transformers' `get_text_features`. Differentiable.
    pub fn text_features(&self, texts: &TokenBatch) -> Tensor {
        self.text_projection.forward(&self.text.pooled(texts))
    }

    /// The logarithm of what cosines are multiplied by in the loss, a number of shape `[]`.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}

/// A CLIP model folder: pictures and texts in, vectors of unit length out.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    model: ClipModel,
    processor: ImageProcessor,
    tokenizer: Tokenizer,
    device: Device,
    kind: Kind,
}

impl Clip {
    /// Reads a folder in the Hub's layout: `config.json`, `preprocessor_config.json`, `tokenizer.json` with what lies beside it,
    /// and the safetensors weights, kept on `device` in `kind`.
    ///
    /// # Errors
    /// When a file is absent or unsound, the configuration is not supported, tensors are missing, mis-shaped or left over, images
    /// do not come out as the tower takes them, the tokenizer has ids the text tower has not, or ends texts with another token than
    /// the one they are pooled at: transformers pools them all at their first token then, whatever they say.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self, VisionError> {
        let config = ClipConfig::load(folder)?;
        let preprocessor = PreprocessorConfig::load_whole(folder)?;
        check_side(folder, &preprocessor, config.vision_config.image_size)?;
        let tower = &config.text_config;
        let tokenizer =
            Tokenizer::load_or(folder, TokenizerClass::Clip)?.truncated(tower.max_position_embeddings)?;
        if tokenizer.max_id() as usize >= tower.vocab_size {
            return Err(VisionError::Folder {
                folder: folder.to_owned(),
                field: "text_config.vocab_size of config.json",
                expected: format!("more than {}, the highest id of the tokenizer", tokenizer.max_id()),
                got: tower.vocab_size.to_string(),
            });
        }
        let ends = tokenizer.encode("", true)?;
        if text::pooled_place(&ends, tower.eos_token_id) + 1 != ends.len() {
            return Err(VisionError::Folder {
                folder: folder.to_owned(),
                field: "text_config.eos_token_id of config.json",
                expected: match ends.last() {
                    Some(end) => format!("{end}, with which the tokenizer ends texts"),
                    None => "a tokenizer that ends texts with it".to_owned(),
                },
                got: tower.eos_token_id.to_string(),
            });
        }
        let weights = Weights::open(folder, device, kind)?;
        let model = ClipModel::load(&weights.root(), &config);
        weights.finish()?;
        Ok(Self { config, model, processor: ImageProcessor::new(preprocessor), tokenizer, device, kind })
    }

    /// What the model was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The towers.
    pub fn model(&self) -> &ClipModel {
        &self.model
    }

    /// What makes pixel values of images.
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// Length of the vectors.
    pub fn width(&self) -> usize {
        self.config.projection_dim
    }

    /// The device its tensors are on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The pixel values of an image, `[3, side, side]`, f32 on the CPU: equal to `CLIPImageProcessor`'s to the bit.
    ///
    /// # Errors
    /// [`VisionError::Prep`] for an image without pixels, or one too thin to be resized.
    pub fn pixels(&self, image: &RgbImage) -> Result<Tensor, VisionError> {
        whole(&self.processor, image)
    }

    /// The ids of a text, start and end token included.
    ///
    /// A text of more than `max_position_embeddings` tokens (77) loses its last ones, and still ends with the end token:
    /// transformers' `truncation=True`. torchmetrics' `CLIPScore` cuts the end token off too, and so pools such a text at another
    /// token; that is not reproduced.
    ///
    /// # Errors
    /// [`VisionError::Prep`] with the tokenizer's reason.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, VisionError> {
        Ok(self.tokenizer.encode(text, true)?)
    }

    /// Texts as the text tower takes them.
    ///
    /// # Errors
    /// As [`Clip::ids`].
    ///
    /// # Panics
    /// When there is no text.
    #[track_caller]
    pub fn tokens(&self, texts: &[&str]) -> Result<TokenBatch, VisionError> {
        let ids = texts.iter().map(|text| self.ids(text)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.model.text.batch(&ids, self.device))
    }

    /// Images as vectors of unit length, `[n, projection]`, f32 on the model's device. Their dot product with a text's is the
    /// cosine that CLIP scores are made of. No gradients.
    ///
    /// Pixels of the next few images are prepared on rayon's threads while the model computes, 16 images at a time. An image's vector
    /// does not depend on the others but for rounding: where fewer are left, kernels may sum in another order.
    ///
    /// # Errors
    /// As [`Clip::pixels`].
    pub fn embed_images(&self, images: &[RgbImage]) -> Result<Tensor, VisionError> {
        embed_overlapped(images, &self.processor, self.device, self.kind, self.width(), |pixels| {
            self.model.image_features(pixels)
        })
    }

    /// Texts as vectors of unit length, `[n, projection]`, f32 on the model's device. No gradients. Texts of like length share a
    /// pass, so that little is padding.
    ///
    /// # Errors
    /// As [`Clip::ids`].
    pub fn embed_texts(&self, texts: &[&str]) -> Result<Tensor, VisionError> {
        if texts.is_empty() {
            return Ok(Tensor::zeros([0, self.width() as i64], (Kind::Float, self.device)));
        }
        let ids = texts.iter().map(|text| self.ids(text)).collect::<Result<Vec<_>, _>>()?;
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&text| ids[text].len());
        let mut place = vec![0; ids.len()];
        for (at, &text) in order.iter().enumerate() {
            place[text] = at as i64;
        }
        Ok(tch::no_grad(|| {
            let passes = order.chunks(PASS).map(|pass| {
                let pass: Vec<Vec<u32>> = pass.iter().map(|&text| ids[text].clone()).collect();
                unit_length(&self.model.text_features(&self.model.text.batch(&pass, self.device)))
            });
            let embedded = Tensor::cat(&passes.collect::<Vec<_>>(), 0);
            embedded.index_select(0, &Tensor::from_slice(&place).to_device(self.device))
        }))
    }
}
