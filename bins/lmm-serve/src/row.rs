//! [`Row`]: one answer being written, from the model's tokens to what its client is sent.

use std::sync::Arc;

use lmm_hooks::NewToken;
use lmm_prep::{PrepError, Processor, Said, TextStream};
use tokio::sync::mpsc::UnboundedSender;

use crate::problem::Problem;
use crate::queue::Job;
use crate::tokens::{self, LoggedToken};

/// What a client is sent, in order: pieces, then an end or a failure.
#[derive(Debug)]
pub(crate) enum Event {
    /// More of the answer.
    Piece(Piece),
    /// The answer is complete.
    End(Ending),
    /// There will be no answer, or no more of it.
    Failed(Problem),
}

/// More of an answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// The tokens it is made of, if they were asked for.
    pub(crate) logprobs: Vec<LoggedToken>,
}

/// How an answer ended, and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: FinishReason,
    pub(crate) prompt_tokens: usize,
    /// The ending token and those of a stop text included.
    pub(crate) completion_tokens: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FinishReason {
    /// The model was done, or came to a stop text.
    Stop,
    /// It has as many tokens as it may.
    Length,
}

/// An answer being written.
#[derive(Debug)]
pub(crate) struct Row {
    processor: Arc<Processor>,
    events: UnboundedSender<Event>,
    text: TextStream,
    eos: Vec<u32>,
    max_tokens: usize,
    prompt_tokens: usize,
    written: usize,
    /// The last token that is no part of a character.
    context: Option<u32>,
    /// Tokens whose text is held back, with where it begins.
    held: Vec<(usize, LoggedToken)>,
}

impl Row {
    pub(crate) fn new(processor: &Arc<Processor>, job: &Job) -> Self {
        Self {
            processor: processor.clone(),
            events: job.events.clone(),
            text: TextStream::new(processor.clone(), job.stops.clone()),
            eos: job.options.eos.clone(),
            max_tokens: job.options.max_new_tokens,
            prompt_tokens: job.inputs.input_ids.len(),
            written: 0,
            context: None,
            held: Vec::new(),
        }
    }

    /// Whether nobody waits for the rest.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Takes the next token and sends what it makes certain. Gives whether the answer goes on.
    ///
    /// # Errors
    /// When it is no token of the tokenizer.
    pub(crate) fn accept(&mut self, token: &NewToken) -> Result<bool, PrepError> {
        self.written += 1;
        if self.eos.contains(&token.id) {
            self.finish(FinishReason::Stop);
            return Ok(false);
        }
        let start = self.text.stable();
        let tokenizer = self.processor.tokenizer();
        if let Some(logged) = LoggedToken::new(tokenizer, self.context, token) {
            self.held.push((start, logged));
            if tokens::is_whole(tokenizer, token.id) {
                self.context = Some(token.id);
            }
        }
        let Said { text, stopped } = self.text.push(token.id)?;
        self.send(text);
        if stopped {
            self.end(FinishReason::Stop);
            return Ok(false);
        }
        if self.written == self.max_tokens {
            self.finish(FinishReason::Length);
            return Ok(false);
        }
        Ok(true)
    }

    /// Sends what was held back, unless it holds a stop text.
    fn finish(&mut self, reason: FinishReason) {
        let Said { text, stopped } = self.text.finish();
        self.send(text);
        if stopped {
            return self.end(FinishReason::Stop);
        }
        let logprobs: Vec<_> = self.held.drain(..).map(|(_, logged)| logged).collect();
        if !logprobs.is_empty() {
            self.emit(Event::Piece(Piece { text: String::new(), logprobs }));
        }
        self.end(reason);
    }

    /// Sends text and the tokens that begin in what has been sent by now.
    fn send(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        let certain = self.held.partition_point(|&(start, _)| start < self.text.sent());
        let logprobs = self.held.drain(..certain).map(|(_, logged)| logged).collect();
        self.emit(Event::Piece(Piece { text, logprobs }));
    }

    fn end(&self, reason: FinishReason) {
        let Self { prompt_tokens, written, .. } = *self;
        self.emit(Event::End(Ending { reason, prompt_tokens, completion_tokens: written }));
    }

    fn emit(&self, event: Event) {
        // The client may have left, which `is_abandoned` tells.
        let _ = self.events.send(event);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lmm_hooks::GenerationOptions;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// The tokens of a character have the place where it begins, and come with it; those of a stop text do not come.
    #[test]
    fn log_probabilities_come_with_the_text_they_are_of() {
        let models =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/lmm-prep/tests/fixtures/models");
        for name in ["llama3", "mistral", "qwen"] {
            let processor = Arc::new(Processor::load(&models.join(name)).unwrap());
            let (events, mut answers) = unbounded_channel();
            let job = Job {
                inputs: processor.prepare("a", &[]).unwrap(),
                options: GenerationOptions::greedy(100, vec![2]),
                stops: vec![" three".to_owned()],
                steering: steering::Plan::default(),
                events,
                permits: Vec::new(),
            };
            let mut row = Row::new(&processor, &job);
            let ids = processor.tokenizer().encode("one 🦀🦀 two three four", false).unwrap();
            let (mut text, mut bytes) = (String::new(), Vec::new());
            for id in ids {
                let token = NewToken { id, logprob: Some(-1.0), top: Vec::new() };
                let goes_on = row.accept(&token).unwrap();
                while let Ok(Event::Piece(piece)) = answers.try_recv() {
                    text.push_str(&piece.text);
                    bytes.extend(piece.logprobs.iter().flat_map(LoggedToken::bytes));
                    // No token is late.
                    assert!(bytes.starts_with(text.as_bytes()), "{name}: {text:?} {bytes:?}");
                }
                if !goes_on {
                    break;
                }
            }
            assert_eq!(text.trim_start(), "one 🦀🦀 two", "{name}");
            assert_eq!(String::from_utf8(bytes).unwrap(), text, "{name}");
        }
    }
}
