//! What is asked. Instructions are text, so that a user may bring others; the functions put pictures, examples and
//! explanations to them.

use chat_client::{ChatMessage, Image, Role};

use crate::parse::{ANSWER_MARKER, EXPLANATION_MARKER, UNABLE};

/// Stands in instructions for the explanation that is asked about.
const EXPLANATION: &str = "{explanation}";
/// Stand in instructions for an answer before and after steering.
const CHANGE: &str = "{change}";
const ORIGINAL: &str = "{original}";
const STEERED: &str = "{steered}";
/// Stands in instructions for examples of text.
const EXAMPLES: &str = "{examples}";

/// What examples of text come with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextParts {
    /// The activation of each token that is on is listed below its example.
    pub activations: bool,
    /// The tokens that the feature makes likelier are listed.
    pub logits: bool,
    /// The model is asked to think aloud first.
    pub chain_of_thought: bool,
}

/// Instructions for explaining pictures of which the last `n_counterexamples` are not examples.
pub fn images_instruction(n_counterexamples: usize) -> String {
    let counterexamples = match n_counterexamples {
        0 => String::new(),
        n => format!(
            "The last {n} of the pictures, shown at full brightness all over, are counterexamples: nothing in them makes the \
             feature react, so what you describe must be missing there.\n"
        ),
    };
    format!(
        "These pictures show where one feature inside a neural network reacts. Lit areas, at their full brightness, are where \
         the feature is on; everything dimmed is where it is off.\n\
         {counterexamples}\
         Work out what the lit areas share from picture to picture. It may be a kind of scene, an object or a part of one, a \
         material, a texture, a colour, written words, or something more abstract such as an action or a mood. Go by what is \
         lit, and let the dimmed surroundings only help you to recognise it. Choose the most specific description that still \
         fits nearly all of the pictures.\n\
         You may note first what is lit in each picture. End with one line of this form:\n\
         {EXPLANATION_MARKER}: a short phrase that names what is shared\n\
         If the lit areas share nothing, end with this line instead:\n\
         {EXPLANATION_MARKER}: {UNABLE}"
    )
}

/// Instructions for explaining examples of text.
pub fn text_instruction(parts: TextParts) -> String {
    let activations = if parts.activations {
        "Below each excerpt its marked tokens are listed, each with the strength of the reaction from 0 to 10.\n"
    } else {
        ""
    };
    let logits = if parts.logits {
        "At the end stand the tokens that the feature makes more likely to come next. They hint at what it is for, if the \
         excerpts leave doubts.\n"
    } else {
        ""
    };
    let thinking = if parts.chain_of_thought {
        "Think aloud first: list the marked tokens and what they share, then what stands around them, then two possible \
         descriptions and which of them fits more of the excerpts. After that, end"
    } else {
        "Do not discuss the excerpts one by one. End"
    };
    format!(
        "Below are excerpts of text on which one feature inside a language model reacts. The tokens it reacts to stand between \
         << and >>.\n\
         {activations}{logits}\
         Work out what makes the feature react: a meaning, a topic, a grammatical role, a certain word or part of a word, or \
         what comes before the marked tokens. Describe it in one short sentence that fits nearly all of the excerpts, without \
         quoting them and without a list of tokens.\n\
         {thinking} with one line of this form:\n\
         {EXPLANATION_MARKER}: the description\n\
         If the excerpts share nothing, end with this line instead:\n\
         {EXPLANATION_MARKER}: {UNABLE}\n\n\
         {EXAMPLES}"
    )
}

/// Instructions for shortening an explanation to what a detector could look for.
pub fn refine_instruction() -> String {
    format!(
        "Someone described what a visual feature reacts to:\n\
         {EXPLANATION}\n\n\
         Name what it is about in as few words as an object detector would be given, usually a noun with at most two adjectives. \
         If an object or a part of one is described, name it. If only a colour, material, texture or place is described, name \
         that. If several things are described, name the one that matters most. Leave out all words about features, \
         activation, pictures and brightness.\n\
         Answer with one line of this form:\n\
         {ANSWER_MARKER}: the name"
    )
}

/// Instructions for sorting an explanation into one of the six [labels](crate::parse::Label).
pub fn label_instruction() -> String {
    format!(
        "Someone described what a visual feature reacts to:\n\
         {EXPLANATION}\n\n\
         Which kind of concept is it?\n\
         scene: a whole place or situation\n\
         object: a thing, an animal or a person\n\
         part: a piece of a thing or of a body\n\
         material: what something is made of\n\
         texture: the pattern of a surface\n\
         color: a colour and nothing more\n\
         Choose exactly one, the closest. Answer with one line of this form:\n\
         {ANSWER_MARKER}: the word"
    )
}

/// Instructions for judging whether an explanation fits pictures.
pub fn judge_instruction() -> String {
    format!(
        "These pictures show where one feature inside a neural network reacts: lit areas are where it is on, everything dimmed \
         is where it is off. Someone described what the lit areas share:\n\
         {EXPLANATION}\n\n\
         Does that description fit the lit areas in most of the pictures? Answer with 1 if it does and with 0 if it does not, \
         on one line of this form:\n\
         {ANSWER_MARKER}: 1 or 0"
    )
}

/// Instructions for sorting what steering did to an answer into one of four [effects](crate::parse::SteeringEffect).
pub fn steering_instruction() -> String {
    format!(
        "A model was asked the same thing twice. The second time one of the features inside it was changed: {CHANGE}. What that \
         feature is about:\n\
         {EXPLANATION}\n\n\
         The answer without the change:\n\
         <<<\n{ORIGINAL}\n>>>\n\n\
         The answer with it:\n\
         <<<\n{STEERED}\n>>>\n\n\
         Compare the two and say what the change did:\n\
         none: both say the same, if in other words\n\
         mention: one of them names what the feature is about, or something of that kind, and the other does not\n\
         reasoning: both name it or neither does, but one tells something that follows from it or is a figure for it, and the \
         other does not\n\
         unrelated: the second says something else, or makes no sense, and nothing in it has to do with the feature\n\
         Choose exactly one. Answer with one line of this form:\n\
         {ANSWER_MARKER}: the word"
    )
}

/// What was done to a feature, and to which answer.
#[derive(Clone, Copy, Debug)]
pub struct Steered<'a> {
    /// What the feature is about.
    pub explanation: &'a str,
    /// What was done to it, as the rest of "it was changed: ..".
    pub change: &'a str,
    /// The answer without.
    pub original: &'a str,
    /// The answer with it.
    pub steered: &'a str,
}

/// Instructions with what was done in the places of `{explanation}`, `{change}`, `{original}` and `{steered}`, or after them where they
/// have no such place.
pub fn about_steering(said: Steered<'_>, instruction: &str) -> Vec<ChatMessage> {
    // Filled one after the other from the instructions alone: an answer may hold braces.
    let Steered { explanation, change, original, steered } = said;
    let places = [(EXPLANATION, explanation), (CHANGE, change), (ORIGINAL, original), (STEERED, steered)];
    let length: usize = places.iter().map(|(_, filling)| filling.len()).sum();
    let mut text = String::with_capacity(instruction.len() + length);
    let mut rest = instruction;
    while let Some((at, place, filling)) =
        places.iter().filter_map(|&(place, filling)| Some((rest.find(place)?, place, filling))).min()
    {
        text.push_str(&rest[..at]);
        text.push_str(filling);
        rest = &rest[at + place.len()..];
    }
    text.push_str(rest);
    for (place, filling) in places.iter().filter(|(place, _)| !instruction.contains(place)) {
        text = format!("{}\n\n{}:\n{filling}", text.trim_end(), place.trim_matches(['{', '}']));
    }
    vec![ChatMessage::user(text)]
}

/// Pictures, then the instructions.
pub fn about_pictures(pictures: impl IntoIterator<Item = Image>, instruction: &str) -> Vec<ChatMessage> {
    let message = ChatMessage { role: Role::User, content: Vec::new() };
    vec![pictures.into_iter().fold(message, ChatMessage::with_image).with_text(instruction)]
}

/// Instructions with examples of text in the place of `{examples}`, or after them if they have no such place.
pub fn about_text(examples: &str, instruction: &str) -> Vec<ChatMessage> {
    vec![ChatMessage::user(fill(instruction, EXAMPLES, examples))]
}

/// Instructions with an explanation in the place of `{explanation}`, or after them if they have no such place.
pub fn about_explanation(explanation: &str, instruction: &str) -> Vec<ChatMessage> {
    vec![ChatMessage::user(fill(instruction, EXPLANATION, explanation))]
}

/// Pictures, then the instructions with an explanation in the place of `{explanation}`, or after them.
pub fn about_pictures_and_explanation(
    pictures: impl IntoIterator<Item = Image>,
    explanation: &str,
    instruction: &str,
) -> Vec<ChatMessage> {
    about_pictures(pictures, &fill(instruction, EXPLANATION, explanation))
}

fn fill(instruction: &str, place: &str, text: &str) -> String {
    if instruction.contains(place) {
        instruction.replace(place, text)
    } else {
        format!("{}\n\n{text}", instruction.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use chat_client::Content;

    use super::*;

    #[test]
    fn answers_are_shown_as_they_are() {
        let text = |messages: Vec<ChatMessage>| match &messages[0].content[..] {
            [Content::Text(text)] => text.clone(),
            other => panic!("{other:?}"),
        };
        let said =
            |original, steered| Steered { explanation: "trains", change: "held at 20", original, steered };
        let full = text(about_steering(said("a {steered} dog", "a train"), &steering_instruction()));
        assert!(full.contains("\ntrains\n") && full.contains("<<<\na {steered} dog\n>>>"), "{full}");
        assert!(full.contains("<<<\na train\n>>>") && full.contains("was changed: held at 20."), "{full}");
        let short = text(about_steering(said("a", "b"), "Which? {explanation}\n"));
        assert_eq!(short, "Which? trains\n\nchange:\nheld at 20\n\noriginal:\na\n\nsteered:\nb");
    }

    #[test]
    fn pictures_come_first_and_counterexamples_are_told() {
        let pictures = [1, 2].map(|byte| Image::new("image/png", vec![byte]));
        let messages = about_pictures(pictures.clone(), &images_instruction(0));
        let [Content::Image(first), Content::Image(second), Content::Text(text)] = &messages[0].content[..]
        else {
            panic!("{messages:?}");
        };
        assert_eq!([first, second], [&pictures[0], &pictures[1]]);
        assert!(
            text.contains("[EXPLANATION]: Unable to produce descriptions")
                && !text.contains("counterexamples")
        );
        assert!(images_instruction(2).contains("The last 2 of the pictures"));
    }

    #[test]
    fn places_are_filled_and_what_has_none_gets_it_at_the_end() {
        let text = |messages: Vec<ChatMessage>| match &messages[0].content[..] {
            [Content::Text(text)] => text.clone(),
            other => panic!("{other:?}"),
        };
        for instruction in [refine_instruction(), label_instruction(), judge_instruction()] {
            let text = text(about_explanation("wet asphalt", &instruction));
            assert!(
                text.contains("\nwet asphalt\n") && text.contains("[ANSWER]: ") && !text.contains('{'),
                "{text}"
            );
        }
        assert_eq!(text(about_explanation("wet asphalt", "Shorten this:\n")), "Shorten this:\n\nwet asphalt");
        for parts in
            [TextParts::default(), TextParts { activations: true, logits: true, chain_of_thought: true }]
        {
            let text = text(about_text("a <<b>>", &text_instruction(parts)));
            assert!(text.ends_with("\n\na <<b>>") && text.contains("[EXPLANATION]: "), "{text}");
            assert_eq!(text.contains("from 0 to 10"), parts.activations);
            assert_eq!(text.contains("come next"), parts.logits);
            assert_eq!(text.contains("Think aloud"), parts.chain_of_thought);
        }
    }
}
