//! Detection: a judge sees a sample and the explanation, and says whether they fit. It is right if the feature is on in the sample.
//!
//! The judge never sees where a feature is on, so this scores what an explanation says about *whether* it is;
//! [`fuzz`](crate::fuzz) scores what it says about *where*. Instructions are text with a place for the explanation, so that a
//! user may bring others.

/// Stands in instructions for the explanation.
pub const EXPLANATION: &str = "{explanation}";
/// Stands in instructions for numbered excerpts of text.
pub const EXAMPLES: &str = "{examples}";

/// Instructions for judging one picture; the answer is `[ANSWER]: 1` or `[ANSWER]: 0`.
pub fn picture_instruction() -> String {
    format!(
        "Someone described what one feature inside a neural network reacts to:\n\
         {EXPLANATION}\n\n\
         Is that somewhere in this picture? Go by the description alone, take it literally, and count it also where it is small or in the \
         background. Answer with 1 if it is there and with 0 if it is not, on one line of this form:\n\
         [ANSWER]: 1 or 0"
    )
}

/// Instructions for judging `n` pictures at once; the answer is a list that [`verdicts`](crate::verdicts) reads.
pub fn pictures_instruction(n: usize) -> String {
    format!(
        "Someone described what one feature inside a neural network reacts to:\n\
         {EXPLANATION}\n\n\
         You see {n} pictures, numbered from 1 in the order in which they are shown. In which of them is it? It may be in all, in some or \
         in none. Judge each picture for itself, by the description alone.\n\
         {}",
        list_form(n, "picture", "it is there")
    )
}

/// Instructions for judging `n` excerpts of text at once; the answer is a list that [`verdicts`](crate::verdicts) reads.
pub fn text_instruction(n: usize) -> String {
    format!(
        "Someone described what one feature inside a language model reacts to in text:\n\
         {EXPLANATION}\n\n\
         Below are {n} excerpts. Which of them hold something that is described? It may be all, some or none. Judge each excerpt for \
         itself, by the description alone.\n\n\
         {EXAMPLES}\n\n\
         {}",
        list_form(n, "excerpt", "it holds what is described")
    )
}

/// How a list of verdicts is to be written. It shows no digit that a judge could copy.
pub(crate) fn list_form(n: usize, what: &str, when: &str) -> String {
    let blanks = vec!["_"; n].join(", ");
    format!(
        "End with one line of this form, each _ replaced by 1 if {when} and by 0 if not, one digit for each {what}, in order:\n\
         [ANSWER]: [{blanks}]"
    )
}

/// Excerpts of text that are judged together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextBatch {
    /// The excerpts, marked or not, in order.
    pub excerpts: Vec<String>,
}

impl TextBatch {
    /// What the judge is asked: the instructions with the explanation in the place of `{explanation}` and the numbered excerpts
    /// in that of `{examples}`, or after them where they have no such place. Nothing is filled into an explanation or an excerpt,
    /// whatever braces it holds.
    pub fn question(&self, explanation: &str, instruction: &str) -> String {
        let numbered = self.excerpts.iter().enumerate();
        let numbered: Vec<String> =
            numbered.map(|(at, excerpt)| format!("Excerpt {}: {}", at + 1, excerpt.trim())).collect();
        let numbered = numbered.join("\n\n");
        fill(instruction, &[(EXPLANATION, explanation), (EXAMPLES, &numbered)])
    }
}

/// Puts texts in the places of instructions, all at once, and those that have none behind them.
pub(crate) fn fill(instruction: &str, places: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(instruction.len());
    let mut rest = instruction;
    let next = |rest: &str| {
        places.iter().filter_map(|&(place, filling)| Some((rest.find(place)?, place, filling))).min()
    };
    while let Some((at, place, filling)) = next(rest) {
        text.push_str(&rest[..at]);
        text.push_str(filling);
        rest = &rest[at + place.len()..];
    }
    text.push_str(rest);
    for (_, filling) in places.iter().filter(|(place, _)| !instruction.contains(place)) {
        text = format!("{}\n\n{filling}", text.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_hold_everything_once() {
        let batch = TextBatch { excerpts: vec!["a {explanation} of\nred ".to_owned(), "blue".to_owned()] };
        let question = batch.question("the word {examples}", &text_instruction(2));
        assert!(question.contains("\nthe word {examples}\n"), "{question}");
        assert!(question.contains("Excerpt 1: a {explanation} of\nred\n\nExcerpt 2: blue\n\n"), "{question}");
        assert!(question.contains("2 excerpts") && question.ends_with("[ANSWER]: [_, _]"), "{question}");
    }

    #[test]
    fn instructions_without_places_get_them_at_the_end() {
        let batch = TextBatch { excerpts: vec!["red".to_owned()] };
        assert_eq!(batch.question("colours", "Which?\n"), "Which?\n\ncolours\n\nExcerpt 1: red");
        assert_eq!(batch.question("colours", "Is it {explanation}?"), "Is it colours?\n\nExcerpt 1: red");
    }

    #[test]
    fn pictures_are_counted_and_no_digit_is_suggested() {
        let text = pictures_instruction(4);
        assert!(text.contains("You see 4 pictures") && text.ends_with("[_, _, _, _]"), "{text}");
        assert_eq!(text.matches(EXPLANATION).count(), 1);
        assert!(crate::verdicts(&text, 4).is_err());
        assert!(picture_instruction().ends_with("[ANSWER]: 1 or 0"));
    }
}
