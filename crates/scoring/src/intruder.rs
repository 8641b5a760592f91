//! Intruder detection: a judge sees samples of one feature and one sample without it, and says which that is.
//!
//! No explanation is involved, so this scores the feature, not what was said of it: whether what its samples share can be seen at
//! all. Guessing is right once in as many times as there are samples.

use crate::{Random, ScoringError};

/// Samples of one feature with one that is none, in the order in which they are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineup<T> {
    /// The samples.
    pub samples: Vec<T>,
    /// The place of the intruder, from 0.
    pub intruder: usize,
}

impl<T> Lineup<T> {
    /// Puts an intruder among samples of the feature, at a random place.
    pub fn new(mut samples: Vec<T>, intruder: T, random: &mut Random) -> Self {
        let place = random.below(samples.len() + 1);
        samples.insert(place, intruder);
        Self { samples, intruder: place }
    }

    /// How often guessing is right.
    pub fn chance(&self) -> f64 {
        1.0 / self.samples.len() as f64
    }
}

/// Instructions for finding the intruder among `n` pictures; the answer is one that [`intruder_answer`] reads.
pub fn pictures_instruction(n: usize) -> String {
    format!(
        "You see {n} pictures, numbered from 1 in the order in which they are shown. In each of them one part is lit at its full \
         brightness and everything else is dimmed. The lit parts of all but one share something. Work out what that is, and say which \
         picture does not belong to the others.\n\
         {}",
        form()
    )
}

/// Instructions for finding the intruder among `n` excerpts of text, which stand in the place of `{examples}`.
pub fn text_instruction(n: usize) -> String {
    let [open, close] = crate::fuzz::MARKS;
    format!(
        "Below are {n} excerpts of text. In each of them some tokens stand between {open} and {close}. The marked tokens of all but one \
         excerpt share something, or stand in places that do. Work out what that is, and say which excerpt does not belong to the \
         others.\n\n\
         {}\n\n\
         {}",
        crate::detection::EXAMPLES,
        form()
    )
}

fn form() -> &'static str {
    "End with one line of this form:\n[ANSWER]: its number"
}

/// Reads which of `n` samples an answer names, from 0: the only number behind the last `[ANSWER]`, or the whole answer, if it is
/// a number.
///
/// # Errors
/// When there is none, there are several, or it is none of 1 to `n`.
pub fn intruder_answer(answer: &str, n: usize) -> Result<usize, ScoringError> {
    const MARKER: &str = "[ANSWER]";
    let no_intruder = || ScoringError::NoIntruder { examples: n };
    let upper = answer.to_ascii_uppercase();
    let line = match upper.rfind(MARKER) {
        Some(at) => {
            let mut lines = answer[at + MARKER.len()..].lines();
            lines.find(|line| line.chars().any(char::is_alphanumeric)).unwrap_or("")
        }
        None if answer.chars().any(char::is_alphabetic) => "",
        None => answer,
    };
    let numbers = line.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let numbers: Vec<&str> = numbers.collect();
    let [number] = numbers.as_slice() else { return Err(no_intruder()) };
    let number: usize = number.parse().map_err(|_| no_intruder())?;
    if (1..=n).contains(&number) { Ok(number - 1) } else { Err(no_intruder()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_intruder_may_stand_anywhere() {
        let mut random = Random::new(1, 0);
        let mut counts = [0; 4];
        for _ in 0..4000 {
            let lineup = Lineup::new(vec!["a", "b", "c"], "x", &mut random);
            assert_eq!((lineup.samples[lineup.intruder], lineup.samples.len()), ("x", 4));
            assert_eq!(lineup.chance(), 0.25);
            counts[lineup.intruder] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn one_number_is_an_answer() {
        for (answer, want) in [
            ("[ANSWER]: 3", 2),
            ("3", 2),
            (" **1**. ", 0),
            ("1, 2 and 4 show wheels.\n[answer]: excerpt 3.\nIt shows none.", 2),
            ("[ANSWER]:\n\n4", 3),
        ] {
            assert_eq!(intruder_answer(answer, 4).unwrap(), want, "{answer}");
        }
        for answer in [
            "",
            "[ANSWER]: 5",
            "[ANSWER]: 0",
            "[ANSWER]: 1 or 2",
            "It is 3",
            "[ANSWER]: none",
            "99999999999999999999999",
        ] {
            assert!(intruder_answer(answer, 4).is_err(), "{answer}");
        }
    }

    #[test]
    fn instructions_say_how_many() {
        assert!(pictures_instruction(5).starts_with("You see 5 pictures"));
        assert!(text_instruction(5).contains("5 excerpts") && text_instruction(5).contains("{examples}"));
    }
}
