//! [`TextStream`]: an answer's text as its tokens come, with nothing sent that a later token could change or take back.

use std::sync::Arc;

use crate::error::PrepError;
use crate::processor::Processor;

/// About so many tokens are decoded anew with each that comes; the text of those before is settled.
const WINDOW: usize = 32;
/// At least so many settled tokens are decoded with them, because some decoders treat the first token in another way.
const CONTEXT: usize = 4;
/// Bytes of a character at most, which may be as many tokens.
const CHARACTER: usize = 4;

/// What the decoder's clean-up takes a space out of, where the tokenizer's folder asks for it: the text may end in the beginning of one.
const CLEANED: [&str; 10] = [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"];

/// The text of one answer. Special tokens are left out.
#[derive(Debug)]
pub struct TextStream {
    processor: Arc<Processor>,
    stops: Vec<String>,
    ids: Vec<u32>,
    text: String,
    /// Bytes of `text` that no token can change.
    stable: usize,
    /// Bytes of `text` that were given out.
    sent: usize,
    /// Tokens from here on are decoded.
    window: usize,
    /// The stable text of the window.
    known: String,
}

/// What a token adds to what may be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// What may be sent now.
    pub text: String,
    /// The text ends here because a stop text comes next.
    pub stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of `stops` that comes.
    pub fn new(processor: Arc<Processor>, stops: Vec<String>) -> Self {
        let (ids, text, known) = (Vec::new(), String::new(), String::new());
        Self { processor, stops, ids, text, stable: 0, sent: 0, window: 0, known }
    }

    /// Bytes of text that no token can change, sent or not.
    pub fn stable(&self) -> usize {
        self.stable
    }

    /// Bytes of text sent.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The next token.
    ///
    /// # Errors
    /// When it is no token of the tokenizer.
    pub fn push(&mut self, id: u32) -> Result<Said, PrepError> {
        self.ids.push(id);
        let decoded = self.decode(self.window)?;
        self.text.truncate(self.stable);
        if decoded.contains(char::REPLACEMENT_CHARACTER) && !decoded.starts_with(&self.known) {
            self.push_spoiled(&decoded)?;
        } else {
            self.text.push_str(decoded.get(self.known.len()..).unwrap_or_default());
            let stable = self.unchanging().max(self.stable);
            self.known.push_str(&self.text[self.stable..stable]);
            self.stable = stable;
            if self.ids.len() - self.window >= WINDOW && self.stable == self.text.len() {
                self.settle()?;
            }
        }
        Ok(self.say(self.stable, false))
    }

    /// No token comes any more: what was held back may go.
    pub fn finish(&mut self) -> Said {
        self.say(self.text.len(), true)
    }

    fn decode(&self, from: usize) -> Result<String, PrepError> {
        self.processor.tokenizer().decode(&self.ids[from..], true)
    }

    /// Where one token stands for one byte, a decoder makes a whole run of them unreadable while the last are part of a character.
    /// What was readable before stays.
    fn push_spoiled(&mut self, decoded: &str) -> Result<(), PrepError> {
        self.text.push(char::REPLACEMENT_CHARACTER);
        let after = decoded.rsplit(char::REPLACEMENT_CHARACTER).next().unwrap_or_default();
        if !after.is_empty() {
            // The run is over and stays unreadable: begin anew behind it.
            self.text.push_str(after);
            self.stable = self.text.len();
            self.window = self.ids.len() - 1;
            self.known = self.decode(self.window)?;
        }
        Ok(())
    }

    /// Bytes of text before part of a character, and before what the clean-up may change.
    fn unchanging(&self) -> usize {
        let whole = self.text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let cleans = self.processor.tokenizer().config().clean_up_tokenization_spaces;
        whole.len() - if cleans { begun(whole, &CLEANED) } else { 0 }
    }

    /// Moves the window to the last tokens, beginning with none that is in the middle of a character; stays if all are.
    fn settle(&mut self) -> Result<(), PrepError> {
        for context in CONTEXT..CONTEXT + CHARACTER {
            let window = self.ids.len() - context;
            let known = self.decode(window)?;
            let is_clean = !known.is_empty() && !known.contains(char::REPLACEMENT_CHARACTER);
            if is_clean && self.text.ends_with(&known) {
                (self.window, self.known) = (window, known);
                break;
            }
        }
        Ok(())
    }

    /// Gives out the text up to `stable`, but nothing of a stop text nor, unless it is the end, of what may become one.
    fn say(&mut self, stable: usize, end: bool) -> Said {
        let fresh = self.text.get(self.sent..stable).unwrap_or_default();
        let found = self.stops.iter().filter_map(|stop| fresh.find(stop.as_str())).min();
        let length = match found {
            Some(at) => at,
            None if end => fresh.len(),
            None => fresh.len() - begun(fresh, &self.stops),
        };
        let text = fresh[..length].to_owned();
        self.sent += length;
        Said { text, stopped: found.is_some() }
    }
}

/// Bytes at the end of `text` that begin one of `patterns` without being the whole of it; the most.
fn begun(text: &str, patterns: &[impl AsRef<str>]) -> usize {
    let of = |pattern: &str| {
        let lengths = pattern.char_indices().map(|(start, _)| start).skip(1);
        let fitting = lengths.take_while(|&length| length <= text.len());
        fitting.filter(|&length| text.ends_with(&pattern[..length])).last().unwrap_or(0)
    };
    patterns.iter().map(|pattern| of(pattern.as_ref())).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn processor(name: &str) -> Arc<Processor> {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        Arc::new(Processor::load(&models.join(name)).unwrap())
    }

    /// All pieces sent for `ids`, and whether a stop text ended them.
    fn stream(processor: &Arc<Processor>, ids: &[u32], stops: &[&str]) -> (Vec<String>, bool) {
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut stream = TextStream::new(processor.clone(), stops);
        let mut pieces = Vec::new();
        for &id in ids {
            let said = stream.push(id).unwrap();
            assert!(!said.text.contains(char::REPLACEMENT_CHARACTER));
            pieces.push(said.text);
            if said.stopped {
                return (pieces, true);
            }
        }
        let said = stream.finish();
        pieces.push(said.text);
        (pieces, said.stopped)
    }

    const TEXT: &str =
        "It is n't a « naïve » ring , is it ? 日本語 🦀🦀 ' s . Don 't ! The end 've been\n  near . ";

    #[test]
    fn the_pieces_together_are_the_whole_text() {
        for name in ["llama3", "mistral", "qwen", "words", "prefix_space"] {
            let processor = processor(name);
            let tokenizer = processor.tokenizer();
            let ids = tokenizer.encode(&TEXT.repeat(9), false).unwrap();
            assert!(ids.len() > 3 * WINDOW, "{name}: only {} tokens", ids.len());
            let (pieces, stopped) = stream(&processor, &ids, &["never said"]);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap(), "{name}");
            assert!(!stopped);
            // Not all of it at the end.
            assert!(pieces.last().unwrap().len() < 20, "{name}: {:?}", pieces.last());
        }
    }

    /// Characters of as many tokens as bytes, behind as many plain ones as it takes to begin a window in the middle of one.
    #[test]
    fn characters_of_byte_tokens_in_long_runs() {
        let processor = processor("mistral");
        let tokenizer = processor.tokenizer();
        for plain in 0..4 {
            for (character, size) in [("ж", 2), ("漢", 3), ("🦀", 4)] {
                let mut ids = tokenizer.encode(&"a".repeat(plain), false).unwrap();
                let start = ids.len();
                ids.extend(tokenizer.encode(&character.repeat(40), false).unwrap().iter().skip(1));
                assert!(ids.len() >= start + 39 * size, "{character} has tokens of its own");
                let (pieces, _) = stream(&processor, &ids, &[]);
                let whole = tokenizer.decode(&ids, true).unwrap();
                assert!(whole.contains(&character.repeat(39)), "{whole}");
                assert_eq!(pieces.concat(), whole, "{plain} before {character}");
                // Each as soon as it is complete.
                assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() >= 39, "{pieces:?}");
            }
        }
    }

    /// A byte that belongs to no character makes the run before it unreadable for the decoder. What was sent stays, and
    /// what comes behind is not lost.
    #[test]
    fn a_run_of_bytes_that_breaks_off() {
        let processor = processor("mistral");
        let tokenizer = processor.tokenizer();
        let byte = |byte: u8| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap();
        for character in ["ж", "漢", "🦀"] {
            let run: Vec<u32> = character.bytes().chain([0xE6]).map(byte).collect();
            let mut all = TextStream::new(processor.clone(), Vec::new());
            let mut text = String::new();
            for &id in run.iter().chain(&tokenizer.encode("circle circle", false).unwrap()) {
                text.push_str(&all.push(id).unwrap().text);
            }
            text.push_str(&all.finish().text);
            assert_eq!(text, format!("{character}\u{FFFD} circle circle"));
            // And at the end.
            let mut cut = TextStream::new(processor.clone(), Vec::new());
            let mut text: String = run.iter().map(|&id| cut.push(id).unwrap().text).collect();
            text.push_str(&cut.finish().text);
            assert_eq!(text, format!("{character}\u{FFFD}"));
        }
    }

    #[test]
    fn of_a_stop_text_nothing_is_sent() {
        for name in ["llama3", "mistral", "qwen"] {
            let processor = processor(name);
            let tokenizer = processor.tokenizer();
            let ids = tokenizer.encode("one two three four", false).unwrap();
            let whole = tokenizer.decode(&ids, true).unwrap();
            for (stop, before) in
                [(" three", "one two"), ("wo t", "one t"), ("e", "on"), ("four", "one two three ")]
            {
                let (pieces, stopped) = stream(&processor, &ids, &["zero", stop]);
                assert!(stopped, "{name}: {stop:?} in {whole:?}");
                assert_eq!(pieces.concat().trim_start(), before, "{name}");
                assert!(pieces.iter().all(|piece| !piece.contains(stop)));
            }
            // What only looked like one is sent in the end.
            let (pieces, stopped) = stream(&processor, &ids, &["four five"]);
            assert_eq!((pieces.concat(), stopped), (whole, false), "{name}");
        }
    }

    #[test]
    fn the_longest_beginning_counts() {
        assert_eq!(begun("ab", &["abc", "bx"]), 2);
        assert_eq!(begun("aaa", &["aaaa", "aab"]), 3);
        assert_eq!(begun("abc", &["abc"]), 0);
        assert_eq!(begun("x é", &["é!"]), 2);
        assert_eq!(begun("", &["a"]), 0);
    }
}
