//! Tokens as log-probabilities name them: their text and their bytes.

use lmm_hooks::NewToken;
use lmm_prep::Tokenizer;
use serde::Serialize;

/// OpenAI's stand-in for a probability of nothing, for which JSON has no number.
const LEAST: f32 = -9999.0;

/// A token of an answer, in OpenAI's JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LoggedToken {
    #[serde(flatten)]
    own: Scored,
    top_logprobs: Vec<Scored>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Scored {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

impl LoggedToken {
    /// A token as it reads after `context`, the last one before it that [`is_whole`]; `None` if no log-probability was computed.
    pub(crate) fn new(tokenizer: &Tokenizer, context: Option<u32>, token: &NewToken) -> Option<Self> {
        let scored = |id, logprob: f32| {
            let text = text_after(tokenizer, context, id);
            let bytes = bytes_of(tokenizer, &text, id);
            Scored { token: text, logprob: logprob.max(LEAST), bytes }
        };
        let own = scored(token.id, token.logprob?);
        Some(Self { own, top_logprobs: token.top.iter().map(|&(id, logprob)| scored(id, logprob)).collect() })
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.own.bytes.clone().unwrap_or_default()
    }
}

/// Whether a token is text, not part of a character.
pub(crate) fn is_whole(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer.decode(&[id], false).is_ok_and(|text| !text.contains(char::REPLACEMENT_CHARACTER))
}

/// The text that `id` adds to that of `context`: decoders often drop the space of a text's first token. The empty text if the
/// tokenizer has no such token.
fn text_after(tokenizer: &Tokenizer, context: Option<u32>, id: u32) -> String {
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
    let added = context
        .and_then(|context| decode(&[context, id]).strip_prefix(&decode(&[context])).map(str::to_owned));
    added.unwrap_or_else(|| decode(&[id]))
}

/// The bytes of a token; of one that is part of a character only, those its spelling in the vocabulary stands for, if it is in one of the
/// two usual alphabets.
fn bytes_of(tokenizer: &Tokenizer, text: &str, id: u32) -> Option<Vec<u8>> {
    if !text.contains(char::REPLACEMENT_CHARACTER) {
        return Some(text.as_bytes().to_vec());
    }
    let spelling = tokenizer.token(id)?;
    let hex = spelling.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hex {
        Some(hex) => u8::from_str_radix(hex, 16).ok().map(|byte| vec![byte]),
        None => spelling.chars().map(byte_of).collect(),
    }
}

/// The byte that a character stands for in GPT-2's alphabet: visible Latin-1 characters stand for themselves, those from U+0100 on
/// for the other bytes, in order.
fn byte_of(character: char) -> Option<u8> {
    let visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let Some(place) = u32::from(character).checked_sub(0x100) else {
        return u8::try_from(character).ok().filter(visible);
    };
    (0..=u8::MAX).filter(|byte| !visible(byte)).nth(place as usize)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lmm_prep::Processor;

    use super::*;

    #[test]
    fn the_tokens_of_a_text_are_its_bytes() {
        let models =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/lmm-prep/tests/fixtures/models");
        for name in ["llama3", "mistral", "qwen"] {
            let processor = Processor::load(&models.join(name)).unwrap();
            let tokenizer = processor.tokenizer();
            let ids = tokenizer.encode("a naïve ring 🦀 日本", false).unwrap();
            let mut bytes = Vec::new();
            let mut context = None;
            for id in ids {
                let token = NewToken { id, logprob: Some(f32::NEG_INFINITY), top: vec![(id, -1.0)] };
                let logged = LoggedToken::new(tokenizer, context, &token).unwrap();
                assert_eq!((logged.own.logprob, logged.top_logprobs[0].logprob), (LEAST, -1.0));
                assert_eq!(logged.own.bytes, logged.top_logprobs[0].bytes);
                bytes.extend(logged.own.bytes.expect(name));
                if is_whole(tokenizer, id) {
                    context = Some(id);
                }
            }
            assert_eq!(String::from_utf8_lossy(&bytes).trim_start(), "a naïve ring 🦀 日本", "{name}");
            let silent = NewToken { id: 1, logprob: None, top: Vec::new() };
            assert_eq!(LoggedToken::new(tokenizer, None, &silent), None);
        }
    }

    #[test]
    fn the_alphabet_of_bytes() {
        let all = |characters: &str| characters.chars().map(byte_of).collect::<Option<Vec<u8>>>();
        assert_eq!(all("aĠĊ"), Some(b"a \n".to_vec()));
        assert_eq!(all("ðŁ¦Ģ"), Some("🦀".as_bytes().to_vec()));
        assert_eq!(all("日"), None);
    }
}
