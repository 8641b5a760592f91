//! One model folder's image processor, tokenizer and chat template together.

use std::ops::Range;
use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;

use crate::chat::{ChatOptions, ChatTemplate, Message};
use crate::config::{FeatureSelect, LlavaNextConfig, PreprocessorConfig, ProcessorConfig, Size};
use crate::error::PrepError;
use crate::image_processor::ImageProcessor;
use crate::inputs::{ImageTiles, Inputs};
use crate::layout::{ImageSpan, TokenLayout};
use crate::tokenizer::{Encoded, Tokenizer};
use crate::turns::{TURN_ENDS, TurnSpan};

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
        let ids = self.tokenizer.encode(prompt, true)?;
        Ok(self.expand(&ids, images)?.0)
    }

    /// [`Processor::prepare`] of what [`Processor::chat`] rendered: where the template itself wrote BOS, no second one is added.
    ///
    /// # Errors
    /// As [`Processor::prepare`].
    pub fn prepare_rendered(&self, prompt: &str, images: &[RgbImage]) -> Result<Inputs, PrepError> {
        let ids = self.tokenizer.encode(prompt, !self.begins_with_bos(prompt))?;
        Ok(self.expand(&ids, images)?.0)
    }

    fn begins_with_bos(&self, prompt: &str) -> bool {
        self.tokenizer.special_token("bos_token").is_some_and(|bos| prompt.starts_with(bos))
    }

    /// [`Processor::chat`], then [`Processor::prepare_rendered`], as `apply_chat_template(tokenize=True)`.
    /// [`Inputs::turns`] says where each message's content lies.
    ///
    /// # Errors
    /// As those two, and [`PrepError::Turn`] where the template leaves a message out or mixes it with another.
    pub fn prepare_chat(
        &self,
        messages: &[Message],
        options: ChatOptions,
        images: &[RgbImage],
    ) -> Result<Inputs, PrepError> {
        let prompt = self.chat(messages, options)?;
        let encoded = self.tokenizer.encode_with_places(&prompt, !self.begins_with_bos(&prompt))?;
        let (mut inputs, starts) = self.expand(&encoded.ids, images)?;
        let special = &self.tokenizer.config().special_tokens;
        let contents = match &self.chat_template {
            Some(template) => {
                template.locate_turns(&prompt, messages, options, special, &self.image_token)?
            }
            None => return Err(PrepError::NoChatTemplate { folder: self.folder.clone() }),
        };
        let mut from = 0;
        for (message, content) in messages.iter().zip(contents) {
            let mut tokens = tokens_of(&content, &encoded.places);
            if message.role == "assistant"
                && let Some(end) = self.turn_end(&prompt, content.end, tokens.end, &encoded)
            {
                tokens.end = end;
            }
            // A token of two turns is the first one's.
            tokens.start = tokens.start.max(from);
            tokens.end = tokens.end.max(tokens.start);
            from = tokens.end;
            inputs.turns.push(TurnSpan {
                role: message.role.clone(),
                tokens: starts[tokens.start]..starts[tokens.end],
            });
        }
        Ok(inputs)
    }

    /// The end of a turn with the token that ends it, if the next token is one and only white space lies between.
    fn turn_end(&self, prompt: &str, content_end: usize, from: usize, encoded: &Encoded) -> Option<usize> {
        let blank = |place: &Range<usize>| {
            prompt.get(place.clone()).is_some_and(|text| text.trim().is_empty()) && place.end > content_end
        };
        let at = (from..encoded.ids.len()).find(|&at| !blank(&encoded.places[at]))?;
        let place = &encoded.places[at];
        let text = prompt.get(place.clone()).filter(|text| !text.is_empty() && place.start >= content_end)?;
        let ends = TURN_ENDS.contains(&text) && self.tokenizer.is_added(text)
            || self.tokenizer.special_id("eos_token") == Some(encoded.ids[at]);
        ends.then_some(at + 1)
    }

    /// Ids of a text that were made before, without special tokens added or images.
    ///
    /// # Errors
    /// [`PrepError::Token`] for an id that is not below the model's `vocab_size`, or that stands for an image.
    pub fn prepare_tokens(&self, ids: Vec<u32>) -> Result<Inputs, PrepError> {
        let vocab_size = self.config.text_config.vocab_size;
        let image_id = self.config.image_token_index;
        if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size || id == image_id) {
            let expected = format!("an id below {vocab_size} other than {image_id}, the image token's");
            return Err(PrepError::Token { position, expected, got: ids[position] });
        }
        let layout = TokenLayout { images: Vec::new(), n_tokens: ids.len() };
        Ok(Inputs { input_ids: ids, images: Vec::new(), layout, turns: Vec::new() })
    }

    /// Repeats each image's placeholder once per feature. Also gives the new position of each id, and the length.
    fn expand(&self, ids: &[u32], images: &[RgbImage]) -> Result<(Inputs, Vec<usize>), PrepError> {
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
        let mut starts = Vec::with_capacity(ids.len() + 1);
        // The library cuts the image token out before anything else, so repeating its id is repeating its text.
        for &id in ids {
            starts.push(input_ids.len());
            if id != image_id {
                input_ids.push(id);
                continue;
            }
            let grid = &images[spans.len()].grid;
            spans.push(ImageSpan { start: input_ids.len(), base: grid.base(), high: grid.high() });
            input_ids.extend(std::iter::repeat_n(id, grid.n_tokens()));
        }
        starts.push(input_ids.len());
        let layout = TokenLayout { images: spans, n_tokens: input_ids.len() };
        Ok((Inputs { input_ids, images, layout, turns: Vec::new() }, starts))
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

/// The tokens that stand for `content`, or the place between two tokens where it is empty.
fn tokens_of(content: &Range<usize>, places: &[Range<usize>]) -> Range<usize> {
    let inside =
        |place: &Range<usize>| !place.is_empty() && place.start < content.end && place.end > content.start;
    if !content.is_empty()
        && let Some(first) = places.iter().position(inside)
        && let Some(last) = places.iter().rposition(inside)
    {
        return first..last + 1;
    }
    let before = places.iter().rposition(|place| !place.is_empty() && place.end <= content.start);
    let after = || places.iter().position(|place| !place.is_empty());
    let at = before.map(|last| last + 1).or_else(after).unwrap_or(places.len());
    at..at
}
