//! [`token_texts`]: what each token of a prompt looks like.

use lmm_prep::{Inputs, PrepError, Processor, TokenKind};

/// The text of every token as it stands in the prompt, with the space before it if it has one; empty for the tokens of images.
///
/// # Errors
/// When the tokenizer cannot decode an id.
pub fn token_texts(processor: &Processor, inputs: &Inputs) -> Result<Vec<String>, PrepError> {
    let tokenizer = processor.tokenizer();
    let mut texts = Vec::with_capacity(inputs.input_ids.len());
    let mut before: Option<u32> = None;
    for (position, &id) in inputs.input_ids.iter().enumerate() {
        if inputs.layout.kind(position) != TokenKind::Text {
            texts.push(String::new());
            continue;
        }
        // Decoders leave out the space before the first token, so each is decoded behind the one before.
        let text = match before {
            None => tokenizer.decode(&[id], false)?,
            Some(before) => {
                let (one, both) =
                    (tokenizer.decode(&[before], false)?, tokenizer.decode(&[before, id], false)?);
                match both.strip_prefix(one.as_str()) {
                    Some(text) => text.to_owned(),
                    None => tokenizer.decode(&[id], false)?,
                }
            }
        };
        texts.push(text);
        before = Some(id);
    }
    Ok(texts)
}
