//! Prompts made ready, and answers written.

use std::io::Write;

use anyhow::{Context, Result};
use image::RgbImage;
use lmm_hooks::{Batch, GenerationOptions, Hooks};
use lmm_prep::{ChatOptions, Inputs, Message, Part, Processor, TextStream};

use crate::args::Steered;

/// How a prompt is put to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wording {
    /// As the user's turn of a conversation, in the model's chat template; the text before the image, as multimodal-sae has it.
    Chat,
    /// As it stands, behind the image if there is one.
    PureText,
}

impl Wording {
    pub(crate) fn of(pure_text: bool) -> Self {
        if pure_text { Self::PureText } else { Self::Chat }
    }
}

/// A prompt as the model reads it.
pub(crate) fn inputs(
    processor: &Processor,
    text: &str,
    images: &[RgbImage],
    wording: Wording,
) -> Result<Inputs> {
    let made = match wording {
        Wording::PureText => {
            let marks = format!("{}\n", processor.image_token()).repeat(images.len());
            processor.prepare(&format!("{marks}{text}"), images)
        }
        Wording::Chat => {
            let mut parts = vec![Part::Text { text: text.to_owned() }];
            parts.extend(images.iter().map(|_| Part::Image));
            let options = ChatOptions { add_generation_prompt: true };
            let prompt = processor.chat(&[Message::parts("user", parts)], options)?;
            processor.prepare_rendered(&prompt, images)
        }
    };
    made.context("cannot make the prompt ready")
}

/// Writes the answer of a batch of one, telling `say` each piece of text as soon as it is certain; gives its tokens.
pub(crate) fn answer(
    steered: &Steered,
    prompt: &Batch,
    options: &GenerationOptions,
    hooks: &mut Hooks<'_>,
    mut say: impl FnMut(&str) -> Result<()>,
) -> Result<Vec<u32>> {
    let model = &steered.model;
    let mut stream = TextStream::new(model.processor.clone(), Vec::new());
    let mut generation = model.network.start_generation(prompt, std::slice::from_ref(options), hooks)?;
    let mut tokens = Vec::new();
    while let Some(step) = generation.step()? {
        for token in step.into_iter().flatten() {
            tokens.push(token.id);
            if !options.eos.contains(&token.id) {
                say(&stream.push(token.id)?.text)?;
            }
        }
    }
    say(&stream.finish().text)?;
    Ok(tokens)
}

/// The text of an answer's tokens.
pub(crate) fn text(processor: &Processor, tokens: &[u32]) -> Result<String> {
    Ok(processor.tokenizer().decode(tokens, true)?)
}

/// Prints without a line's end, at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = stage_kit::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
