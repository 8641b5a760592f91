//! GroundingDINO: finds in an image what a text names, as transformers 4.57's `GroundingDinoForObjectDetection` with
//! `GroundingDinoProcessor` does, from a folder in the Hub's layout (`IDEA-Research/grounding-dino-tiny` and `-base`).
//!
//! * [`GroundingDino`]: from images and phrases to [`Detection`]s.
//! * [`GroundingDinoConfig`], [`GroundingDinoProcessorConfig`]: the folder's files; [`ImageBatch`], [`TextBatch`]: what the network
//!   reads.
//! * [`GroundingDinoModel`]: the network in stages: backbone ([`crate::swin`]) and text encoder ([`crate::bert`]), [`FeatureMaps`],
//!   [`Encoded`], [`Selection`], [`Decoded`]; [`Samples`]: the sum of deformable attention.

mod attention;
mod config;
mod decoder;
mod deformable;
mod detection;
mod encoder;
mod features;
mod fusion;
mod heads;
mod model;
mod positions;
mod processor;
mod sampling;
mod text;

use std::path::Path;

use image::RgbImage;
use lmm_prep::{PrepError, Tokenizer, TokenizerClass};
use torch_nn::Weights;
use torch_nn::tch::{Device, Kind, no_grad};

use crate::VisionError;

pub use config::GroundingDinoConfig;
pub use decoder::Decoded;
pub use detection::{Detection, Thresholds, detections};
pub use encoder::Encoded;
pub use features::FeatureMaps;
pub use model::{GroundingDinoModel, Selection, parameter_shapes};
pub use processor::{GroundingDinoProcessorConfig, ImageBatch, ResizeTo};
pub use sampling::Samples;
pub use text::{TextBatch, prompt};

/// A model folder: network, image processor and tokenizer.
#[derive(Debug)]
pub struct GroundingDino {
    config: GroundingDinoConfig,
    processor: GroundingDinoProcessorConfig,
    tokenizer: Tokenizer,
    model: GroundingDinoModel,
    device: Device,
}

impl GroundingDino {
    /// Opens a folder with `config.json`, `preprocessor_config.json`, `tokenizer.json` or `vocab.txt`, and safetensors. The
    /// network computes on `device` in `kind`; boxes and probabilities are f32 always.
    ///
    /// # Errors
    /// [`VisionError::Prep`] where a file is missing or not understood, or the tokenizer has ids that the network has not;
    /// [`VisionError::Weights`] where the weights are not those of the configuration.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self, VisionError> {
        let config = GroundingDinoConfig::load(folder)?;
        let processor = GroundingDinoProcessorConfig::load(folder)?;
        // transformers goes by the model's type where the folder names no class.
        let tokenizer = Tokenizer::load_or(folder, TokenizerClass::Bert)?;
        let (largest, rows) = (tokenizer.max_id(), config.text_config.vocab_size);
        if largest as usize >= rows {
            return Err(VisionError::Prep(PrepError::Conflict {
                folder: folder.to_owned(),
                left: format!("the tokenizer has the id {largest}"),
                right: format!("config.json's text_config.vocab_size is {rows}"),
            }));
        }
        let weights = Weights::open(folder, device, kind)?;
        let model = GroundingDinoModel::load(&weights.root(), &config);
        weights.finish()?;
        Ok(Self { config, processor, tokenizer, model, device })
    }

    /// `config.json`.
    pub fn config(&self) -> &GroundingDinoConfig {
        &self.config
    }

    /// `preprocessor_config.json`.
    pub fn processor(&self) -> &GroundingDinoProcessorConfig {
        &self.processor
    }

    /// The text encoder's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The network.
    pub fn model(&self) -> &GroundingDinoModel {
        &self.model
    }

    /// Finds what `phrase` names in `image`, the surest first. Upper case does not matter, nor a full stop at the end; several
    /// phrases are parted by full stops.
    ///
    /// # Errors
    /// As [`GroundingDino::detect_batch`].
    pub fn detect(
        &self,
        image: &RgbImage,
        phrase: &str,
        thresholds: Thresholds,
    ) -> Result<Vec<Detection>, VisionError> {
        Ok(self.detect_batch(&[image], &[phrase], thresholds)?.remove(0))
    }

    /// Finds what each phrase names in the image of the same place. Images are filled up to the largest of the batch, texts to the
    /// longest.
    ///
    /// # Errors
    /// [`VisionError::ImageSize`] for an image without pixels, or of which resizing leaves too little;
    /// [`VisionError::TextLength`] for a phrase of more than `max_text_len` tokens, which transformers cuts off there without a word;
    /// [`VisionError::NotFinite`] where the network overflows.
    ///
    /// # Panics
    /// When there are no images, or not as many as phrases.
    #[track_caller]
    pub fn detect_batch(
        &self,
        images: &[&RgbImage],
        phrases: &[&str],
        thresholds: Thresholds,
    ) -> Result<Vec<Vec<Detection>>, VisionError> {
        assert_eq!(images.len(), phrases.len(), "images and phrases of a batch");
        let images = self.prepare_images(images)?;
        let texts = self.prepare_phrases(phrases)?;
        let decoded = no_grad(|| self.model.forward(&images, &texts));
        let limit = self.config.max_text_len;
        detections(&decoded, &texts, &images.originals, thresholds, limit, &self.tokenizer)
    }

    /// The batch of `images` that the network reads.
    ///
    /// # Errors
    /// [`VisionError::ImageSize`].
    ///
    /// # Panics
    /// When there are none.
    #[track_caller]
    pub fn prepare_images(&self, images: &[&RgbImage]) -> Result<ImageBatch, VisionError> {
        let batch = ImageBatch::new(images, &self.processor, self.device)?;
        let (size, patch) = (batch.pixels.size(), self.config.backbone_config.patch_size as i64);
        let places = self.places((size[2] + patch - 1) / patch, (size[3] + patch - 1) / patch);
        let queries = self.model.num_queries();
        if places < queries {
            let largest =
                batch.originals.iter().max_by_key(|size| u64::from(size.height) * u64::from(size.width));
            let (height, width) = largest.map_or((0, 0), |size| (size.height, size.width));
            let what = format!("its feature maps have {places} places for {queries} queries");
            return Err(VisionError::ImageSize { height, width, what });
        }
        Ok(batch)
    }

    /// The batch of texts that the network reads for `phrases`.
    ///
    /// # Errors
    /// [`VisionError::TextLength`], or what the tokenizer reports.
    ///
    /// # Panics
    /// When there are none.
    #[track_caller]
    pub fn prepare_phrases(&self, phrases: &[&str]) -> Result<TextBatch, VisionError> {
        let prompts: Vec<String> = phrases.iter().map(|phrase| prompt(phrase)).collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        TextBatch::new(&prompts, &self.tokenizer, self.config.max_text_len, self.device)
    }

    /// The places of all feature maps of an image of `rows` by `columns` patches.
    fn places(&self, mut rows: i64, mut columns: i64) -> i64 {
        let stages = &self.config.backbone_config.out_indices;
        let (mut places, mut stage) = (0, 0);
        for level in 0..self.config.num_feature_levels {
            let wanted = stages.get(level).copied().unwrap_or(stage + 1);
            while stage < wanted {
                // The first stage keeps the patches; each later one, and each coarser map, halves the sides.
                if stage > 0 || level >= stages.len() {
                    (rows, columns) = ((rows + 1) / 2, (columns + 1) / 2);
                }
                stage += 1;
            }
            places += rows * columns;
        }
        places
    }
}
