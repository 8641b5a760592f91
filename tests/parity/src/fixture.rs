//! One family's fixture: `model/`, `case.json` and `case.safetensors`, as `fixtures/generate.py` writes them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::tensors::{Array, Tensors};

/// One prompt with its images and what transformers made of it. Arrays stand in [`Fixture::array`] as `{name}/{stage}`.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Name of the case within its family.
    pub name: String,
    /// The text, with one `<image>` per image.
    pub prompt: String,
    /// Names of the images, in order.
    pub images: Vec<String>,
    /// Token ids after `<image>` was expanded.
    pub input_ids: Vec<u32>,
    /// Height and width of each image.
    #[serde(default)]
    pub image_sizes: Vec<[u32; 2]>,
    /// Tiles of each image, the base tile included.
    #[serde(default)]
    pub tiles: Vec<usize>,
    /// Packed features of each image, that is, its tokens.
    #[serde(default)]
    pub feature_counts: Vec<usize>,
    /// The positions whose logits were kept.
    pub logit_positions: Vec<usize>,
    /// Greedy tokens without an end of text.
    pub generated: Vec<u32>,
    /// `generated` decoded, special tokens skipped.
    pub text: String,
    /// The token that ends `stopped`.
    pub stop_token: u32,
    /// Greedy tokens up to and with `stop_token`.
    pub stopped: Vec<u32>,
}

/// A conversation and its rendering by the chat template.
#[derive(Debug, Deserialize)]
pub struct Chat {
    /// Messages in transformers' form: role, content parts with `type` and `text`.
    pub messages: serde_json::Value,
    /// Whether the assistant's turn is opened at the end.
    pub add_generation_prompt: bool,
    /// The rendered prompt.
    pub text: String,
}

/// Several cases run as one padded batch.
#[derive(Debug, Deserialize)]
pub struct Batch {
    /// Names of the cases, row by row.
    pub cases: Vec<String>,
    /// Greedy tokens of each row, left-padded.
    pub generated: Vec<Vec<u32>>,
    /// The token that ends the rows of `stopped`.
    pub stop_token: u32,
    /// Greedy tokens of each row up to and with `stop_token`.
    pub stopped: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Description {
    cases: Vec<Case>,
    chats: Vec<Chat>,
    batch: Batch,
}

/// Everything known of one family.
pub struct Fixture {
    /// The checkpoint, in the Hub's layout.
    pub model: PathBuf,
    /// Single prompts.
    pub cases: Vec<Case>,
    /// Chat template renderings.
    pub chats: Vec<Chat>,
    /// The padded batch.
    pub batch: Batch,
    tensors: Tensors,
}

impl Fixture {
    /// Reads `fixtures/{family}`.
    ///
    /// # Panics
    /// When a file is missing or malformed: the fixtures are committed.
    pub fn load(family: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(family);
        let read = |name: &str| {
            std::fs::read(folder.join(name))
                .unwrap_or_else(|error| panic!("{}: {error}", folder.join(name).display()))
        };
        let description: Description =
            serde_json::from_slice(&read("case.json")).unwrap_or_else(|error| panic!("{family}: {error}"));
        Self {
            model: folder.join("model"),
            cases: description.cases,
            chats: description.chats,
            batch: description.batch,
            tensors: Tensors::read(&folder.join("case.safetensors")),
        }
    }

    /// The case of that name.
    ///
    /// # Panics
    /// When there is none.
    pub fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
    }

    /// The array of that name, if it was recorded.
    ///
    /// # Panics
    /// When it is not f32 or the file is malformed.
    pub fn get(&self, name: &str) -> Option<Array> {
        self.tensors.get(name)
    }

    /// The array of that name.
    ///
    /// # Panics
    /// When it was not recorded.
    pub fn array(&self, name: &str) -> Array {
        self.tensors.array(name)
    }

    /// An image's height, width and RGB bytes.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn image(&self, name: &str) -> (u32, u32, Vec<u8>) {
        self.tensors.image(name)
    }

    /// The names of the arrays of one case, without the case's name; in no order.
    pub fn stages(&self, case: &str) -> Vec<String> {
        let prefix = format!("{case}/");
        let names = self.tensors.names();
        names.iter().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect()
    }
}
