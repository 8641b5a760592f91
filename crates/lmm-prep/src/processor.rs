//! One model folder's image processor, tokenizer and chat template together.

use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;

use crate::chat::{ChatOptions, ChatTemplate, Message};
use crate::config::{FeatureSelect, LlavaNextConfig, PreprocessorConfig, ProcessorConfig, Size};
use crate::error::PrepError;
use crate::image_processor::ImageProcessor;
use crate::inputs::{ImageTiles, Inputs};
use crate::layout::{ImageSpan, TokenLayout};
use crate::tokenizer::Tokenizer;

/// Everything that turns a prompt and its images into what a LLaVA-NeXT model takes.
#[derive(Debug)]
pub struct Processor {
    folder: PathBuf,
    config: LlavaNextConfig,
    image_processor: ImageProcessor,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    image_token: String,
}

impl Processor {
    /// Reads a model folder in the Hub's layout: `config.json`, `preprocessor_config.json`, `tokenizer.json`, and where they
    /// exist `processor_config.json`, `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.json`,
    /// `chat_template.jinja`.
    ///
    /// # Errors
    /// What the single files report, and [`PrepError::Conflict`] where they contradict each other: pinpoints, patch size,
    /// feature selection, the side of a tile or the image token's id.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        let config = LlavaNextConfig::load(folder)?;
        let preprocessor = PreprocessorConfig::load(folder)?;
        let processor = ProcessorConfig::load(folder)?;
        let tokenizer = Tokenizer::load(folder)?;
        let image_token = tokenizer.special_token("image_token").unwrap_or(&processor.image_token).to_owned();
        let this = Self {
            chat_template: ChatTemplate::load(folder, &processor, tokenizer.config())?,
            folder: folder.into(),
            image_processor: ImageProcessor::new(preprocessor),
            config,
            tokenizer,
            image_token,
        };
        this.check(&processor)?;
        Ok(this)
    }

    /// The model reads its own file, the processor others: where they disagree, the model would get the wrong number of
    /// features, so it is said here.
    fn check(&self, processor: &ProcessorConfig) -> Result<(), PrepError> {
        let conflict = |left: String, right: String| {
            Err(PrepError::Conflict { folder: self.folder.clone(), left, right })
        };
        let vision = &self.config.vision_config;
        let pixels = self.image_processor.config();
        let list = |sizes: &[Size]| sizes.iter().map(Size::to_string).collect::<Vec<_>>().join(", ");
        if pixels.image_grid_pinpoints != self.config.image_grid_pinpoints {
            return conflict(
                format!(
                    "preprocessor_config.json has image_grid_pinpoints {}",
                    list(&pixels.image_grid_pinpoints)
                ),
                format!("config.json has {} (order counts)", list(&self.config.image_grid_pinpoints)),
            );
        }
        if let Some(patch_size) = processor.patch_size.filter(|&size| size != vision.patch_size) {
            return conflict(
                format!("processor_config.json has patch_size {patch_size}"),
                format!("config.json has vision_config.patch_size {}", vision.patch_size),
            );
        }
        if self.config.vision_feature_select_strategy == FeatureSelect::Full {
            return conflict(
                "config.json has vision_feature_select_strategy \"full\"".into(),
                "CLIP's class token then has no place in a grid of patches; use \"default\"".into(),
            );
        }
        if processor.vision_feature_select_strategy == Some(FeatureSelect::Full) {
            return conflict(
                "processor_config.json has vision_feature_select_strategy \"full\"".into(),
                "config.json has \"default\"".into(),
            );
        }
        if let Some(additional) = processor.num_additional_image_tokens.filter(|&count| count != 1) {
            return conflict(
                format!("processor_config.json has num_additional_image_tokens {additional}"),
                "CLIP adds one, the class token, which \"default\" takes away again; use 1".into(),
            );
        }
        let side = if pixels.do_center_crop { pixels.crop_size.height } else { pixels.base_side() };
        if side as usize != vision.image_size {
            return conflict(
                format!("preprocessor_config.json makes tiles of {side} pixels"),
                format!("config.json has vision_config.image_size {}", vision.image_size),
            );
        }
        let id = self.tokenizer.id(&self.image_token);
        if !self.tokenizer.is_added(&self.image_token) {
            return conflict(
                format!(
                    "the image token of processor_config.json or tokenizer_config.json is {:?}",
                    self.image_token
                ),
                "tokenizer.json does not have it among its added_tokens".into(),
            );
        }
        if id != Some(self.config.image_token_index) {
            return conflict(
                format!("config.json has image_token_index {}", self.config.image_token_index),
                format!("tokenizer.json gives {:?} the id {}", self.image_token, id.unwrap_or_default()),
            );
        }
        Ok(())
    }

    /// What `config.json` says.
    pub fn config(&self) -> &LlavaNextConfig {
        &self.config
    }

    /// The pixel half.
    pub fn image_processor(&self) -> &ImageProcessor {
        &self.image_processor
    }

    /// The text half.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What stands for an image in a prompt, usually `<image>`.
    pub fn image_token(&self) -> &str {
        &self.image_token
    }

    /// The tiles of one image.
    ///
    /// # Errors
    /// As [`ImageProcessor::tiles`].
    pub fn image_tiles(&self, image: &RgbImage) -> Result<ImageTiles, PrepError> {
        self.image_processor.tiles(image, self.config.vision_config.patch_size)
    }

    /// What `LlavaNextProcessor(text=prompt, images=images)` gives. `prompt` holds one `<image>` per image; BOS and the like
    /// are added.
    ///
    /// # Errors
    /// [`PrepError::ImageCount`] where placeholders and images differ in number; as [`Processor::image_tiles`] and
    /// [`Tokenizer::encode`].
    pub fn prepare(&self, prompt: &str, images: &[RgbImage]) -> Result<Inputs, PrepError> {
        self.prepare_with(prompt, images, true)
    }

    /// [`Processor::chat`], then [`Processor::prepare`], as `apply_chat_template(tokenize=True)`: where the template itself
    /// writes BOS, no second one is added.
    ///
    /// # Errors
    /// As those two.
    pub fn prepare_chat(
        &self,
        messages: &[Message],
        options: ChatOptions,
        images: &[RgbImage],
    ) -> Result<Inputs, PrepError> {
        let prompt = self.chat(messages, options)?;
        let bos = self.tokenizer.special_token("bos_token");
        self.prepare_with(&prompt, images, !bos.is_some_and(|bos| prompt.starts_with(bos)))
    }

    fn prepare_with(
        &self,
        prompt: &str,
        images: &[RgbImage],
        add_special: bool,
    ) -> Result<Inputs, PrepError> {
        let ids = self.tokenizer.encode(prompt, add_special)?;
        let image_id = self.config.image_token_index;
        let placeholders = ids.iter().filter(|&&id| id == image_id).count();
        if placeholders != images.len() {
            return Err(PrepError::ImageCount {
                token: self.image_token.clone(),
                placeholders,
                images: images.len(),
            });
        }
        let images: Vec<ImageTiles> =
            images.par_iter().map(|image| self.image_tiles(image)).collect::<Result<_, _>>()?;
        let extra: usize = images.iter().map(|image| image.grid.n_tokens() - 1).sum();
        let mut input_ids = Vec::with_capacity(ids.len() + extra);
        let mut spans = Vec::with_capacity(images.len());
        // The library cuts the image token out before anything else, so repeating its id is repeating its text.
        for id in ids {
            if id != image_id {
                input_ids.push(id);
                continue;
            }
            let grid = &images[spans.len()].grid;
            spans.push(ImageSpan { start: input_ids.len(), base: grid.base(), high: grid.high() });
            input_ids.extend(std::iter::repeat_n(id, grid.n_tokens()));
        }
        let layout = TokenLayout { images: spans, n_tokens: input_ids.len() };
        Ok(Inputs { input_ids, images, layout })
    }

    /// Renders the folder's chat template.
    ///
    /// # Errors
    /// [`PrepError::NoChatTemplate`], or [`PrepError::ChatTemplate`] with the template's own complaint.
    pub fn chat(&self, messages: &[Message], options: ChatOptions) -> Result<String, PrepError> {
        let Some(template) = &self.chat_template else {
            return Err(PrepError::NoChatTemplate { folder: self.folder.clone() });
        };
        template.render(messages, options, &self.tokenizer.config().special_tokens)
    }
}
