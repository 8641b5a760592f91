//! What can go wrong while a model folder, an image or a prompt is read.

use std::path::PathBuf;

use crate::config::Size;

/// Everything this crate reports about data it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepError {
    /// A file of the model folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("{} is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        #[source]
        source: serde_json::Error,
    },
    /// A field of a configuration file is missing, has the wrong type, or has a value this crate does not know.
    #[error("{}: field `{field}`: expected {expected}, got {got}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Dotted path of the field, for example `text_config.hidden_act`.
        field: String,
        /// What is known or allowed.
        expected: String,
        /// What the file holds.
        got: String,
    },
    /// A folder lacks a file that is needed.
    #[error("{} has none of {files}: is it a Hugging Face model folder?", folder.display())]
    MissingFile {
        /// The model folder.
        folder: PathBuf,
        /// The file names looked for.
        files: String,
    },
    /// The bytes are not an image this crate can decode.
    #[error("cannot decode the image")]
    Decode {
        /// The decoder's reason.
        #[source]
        source: image::ImageError,
    },
    /// An image that could be decoded but is not: of a layout PIL's handling of which is not reproduced, or too large.
    #[error("cannot decode the image: {what}")]
    UnsupportedImage {
        /// What the image holds.
        what: String,
    },
    /// A file is no image this crate can decode.
    #[error("cannot read the image {}", path.display())]
    ImageFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<PrepError>,
    },
    /// An image has no pixels.
    #[error("the image is {height} x {width} pixels (height x width): nothing to see")]
    EmptyImage {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
    /// An image so thin that, its shorter side being what the settings say, too much is left of its longer one.
    #[error("an image of {height} x {width} pixels (height x width) would be resized to {resized}")]
    ThinImage {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
        /// What it would become.
        resized: Size,
    },
    /// The image processor's settings do not cut this image into equal square tiles.
    #[error(
        "{what}: `size`, `crop_size` and `image_grid_pinpoints` of preprocessor_config.json must fit each other"
    )]
    Tiling {
        /// What came out.
        what: String,
    },
    /// The prompt does not hold one placeholder per image.
    #[error("the prompt holds {placeholders} `{token}` but {images} images were given; write one per image")]
    ImageCount {
        /// The placeholder text.
        token: String,
        /// How many the prompt holds.
        placeholders: usize,
        /// How many images were given.
        images: usize,
    },
    /// Loading or running the tokenizer failed.
    #[error("tokenizer: {what}")]
    Tokenizer {
        /// What was attempted, naming the file where one is involved.
        what: String,
        /// The library's reason.
        #[source]
        source: tokenizers::Error,
    },
    /// Two files of a model folder contradict each other.
    #[error("{}: {left} but {right}", folder.display())]
    Conflict {
        /// The model folder.
        folder: PathBuf,
        /// The first statement, naming its file.
        left: String,
        /// The contradicting statement, naming its file, and what to do.
        right: String,
    },
    /// The folder has no chat template.
    #[error(
        "{} has no chat template (chat_template.jinja, chat_template.json, or `chat_template` in \
         processor_config.json or tokenizer_config.json); pass a ready prompt instead",
        folder.display()
    )]
    NoChatTemplate {
        /// The model folder.
        folder: PathBuf,
    },
    /// A turn of a conversation does not stand in what the chat template made of it.
    #[error("chat template of {}: turn {index} ({role}) cannot be found in its text: {why}", path.display())]
    Turn {
        /// The file that holds the template.
        path: PathBuf,
        /// The turn's place in the conversation, from 0.
        index: usize,
        /// Who speaks in it.
        role: String,
        /// What is there instead.
        why: String,
    },
    /// Token ids that are no text of this model.
    #[error("token {position}: expected {expected}, got {got}")]
    Token {
        /// Its place in the sequence, from 0.
        position: usize,
        /// What is allowed.
        expected: String,
        /// The id.
        got: u32,
    },
    /// The chat template does not compile or refuses the messages.
    #[error("chat template of {}: {what}", path.display())]
    ChatTemplate {
        /// The file that holds it.
        path: PathBuf,
        /// The template's own complaint, or what was attempted.
        what: String,
        /// The template engine's reason.
        #[source]
        source: minijinja::Error,
    },
}
