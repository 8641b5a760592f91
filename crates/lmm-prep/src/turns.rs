//! Where in a rendered conversation each turn's content lies.

use std::ops::Range;

use crate::chat::{Content, Message, Part};

/// One turn of a conversation in the token sequence it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnSpan {
    /// Who speaks, as given to the template: `user`, `assistant`, `system`.
    pub role: String,
    /// Positions of the turn's content in the expanded sequence: its texts and images and what the template puts between
    /// them, no header; for the assistant also the token that ends the turn, where the template writes one. A token
    /// that is part content and part template counts. Empty for an empty turn without such a token.
    pub tokens: Range<usize>,
}

/// Texts by which chat templates end a turn, beside the tokenizer's own EOS.
pub(crate) const TURN_ENDS: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|end|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "</s>",
];

/// A character of the private use area, which no template looks for.
const MARK: char = '\u{F8FF}';

/// The same messages with a mark instead of each text, the marks numbered from 0. What a template writes around a text
/// shows between the marks, whatever the text itself holds.
pub(crate) fn marked(messages: &[Message]) -> Vec<Message> {
    let mut n = 0;
    let mut mark = || {
        n += 1;
        format!("{MARK}{}{MARK}", n - 1)
    };
    let marked = |message: &Message| {
        let content = match &message.content {
            Content::Text(_) => Content::Text(mark()),
            Content::Parts(parts) => Content::Parts(
                parts
                    .iter()
                    .map(|part| match part {
                        Part::Text { .. } => Part::Text { text: mark() },
                        Part::Image => Part::Image,
                    })
                    .collect(),
            ),
        };
        Message { role: message.role.clone(), content }
    };
    messages.iter().map(marked).collect()
}

/// Bytes of `prompt` that are each message's content. `skeleton` is what the template makes of [`marked`] messages.
///
/// # Errors
/// The number of the first message that cannot be found, and why.
pub(crate) fn locate(
    prompt: &str,
    skeleton: &str,
    messages: &[Message],
    image_token: &str,
) -> Result<Vec<Range<usize>>, (usize, String)> {
    let texts: Vec<(usize, &str)> = messages
        .iter()
        .enumerate()
        .flat_map(|(turn, message)| texts_of(message).map(move |text| (turn, text)))
        .collect();
    let owners: Vec<usize> = messages
        .iter()
        .enumerate()
        .flat_map(|(turn, message)| std::iter::repeat_n(turn, images_of(message)))
        .collect();
    let pieces = pieces(skeleton);
    let mut spans: Vec<Option<Range<usize>>> = vec![None; messages.len()];
    let mut add = |turn: usize, range: Range<usize>| {
        let span = spans[turn].get_or_insert(range.clone());
        *span = span.start.min(range.start)..span.end.max(range.end);
    };
    let (mut at, mut image) = (0, 0);
    for (number, piece) in pieces.iter().enumerate() {
        match *piece {
            Piece::Template(text) => {
                if !prompt[at..].starts_with(text) {
                    // The first piece, or one after a mark whose text was taken as it was given.
                    let turn = last_turn(&pieces[..number], &texts);
                    return Err((turn, "the template writes it in another way than other texts".into()));
                }
                for (offset, _) in text.match_indices(image_token) {
                    let Some(&turn) = owners.get(image) else {
                        let turn = last_turn(&pieces[..number], &texts);
                        return Err((turn, "the template writes more images than the messages hold".into()));
                    };
                    add(turn, at + offset..at + offset + image_token.len());
                    image += 1;
                }
                at += text.len();
            }
            Piece::Mark(mark) => {
                let Some(&(turn, text)) = texts.get(mark) else { continue };
                let next = pieces.get(number + 1).and_then(|piece| match *piece {
                    Piece::Template(text) => Some(text),
                    Piece::Mark(_) => None,
                });
                let Some(length) = length_of(&prompt[at..], text, next, number + 1 == pieces.len()) else {
                    return Err((turn, "its text is not where the template puts texts".into()));
                };
                add(turn, at..at + length);
                at += length;
            }
        }
    }
    if at != prompt.len() {
        return Err((messages.len().saturating_sub(1), "the template adds words behind it".into()));
    }
    let mut end = 0;
    let mut found = Vec::with_capacity(messages.len());
    for (turn, (span, message)) in spans.into_iter().zip(messages).enumerate() {
        let nothing = texts_of(message).all(|text| text.trim().is_empty()) && images_of(message) == 0;
        let span = match span {
            Some(span) => span,
            None if nothing => end..end,
            None => return Err((turn, "the template leaves it out".into())),
        };
        if span.start < end {
            return Err((turn, "the template does not keep it apart from the turn before".into()));
        }
        end = span.end;
        found.push(span);
    }
    Ok(found)
}

/// Bytes at the start of `prompt` that are `text` as a template may write it: as it is or trimmed on either side; else, when
/// the template changes it, all up to `next`.
fn length_of(prompt: &str, text: &str, next: Option<&str>, last: bool) -> Option<usize> {
    let fits = |text: &&str| {
        prompt.strip_prefix(*text).is_some_and(|rest| match next {
            Some(next) => rest.starts_with(next),
            None => !last || rest.is_empty(),
        })
    };
    let ways = [text, text.trim(), text.trim_end(), text.trim_start()];
    if let Some(text) = ways.iter().find(|text| fits(text)) {
        return Some(text.len());
    }
    match next {
        Some(next) => prompt.find(next),
        None if last => Some(prompt.len()),
        None => None,
    }
}

/// The turn of the last mark before a place of the skeleton.
fn last_turn(pieces: &[Piece<'_>], texts: &[(usize, &str)]) -> usize {
    let mark = pieces.iter().rev().find_map(|piece| match *piece {
        Piece::Mark(mark) => texts.get(mark),
        Piece::Template(_) => None,
    });
    mark.map_or(0, |&(turn, _)| turn)
}

fn texts_of(message: &Message) -> impl Iterator<Item = &str> {
    let (whole, parts) = match &message.content {
        Content::Text(text) => (Some(text.as_str()), [].as_slice()),
        Content::Parts(parts) => (None, parts.as_slice()),
    };
    whole.into_iter().chain(parts.iter().filter_map(|part| match part {
        Part::Text { text } => Some(text.as_str()),
        Part::Image => None,
    }))
}

fn images_of(message: &Message) -> usize {
    match &message.content {
        Content::Text(_) => 0,
        Content::Parts(parts) => parts.iter().filter(|part| **part == Part::Image).count(),
    }
}

/// A part of a skeleton.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Piece<'a> {
    /// What the template itself writes; never empty.
    Template(&'a str),
    /// The place of the text of this number.
    Mark(usize),
}

fn pieces(skeleton: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    // Between two marks stands a number, then the template, in turns.
    for (index, part) in skeleton.split(MARK).enumerate() {
        match part.parse() {
            Ok(number) if index % 2 == 1 => pieces.push(Piece::Mark(number)),
            _ if part.is_empty() => {}
            _ => pieces.push(Piece::Template(part)),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located<'a>(prompt: &'a str, skeleton: &str, messages: &[Message]) -> Result<Vec<&'a str>, String> {
        match locate(prompt, &skeleton.replace('#', "\u{F8FF}"), messages, "<image>") {
            Ok(ranges) => Ok(ranges.into_iter().map(|range| &prompt[range]).collect()),
            Err((turn, why)) => Err(format!("{turn}: {why}")),
        }
    }

    fn chat(user: &str, assistant: &str) -> [Message; 2] {
        [Message::text("user", user), Message::text("assistant", assistant)]
    }

    #[test]
    fn short_answers_are_not_found_in_headers() {
        let found = located("user: a assistant: a;", "user: #0# assistant: #1#;", &chat("a", "a"));
        assert_eq!(found.unwrap(), ["a", "a"]);
    }

    #[test]
    fn trimmed_changed_and_empty_texts() {
        let skeleton = "U:#0# A:#1#|";
        assert_eq!(located("U:hi A:ho|", skeleton, &chat(" hi ", "ho\n")).unwrap(), ["hi", "ho"]);
        assert_eq!(located("U: hi  A:ho|", skeleton, &chat(" hi ", "ho")).unwrap(), [" hi ", "ho"]);
        assert_eq!(located("U:HI A:ho|", skeleton, &chat("hi", "ho")).unwrap(), ["HI", "ho"]);
        assert_eq!(located("U:hi A:|", skeleton, &chat("hi", "")).unwrap(), ["hi", ""]);
        assert_eq!(located("U:hi A:", "U:#0# A:#1#", &chat("hi", "")).unwrap(), ["hi", ""]);
    }

    #[test]
    fn images_belong_to_their_turns() {
        let image_last = Message::parts("user", vec![Part::Text { text: "b".into() }, Part::Image]);
        let messages = [Message::image_and_text("user", "a"), image_last];
        let found = located("1<image>\na 2 <image>\nb.", "1<image>\n#0# 2 <image>\n#1#.", &messages);
        assert_eq!(found.unwrap(), ["<image>\na", "<image>\nb"]);
    }

    #[test]
    fn what_cannot_be_found_is_named() {
        let messages = chat("hi", "ho");
        assert_eq!(located("U:hi", "U:#0#", &messages).unwrap_err(), "1: the template leaves it out");
        let error = located("U:hi.V:ho", "U:#0#A:#1#", &messages).unwrap_err();
        assert!(error.starts_with("0: its text is not where"), "{error}");
        let error = located("A:ho U:hi", "A:#1# U:#0#", &messages).unwrap_err();
        assert!(error.starts_with("1: the template does not keep it apart"), "{error}");
        let error = located("<image>U:hi A:ho", "<image>U:#0# A:#1#", &messages).unwrap_err();
        assert!(error.contains("more images"), "{error}");
        assert_eq!(located("x", "y", &messages).unwrap_err().chars().next(), Some('0'));
    }
}
