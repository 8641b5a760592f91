//! Examples of text: windows of tokens around a feature's peaks, its tokens marked.

use std::collections::HashSet;
use std::fmt::Write as _;

use act_cache::{CachedTokens, Duplicates, FeatureSlice, Ranking, Selection};
use lmm_prep::Tokenizer;
use sae_types::SampleId;

use crate::ExplainError;

/// Stand around marked tokens.
pub const MARKS: [&str; 2] = ["<<", ">>"];

/// A window of tokens around the place where a feature is strongest in one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct TextExample {
    /// The sample.
    pub sample: SampleId,
    /// The largest activation in the window.
    pub peak: f32,
    /// The tokens, in order.
    pub pieces: Vec<Piece>,
}

/// A token of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text. A character that several tokens make up stands with the last of them.
    pub text: String,
    /// The feature's activation, 0 where it is off.
    pub activation: f32,
}

/// How examples are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextStyle {
    /// Tokens are marked from this share of the example's largest activation on; delphi's is 0.3.
    pub threshold: f32,
    /// Whether the marked tokens are listed below each example with their activation.
    pub activations: bool,
}

/// The first samples of `selection` by largest activation, each as a window of `context` tokens around its peak, or the whole
/// of shorter ones. Tokens of images are passed over, and so are samples in which the feature is on only there; windows
/// of the same tokens are taken once.
///
/// # Errors
/// When the cache cannot be read or a token has no text.
pub fn text_examples(
    feature: &FeatureSlice<'_>,
    tokens: &CachedTokens,
    tokenizer: &Tokenizer,
    selection: Selection,
    context: usize,
) -> Result<Vec<TextExample>, ExplainError> {
    let ranked = feature
        .pick(Ranking::Max, selection, Duplicates::Keep)
        .map_err(ExplainError::cache(feature.feature()))?;
    let mut seen = HashSet::new();
    let mut examples = Vec::new();
    for ranked in ranked {
        let Some(window) = Line::read(feature, tokens, ranked.sample)?.around_peak(context) else { continue };
        if seen.insert(window.ids.clone()) {
            examples.push(window.written(tokenizer, ranked.sample)?);
        }
    }
    Ok(examples)
}

/// The window around the peak of one sample, as [`text_examples`] has it; `None` if the feature is on nowhere in its text.
///
/// # Errors
/// As [`text_examples`].
pub fn text_example(
    feature: &FeatureSlice<'_>,
    tokens: &CachedTokens,
    tokenizer: &Tokenizer,
    sample: SampleId,
    context: usize,
) -> Result<Option<TextExample>, ExplainError> {
    let window = Line::read(feature, tokens, sample)?.around_peak(context);
    window.map(|window| window.written(tokenizer, sample)).transpose()
}

/// A window anywhere in the text of one sample, wherever the feature is on: `start` is given the number of windows there are and says
/// which it is. `None` if there is no text.
///
/// # Errors
/// As [`text_examples`].
///
/// # Panics
/// When `start` gives a window that is not there.
#[track_caller]
pub fn text_window(
    feature: &FeatureSlice<'_>,
    tokens: &CachedTokens,
    tokenizer: &Tokenizer,
    sample: SampleId,
    context: usize,
    start: impl FnOnce(usize) -> usize,
) -> Result<Option<TextExample>, ExplainError> {
    let line = Line::read(feature, tokens, sample)?;
    if line.ids.is_empty() {
        return Ok(None);
    }
    let len = context.clamp(1, line.ids.len());
    let windows = line.ids.len() - len + 1;
    let start = start(windows);
    assert!(start < windows, "window {start} of {windows}");
    line.window(start, len).written(tokenizer, sample).map(Some)
}

/// In how many samples the feature is on in the text, tokens of images aside, but no more than `enough`, where the count ends.
pub fn count_text_up_to(feature: &FeatureSlice<'_>, enough: usize) -> usize {
    feature.by_sample().filter(|(sample, part)| is_text_on(*sample, part)).take(enough).count()
}

/// Whether the feature is on in the text of a sample, tokens of images aside.
pub fn is_on_in_text(feature: &FeatureSlice<'_>, sample: SampleId) -> bool {
    is_text_on(sample, &feature.in_sample(sample))
}

/// The same of the part of a feature that is the sample's.
fn is_text_on(sample: SampleId, part: &FeatureSlice<'_>) -> bool {
    let layout = &part.cache().manifest().token_layout;
    let record = part.cache().sample(sample);
    record.is_some_and(|record| part.iter().any(|on| !record.is_image_token(on.token, layout)))
}

/// The text of one sample, tokens of images left out.
struct Line {
    ids: Vec<u32>,
    activations: Vec<f32>,
}

/// A part of it.
struct Window {
    ids: Vec<u32>,
    activations: Vec<f32>,
}

impl Line {
    fn read(
        feature: &FeatureSlice<'_>,
        tokens: &CachedTokens,
        sample: SampleId,
    ) -> Result<Self, ExplainError> {
        let cache = feature.cache();
        let layout = &cache.manifest().token_layout;
        let line = cache.samples().binary_search_by_key(&sample, |record| record.sample);
        let line = line.map_err(|_| ExplainError::UnknownSample { sample })?;
        let (record, ids) = (&cache.samples()[line], tokens.of_line(line));
        let is_text = |token: u32| !record.is_image_token(sae_types::TokenIndex(token), layout);
        let places: Vec<u32> = (0..ids.len() as u32).filter(|&token| is_text(token)).collect();
        let mut activations = vec![0.0; places.len()];
        for activation in feature.in_sample(sample).iter() {
            if let Ok(place) = places.binary_search(&activation.token.0) {
                activations[place] = activation.value;
            }
        }
        Ok(Self { ids: places.into_iter().map(|place| ids[place as usize]).collect(), activations })
    }

    /// The window of `context` tokens, or all there are, around the first of the strongest; `None` if the feature is off.
    fn around_peak(&self, context: usize) -> Option<Window> {
        let (mut peak, mut at) = (0.0, None);
        for (place, &value) in self.activations.iter().enumerate() {
            if value > peak {
                (peak, at) = (value, Some(place));
            }
        }
        let at = at?;
        let len = context.clamp(1, self.ids.len());
        // The peak stands in the middle, unless the text begins or ends near it.
        let start = at.saturating_sub(len / 2).min(self.ids.len() - len);
        Some(self.window(start, len))
    }

    fn window(&self, start: usize, len: usize) -> Window {
        let range = start..start + len;
        Window { ids: self.ids[range.clone()].to_vec(), activations: self.activations[range].to_vec() }
    }
}

impl Window {
    fn written(self, tokenizer: &Tokenizer, sample: SampleId) -> Result<TextExample, ExplainError> {
        let texts = pieces(tokenizer, &self.ids).map_err(|source| ExplainError::Text { sample, source })?;
        let peak = self.activations.iter().copied().fold(0.0, f32::max);
        let pieces = texts.into_iter().zip(self.activations);
        let pieces = pieces.map(|(text, activation)| Piece { text, activation }).collect();
        Ok(TextExample { sample, peak, pieces })
    }
}

/// The text of each id as it reads within the whole: decoded with what stands before it, so that spaces are where they belong.
fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<String>, lmm_prep::PrepError> {
    let mut pieces = Vec::with_capacity(ids.len());
    let mut done = 0;
    for end in 1..=ids.len() {
        let text = tokenizer.decode(&ids[..end], false)?;
        // Half a character shows as U+FFFD: it waits for its other half, unless there is none.
        let half = text.ends_with('\u{fffd}') && end < ids.len();
        let piece = if half { "" } else { text.get(done..).unwrap_or("") };
        if !half {
            done = text.len();
        }
        pieces.push(piece.to_owned());
    }
    Ok(pieces)
}

impl TextExample {
    /// The example as text with these tokens between [`MARKS`]; neighbours share one pair.
    ///
    /// # Panics
    /// When a token is beyond the last.
    #[track_caller]
    pub fn marked(&self, tokens: &[usize]) -> String {
        let n = self.pieces.len();
        let mut is_marked = vec![false; n + 1];
        for &at in tokens {
            assert!(at < n, "token {at} is marked in a text of {n} tokens");
            is_marked[at] = true;
        }
        let [open, close] = MARKS;
        let mut text = String::new();
        let mut before = false;
        for (at, piece) in self.pieces.iter().enumerate() {
            if is_marked[at] && !before {
                text += open;
            }
            text += &piece.text;
            if is_marked[at] && !is_marked[at + 1] {
                text += close;
            }
            before = is_marked[at];
        }
        text
    }

    /// The example as text, its strong tokens between [`MARKS`]. `largest` is the feature's largest activation over all
    /// examples, to which the listed strengths, 0 to 10 and rounded down, are relative.
    pub fn write(&self, style: TextStyle, largest: f32) -> String {
        let least = style.threshold * self.peak;
        let is_marked = |piece: &Piece| piece.activation > 0.0 && piece.activation >= least;
        let strong: Vec<usize> = (0..self.pieces.len()).filter(|&at| is_marked(&self.pieces[at])).collect();
        let mut text = self.marked(&strong);
        if style.activations {
            let listed = strong.iter().map(|&at| &self.pieces[at]).map(|piece| {
                let strength =
                    (10.0 * piece.activation / largest.max(f32::MIN_POSITIVE)).clamp(0.0, 10.0) as u8;
                format!("({:?}: {strength})", piece.text)
            });
            let _ = write!(text, "\nStrengths: {}", listed.collect::<Vec<_>>().join(", "));
        }
        text
    }
}

/// All examples, numbered, and the tokens that the feature makes likelier, if they are known.
pub fn write_examples(examples: &[TextExample], style: TextStyle, likelier: &[String]) -> String {
    let largest = examples.iter().map(|example| example.peak).fold(0.0, f32::max);
    let mut text = String::new();
    for (number, example) in examples.iter().enumerate() {
        let _ = writeln!(text, "Excerpt {}: {}\n", number + 1, example.write(style, largest));
    }
    if !likelier.is_empty() {
        let quoted: Vec<String> = likelier.iter().map(|token| format!("{token:?}")).collect();
        let _ = writeln!(text, "Tokens made more likely: {}", quoted.join(", "));
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> TextExample {
        let pieces = [("the", 0.0), (" red", 2.0), (" cir", 3.9), ("cle", 0.5), (" is", 0.0), (" big", 4.0)];
        let pieces = pieces.map(|(text, activation)| Piece { text: text.to_owned(), activation });
        TextExample { sample: SampleId(0), peak: 4.0, pieces: pieces.to_vec() }
    }

    #[test]
    fn neighbours_share_marks_and_strengths_are_rounded_down() {
        assert_eq!(example().marked(&[5, 1, 2]), "the<< red cir>>cle is<< big>>");
        assert_eq!(example().marked(&[]), "the red circle is big");
        let style = TextStyle { threshold: 0.3, activations: false };
        assert_eq!(example().write(style, 8.0), "the<< red cir>>cle is<< big>>");
        let all = TextStyle { threshold: 0.0, activations: true };
        assert_eq!(
            example().write(all, 8.0),
            "the<< red circle>> is<< big>>\nStrengths: (\" red\": 2), (\" cir\": 4), (\"cle\": 0), (\" big\": 5)"
        );
    }

    #[test]
    fn examples_are_numbered_and_likelier_tokens_stand_at_the_end() {
        let style = TextStyle { threshold: 0.9, activations: false };
        let text = write_examples(&[example(), example()], style, &[" colour".to_owned(), "\n".to_owned()]);
        let want = "Excerpt 1: the red<< cir>>cle is<< big>>\n\nExcerpt 2: the red<< cir>>cle is<< big>>\n\n\
                    Tokens made more likely: \" colour\", \"\\n\"";
        assert_eq!(text, want);
    }
}
