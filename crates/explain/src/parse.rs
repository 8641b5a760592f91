//! Answers read: what stands behind the last marker, whatever decorates it.

use std::str::FromStr;

/// Stands before an explanation.
pub const EXPLANATION_MARKER: &str = "[EXPLANATION]";
/// Stands before every other answer.
pub const ANSWER_MARKER: &str = "[ANSWER]";
/// What a model says, and published files hold, where there is nothing to describe.
pub const UNABLE: &str = "Unable to produce descriptions";

/// An answer as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What the model says, in one line.
    Given(String),
    /// The model says that there is nothing to say.
    Unable,
    /// There is no marker, or nothing behind it.
    Unparsed,
}

/// The six kinds of concept a feature may be labelled as: those of Network Dissection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// A place or situation.
    Scene,
    /// A thing.
    Object,
    /// A part of a thing.
    Part,
    /// What things are made of.
    Material,
    /// A pattern of a surface.
    Texture,
    /// A colour.
    Color,
}

impl Label {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Scene, Self::Object, Self::Part, Self::Material, Self::Texture, Self::Color];

    /// Its name in lower case, `color` spelt as the published files do.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scene => "scene",
            Self::Object => "object",
            Self::Part => "part",
            Self::Material => "material",
            Self::Texture => "texture",
            Self::Color => "color",
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Label {
    type Err = NoLabel;

    /// A word for a kind of concept, singular or plural, in either case; `colour` too.
    fn from_str(word: &str) -> Result<Self, NoLabel> {
        let word = word.to_lowercase();
        let singular = word.strip_suffix('s').unwrap_or(&word);
        let singular = if singular == "colour" { "color" } else { singular };
        Self::ALL.into_iter().find(|label| label.name() == singular).ok_or(NoLabel)
    }
}

/// A word that is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected scene, object, part, material, texture or color")]
pub struct NoLabel;

/// Reads an explanation: what stands behind the last `[EXPLANATION]`. `is_whole` is false of an answer that broke off: without
/// its marker it says nothing.
pub fn explanation(text: &str, is_whole: bool) -> Answer {
    marked(text, EXPLANATION_MARKER, is_whole)
}

/// Reads an entity: what stands behind the last `[ANSWER]`. `is_whole` as for [`explanation`].
pub fn entity(text: &str, is_whole: bool) -> Answer {
    marked(text, ANSWER_MARKER, is_whole)
}

/// Reads a label: exactly one of the six is named in the first line behind the last `[ANSWER]`, or the answer, if it is
/// whole, is that word and no more.
pub fn label(text: &str, is_whole: bool) -> Answer {
    word(text, is_whole, |line| {
        let words = line.split(|c: char| !c.is_alphabetic());
        let mut named: Vec<Label> = words.filter_map(|word| word.parse().ok()).collect();
        named.sort_unstable();
        named.dedup();
        match named.as_slice() {
            [one] => Some(one.to_string()),
            _ => None,
        }
    })
}

/// Reads a verdict: 0 or 1 is the only number in the first line behind the last `[ANSWER]`, or the answer, if it is whole, is
/// that digit and no more.
pub fn verdict(text: &str, is_whole: bool) -> Answer {
    word(text, is_whole, |line| {
        let numbers = line.split(|c: char| !(c.is_ascii_digit() || c == '.'));
        let mut numbers = numbers.map(|word| word.trim_matches('.')).filter(|word| !word.is_empty());
        match (numbers.next(), numbers.next()) {
            (Some(verdict @ ("0" | "1")), None) => Some(verdict.to_owned()),
            _ => None,
        }
    })
}

/// What a feature's steering did to an answer, by the name judges call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SteeringEffect {
    /// Nothing that matters: both answers say the same.
    None,
    /// What the feature is about is named.
    Mention,
    /// What the feature is about shapes the answer without being named, or what is said follows from it.
    Reasoning,
    /// The answer changed in a way that has nothing to do with the feature.
    Unrelated,
}

impl SteeringEffect {
    /// All of them, as multimodal-sae numbers them from 1.
    pub const ALL: [Self; 4] = [Self::None, Self::Mention, Self::Reasoning, Self::Unrelated];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mention => "mention",
            Self::Reasoning => "reasoning",
            Self::Unrelated => "unrelated",
        }
    }
}

/// Reads a [`SteeringEffect`]: exactly one of the four is named in the first line behind the last `[ANSWER]`, or the answer, if it
/// is whole, is that word and no more.
pub fn steering_effect(text: &str, is_whole: bool) -> Answer {
    word(text, is_whole, |line| {
        let line = line.to_lowercase();
        let words: Vec<&str> = line.split(|c: char| !c.is_alphabetic()).collect();
        let mut named = SteeringEffect::ALL.iter().filter(|effect| words.contains(&effect.name()));
        match (named.next(), named.next()) {
            (Some(one), None) => Some(one.name().to_owned()),
            _ => None,
        }
    })
}

/// An answer of one word. Without a marker no other word may be there: of a sentence it cannot be told what it says.
fn word(text: &str, is_whole: bool, read: impl Fn(&str) -> Option<String>) -> Answer {
    let line = if let Some(Behind { rest, .. }) = behind(text, ANSWER_MARKER) {
        rest.lines().find(|line| !line.trim().is_empty())
    } else {
        let bare = text.trim_matches(|c: char| is_decoration(c) || c == '.');
        Some(bare).filter(|bare| is_whole && bare.chars().all(char::is_alphanumeric))
    };
    line.and_then(read).map_or(Answer::Unparsed, Answer::Given)
}

/// An explanation of a published file, where nothing stands before it.
pub fn published(text: &str) -> Answer {
    if text.trim().eq_ignore_ascii_case("Explanation could not be parsed.") {
        return Answer::Unparsed;
    }
    clean(text)
}

fn marked(text: &str, marker: &str, is_whole: bool) -> Answer {
    match behind(text, marker) {
        Some(Behind { rest, open: None }) => clean(rest),
        // What opened before the marker closes at the end of the line.
        Some(Behind { rest, open: Some(open) }) => match clean(rest) {
            Answer::Given(line) => clean(line.strip_suffix(open).unwrap_or(&line)),
            other => other,
        },
        None if is_whole && says_unable(text) => Answer::Unable,
        None => Answer::Unparsed,
    }
}

/// What stands behind a marker.
struct Behind<'t> {
    rest: &'t str,
    /// Decoration that stands before the marker and does not end with it.
    open: Option<char>,
}

/// What stands behind the last marker, in whichever case it is written, and its colon.
fn behind<'t>(text: &'t str, marker: &str) -> Option<Behind<'t>> {
    let (bytes, wanted) = (text.as_bytes(), marker.as_bytes());
    let last = bytes.len().checked_sub(wanted.len())?;
    let at = (0..=last).rev().find(|&at| bytes[at..at + wanted.len()].eq_ignore_ascii_case(wanted))?;
    let open = text[..at].chars().next_back().filter(|&c| "*_`\"'".contains(c));
    let behind = &text[at + wanted.len()..];
    let rest = behind.trim_start_matches(|c: char| c == ':' || c.is_whitespace() || Some(c) == open);
    let closed = &behind[..behind.len() - rest.len()];
    Some(Behind { rest, open: open.filter(|&open| !closed.contains(open)) })
}

fn says_unable(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("unable to produce") || text.starts_with("unable")
}

fn is_decoration(c: char) -> bool {
    c.is_whitespace() || "*_`\"'“”‘’#>:".contains(c)
}

/// One paragraph in one line, without the decoration models put around it: signs of headings and of quotations before it,
/// quotes and emphasis in pairs.
fn clean(text: &str) -> Answer {
    const PAIRS: [(char, char); 7] =
        [('"', '"'), ('\'', '\''), ('`', '`'), ('*', '*'), ('_', '_'), ('“', '”'), ('‘', '’')];
    let text = text.replace("**", "");
    let text = text.trim_start_matches(|c: char| c == ':' || c.is_whitespace());
    let paragraph = text.lines().take_while(|line| !line.trim().is_empty());
    let joined = paragraph.map(str::trim).collect::<Vec<_>>().join(" ");
    let mut line = joined.as_str();
    if let Some((signs, rest)) = line.split_once(' ')
        && signs.chars().all(|c| c == '#' || c == '>')
    {
        line = rest.trim_start();
    }
    let inner = |line: &str| {
        PAIRS.iter().find_map(|&(open, close)| {
            let inner = line.strip_prefix(open)?.strip_suffix(close)?;
            // Of `"a" and "b"` the outer ones are no pair.
            (!inner.contains([open, close])).then(|| inner.trim().len())
        })
    };
    while let Some(len) = inner(line) {
        let start = line.chars().next().map_or(0, char::len_utf8);
        line = line[start..].trim_start();
        line = &line[..len];
    }
    if line.chars().all(is_decoration) {
        Answer::Unparsed
    } else if says_unable(line) {
        Answer::Unable
    } else {
        Answer::Given(line.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Answer {
        Answer::Given(text.to_owned())
    }

    #[test]
    fn effects_are_one_of_four_words() {
        for (text, effect) in [
            ("Both tell of a dog.\n[ANSWER]: Mention", "mention"),
            ("**[ANSWER]: none.**", "none"),
            ("Unrelated.", "unrelated"),
            ("[answer] reasoning, since greed follows from eating", "reasoning"),
        ] {
            assert_eq!(steering_effect(text, true), Answer::Given(effect.to_owned()), "{text}");
        }
        for text in ["[ANSWER]: none or mention", "There is none.", "[ANSWER]: 2", ""] {
            assert_eq!(steering_effect(text, true), Answer::Unparsed, "{text}");
        }
        assert_eq!(steering_effect("none", false), Answer::Unparsed);
    }

    #[test]
    fn explanations_stand_behind_the_last_marker() {
        for (text, want) in [
            ("[EXPLANATION]: train tracks", given("train tracks")),
            ("[explanation]: red circle", given("red circle")),
            ("[explanation] : red circle", given("red circle")),
            ("I answer with [EXPLANATION].\n\n**[EXPLANATION]:** \"Train tracks.\"", given("Train tracks.")),
            (
                "[EXPLANATION]:\n\nthe lit parts\n  share a wheel\n\nI hope this helps",
                given("the lit parts share a wheel"),
            ),
            ("[EXPLANATION]: `snow`\r\n\r\nmore", given("snow")),
            ("ÄÖ [Explanation]: Ölfarbe", given("Ölfarbe")),
            ("[EXPLANATION]: Unable to produce descriptions", Answer::Unable),
            ("[explanation]: unable", Answer::Unable),
            ("I am UNABLE TO PRODUCE descriptions.", Answer::Unable),
            ("[EXPLANATION]: a label \"unable\" on boxes", given("a label \"unable\" on boxes")),
            ("train tracks", Answer::Unparsed),
            ("[EXPLANATION]:", Answer::Unparsed),
            ("[EXPLANATION]: **", Answer::Unparsed),
            ("", Answer::Unparsed),
        ] {
            assert_eq!(explanation(text, true), want, "{text:?}");
        }
        assert_eq!(entity("The key thing is\n[ANSWER]: Train tracks", true), given("Train tracks"));
        assert_eq!(entity("[EXPLANATION]: Train tracks", true), Answer::Unparsed);
        // An answer that broke off says nothing before its marker.
        assert_eq!(explanation("Unable to produce a list of all", false), Answer::Unparsed);
        assert_eq!(explanation("[EXPLANATION]: snow on", false), given("snow on"));
    }

    #[test]
    fn decoration_goes_in_pairs() {
        for (text, want) in [
            ("the word \"STOP\"", "the word \"STOP\""),
            ("\"STOP\" and \"GO\"", "\"STOP\" and \"GO\""),
            ("**train tracks** on gravel", "train tracks on gravel"),
            ("**train tracks", "train tracks"),
            ("*`snow`*", "snow"),
            ("“snow”", "snow"),
            ("_snow_", "snow"),
            ("C#", "C#"),
            ("#hashtags", "#hashtags"),
            ("## Snow", "Snow"),
            ("> snow", "snow"),
            ("the dog's bone", "the dog's bone"),
            ("snow_case_", "snow_case_"),
        ] {
            assert_eq!(published(text), given(want), "{text:?}");
        }
        for text in [
            "*[EXPLANATION]: snow*",
            "`[EXPLANATION]`: snow",
            "**[EXPLANATION]**: snow",
            "**[EXPLANATION]: snow**",
            "\"[EXPLANATION]: snow\"",
            "*[EXPLANATION]:* \"snow\"",
        ] {
            assert_eq!(explanation(text, true), given("snow"), "{text:?}");
        }
        assert_eq!(explanation("*[EXPLANATION]: the word \"STOP\"*", true), given("the word \"STOP\""));
    }

    #[test]
    fn one_label_and_no_more() {
        for (text, want) in [
            ("[ANSWER]: Colour", Some("color")),
            ("objects", Some("object")),
            ("**Part**.", Some("part")),
            ("It could be a part, but\n[answer]: **object**.", Some("object")),
            ("[ANSWER]:\n\nscene\nor a part of one", Some("scene")),
            ("A scene. Yes, a scene", None),
            ("It is not an object", None),
            ("object or part", None),
            ("[ANSWER]: object or part", None),
            ("department", None),
            ("[ANSWER]: action", None),
        ] {
            assert_eq!(label(text, true), want.map_or(Answer::Unparsed, given), "{text:?}");
        }
        assert_eq!(label("part", false), Answer::Unparsed);
        assert_eq!(label("[ANSWER]: part", false), given("part"));
    }

    #[test]
    fn a_verdict_is_0_or_1() {
        for (text, want) in [
            ("1", Some("1")),
            (" \"0\".", Some("0")),
            ("[ANSWER]: 0.", Some("0")),
            ("In 5 of 5 pictures.\n[ANSWER]: 1", Some("1")),
            ("[ANSWER]: 1\n\nIt fits 4 of 5 pictures.", Some("1")),
            ("**[ANSWER]:** 0", Some("0")),
            ("In picture 1 the lit area is", None),
            ("The answer is 1", None),
            ("[ANSWER]: 0 or 1", None),
            ("0 or 1", None),
            ("0.5", None),
            ("10", None),
            ("yes", None),
            ("[ANSWER]:", None),
        ] {
            assert_eq!(verdict(text, true), want.map_or(Answer::Unparsed, given), "{text:?}");
        }
        assert_eq!(verdict("1", false), Answer::Unparsed);
    }

    #[test]
    fn published_texts_are_taken_as_they_are() {
        assert_eq!(published(" Train tracks "), given("Train tracks"));
        assert_eq!(published("Explanation could not be parsed."), Answer::Unparsed);
        assert_eq!(published("Unable to produce descriptions"), Answer::Unable);
    }
}
