//! The questions: multimodal-sae's data file, with lists allowed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use attribution::{Combine, Question};
use image::RgbImage;
use lmm_prep::{ChatOptions, Inputs, Message, Part, Processor, read_image_upright};
use serde::{Deserialize, Serialize};

/// One text, or several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Texts {
    /// One.
    One(String),
    /// Several, or none.
    Many(Vec<String>),
    /// None.
    #[default]
    None,
}

impl Texts {
    fn list(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
            Self::None => &[],
        }
    }
}

/// A question as the file has it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Entry {
    prompt: String,
    answer: Texts,
    #[serde(default)]
    baseline: Texts,
    #[serde(default)]
    image: Texts,
}

/// A token as the model has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NamedToken {
    pub(crate) text: String,
    pub(crate) id: u32,
}

/// A question made ready for the model, and what the output says of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) question: Question,
    pub(crate) prompt: String,
    pub(crate) answers: Vec<NamedToken>,
    pub(crate) baselines: Vec<NamedToken>,
    pub(crate) images: Vec<PathBuf>,
}

/// How prompts become inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// As it stands, BOS before it.
    Plain,
    /// As it stands, without BOS: what msae does.
    WithoutBos,
    /// As what a user says, in the model's chat template, images before the text.
    Chat,
}

/// Reads a data file.
pub(crate) fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let entries: Vec<Entry> = serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no list of {{\"prompt\", \"answer\", \"baseline\", \"image\"}} (baseline and image may be left out; all but the \
             prompt may be lists)",
            path.display()
        )
    })?;
    ensure!(!entries.is_empty(), "{} holds no question", path.display());
    Ok(entries)
}

impl Entry {
    /// Loads the images, which are relative to `root` or else to the working folder, and looks the tokens up.
    pub(crate) fn prepare(
        &self,
        processor: &Processor,
        root: &Path,
        reading: Reading,
        combine: Combine,
    ) -> Result<Prepared> {
        let named = |role: &str, texts: &Texts| -> Result<Vec<NamedToken>> {
            texts
                .list()
                .iter()
                .map(|text| token(processor, text).with_context(|| format!("the {role}")))
                .collect()
        };
        let (answers, baselines) = (named("answer", &self.answer)?, named("baseline", &self.baseline)?);
        ensure!(!answers.is_empty(), "the list of answers is empty: there is no logit to trace");
        let vocab_size = processor.config().text_config.vocab_size;
        if let Some(beyond) = answers.iter().chain(&baselines).find(|token| token.id as usize >= vocab_size) {
            bail!("{:?} is token {}, the model's vocabulary has {vocab_size}", beyond.text, beyond.id);
        }
        let images: Vec<PathBuf> = self.image.list().iter().map(|image| find(root, image)).collect();
        let pictures = images.iter().map(|path| read_image_upright(path)).collect::<Result<Vec<_>, _>>()?;
        let inputs = self.inputs(processor, &pictures, reading)?;
        let ids = |tokens: &[NamedToken]| tokens.iter().map(|token| token.id).collect();
        let question = Question { inputs, answers: ids(&answers), baselines: ids(&baselines), combine };
        Ok(Prepared { question, prompt: self.prompt.clone(), answers, baselines, images })
    }

    fn inputs(&self, processor: &Processor, pictures: &[RgbImage], reading: Reading) -> Result<Inputs> {
        if reading == Reading::Chat {
            let mut parts = vec![Part::Image; pictures.len()];
            parts.push(Part::Text { text: self.prompt.clone() });
            let options = ChatOptions { add_generation_prompt: true };
            return Ok(processor.prepare_chat(&[Message::parts("user", parts)], options, pictures)?);
        }
        let inputs = processor.prepare_rendered(&self.prompt, pictures).with_context(|| {
            format!(
                "prompts hold one {} per image, or add --chat to have them put there",
                processor.image_token()
            )
        })?;
        Ok(if reading == Reading::WithoutBos { without_bos(processor, inputs) } else { inputs })
    }
}

/// The inputs less the BOS they begin with, if they do.
fn without_bos(processor: &Processor, mut inputs: Inputs) -> Inputs {
    let bos = processor.tokenizer().special_id("bos_token");
    if bos.is_none() || inputs.input_ids.first().copied() != bos {
        return inputs;
    }
    inputs.input_ids.remove(0);
    inputs.layout.n_tokens -= 1;
    for image in &mut inputs.layout.images {
        image.start -= 1;
    }
    inputs.turns.clear();
    inputs
}

/// The token that is spelt `text`, or that `text` becomes.
fn token(processor: &Processor, text: &str) -> Result<NamedToken> {
    let tokenizer = processor.tokenizer();
    let unknown = tokenizer.special_id("unk_token");
    let id = match tokenizer.id(text) {
        Some(id) => id,
        None => match tokenizer.encode(text, false)?[..] {
            [id] if Some(id) != unknown => id,
            [_] | [] => bail!("{text:?} is no token of the model"),
            ref ids => {
                let pieces: Vec<_> = ids.iter().filter_map(|&id| tokenizer.token(id)).collect();
                bail!("{text:?} is {} tokens, {pieces:?}: name the first of them", ids.len())
            }
        },
    };
    Ok(NamedToken { text: text.to_owned(), id })
}

fn find(root: &Path, image: &str) -> PathBuf {
    let below = root.join(image);
    if !below.exists() && Path::new(image).exists() { PathBuf::from(image) } else { below }
}
