//! A judge's answers read: verdicts in a list, and how sure it was of each.
//!
//! A verdict on a single question stands behind `[ANSWER]:` as every other answer does, and is read where those are. Here is what
//! is new: a list of verdicts, and the probabilities that a server gives beside the words.

use crate::ScoringError;

/// A token of an answer, with the likeliest tokens at its place and the natural logarithms of their probabilities, as an
/// OpenAI-compatible server gives them under `logprobs`.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerToken<'a> {
    /// The token that was said.
    pub text: &'a str,
    /// The logarithm of its probability.
    pub logprob: f64,
    /// The likeliest tokens at its place, itself among them or not.
    pub top: Vec<(&'a str, f64)>,
}

/// Reads the last list of verdicts in an answer: zeros and ones (or no and yes, false and true) between square brackets, with commas or
/// spaces between them. Words around it and other brackets do not matter.
///
/// # Errors
/// When there is no such list, or the last one has not exactly `expected` verdicts: of a list of another length it cannot be told
/// which verdict is about what.
pub fn verdicts(answer: &str, expected: usize) -> Result<Vec<bool>, ScoringError> {
    let mut lists = answer.match_indices(']').filter_map(|(end, _)| {
        let start = answer[..end].rfind('[')?;
        verdict_list(&answer[start + 1..end])
    });
    let last = lists.next_back().ok_or(ScoringError::NoVerdicts)?;
    if last.len() == expected {
        Ok(last)
    } else {
        Err(ScoringError::VerdictCount { expected, found: last.len() })
    }
}

fn verdict_list(inner: &str) -> Option<Vec<bool>> {
    if inner.contains(']') {
        return None;
    }
    let words = inner.split(|c: char| c == ',' || c == ';' || c.is_whitespace());
    let verdicts: Option<Vec<bool>> = words.filter(|word| !word.is_empty()).map(verdict).collect();
    verdicts.filter(|verdicts| !verdicts.is_empty())
}

/// A word or token that is a verdict, whatever signs stand around it: `1`, `" Yes"`, `[0`.
fn verdict(word: &str) -> Option<bool> {
    let word = word.trim_matches(|c: char| !c.is_alphanumeric());
    if ["1", "yes", "true"].iter().any(|yes| word.eq_ignore_ascii_case(yes)) {
        Some(true)
    } else if ["0", "no", "false"].iter().any(|no| word.eq_ignore_ascii_case(no)) {
        Some(false)
    } else {
        None
    }
}

impl AnswerToken<'_> {
    /// The probability of yes among yes and no: the probabilities of all ways to say either among the likeliest tokens are
    /// summed, and the rest is left out. `None` where none of them is a verdict, or a logarithm is no number.
    ///
    /// Where only one of the two is among them, the other is less likely than all that are, and counts as 0.
    pub fn probability(&self) -> Option<f64> {
        let said = Some((self.text, self.logprob)).filter(|said| self.top.iter().all(|top| top.0 != said.0));
        let alternatives: Vec<(bool, f64)> = said
            .into_iter()
            .chain(self.top.iter().copied())
            .filter_map(|(text, logprob)| Some((verdict(text)?, logprob)))
            .collect();
        let largest = alternatives.iter().map(|&(_, logprob)| logprob).fold(f64::NEG_INFINITY, f64::max);
        if !largest.is_finite() || alternatives.iter().any(|(_, logprob)| logprob.is_nan()) {
            return None;
        }
        let (mut yes, mut all) = (0.0, 0.0);
        for (is_yes, logprob) in alternatives {
            // Relative to the largest, so that the sum is at least 1.
            let probability = (logprob - largest).exp();
            yes += if is_yes { probability } else { 0.0 };
            all += probability;
        }
        Some(yes / all)
    }
}

/// The probability of yes for each verdict that was read from an answer: those of the last tokens that are verdicts, as many as
/// `verdicts`, in order; of several verdicts the last before the list's bracket closes, whatever is said behind it. `None` where the tokens say something else than the verdicts, or no probability is given for one of
/// them: the server cut the list into other tokens, or gives none.
pub fn verdict_probabilities(tokens: &[AnswerToken<'_>], verdicts: &[bool]) -> Option<Vec<f64>> {
    let is_verdict = |at: usize| verdict(tokens[at].text).is_some();
    let closes =
        |at: &usize| tokens[*at].text.contains(']') && (is_verdict(*at) || *at > 0 && is_verdict(at - 1));
    let end = (0..tokens.len()).rev().find(closes).filter(|_| verdicts.len() > 1);
    let said: Vec<(bool, &AnswerToken<'_>)> = tokens[..end.map_or(tokens.len(), |end| end + 1)]
        .iter()
        .filter_map(|token| Some((verdict(token.text)?, token)))
        .collect();
    let last = &said[said.len().checked_sub(verdicts.len())?..];
    let probability = |((said, token), wanted): (&(bool, &AnswerToken<'_>), &bool)| {
        (said == wanted).then(|| token.probability()).flatten()
    };
    last.iter().zip(verdicts).map(probability).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_list_counts() {
        for (answer, want) in [
            ("[1, 0, 1]", [true, false, true]),
            ("[1,0,1]", [true, false, true]),
            ("[1 0 1]", [true, false, true]),
            ("**[ANSWER]:** [0, 0, 1].", [false, false, true]),
            (
                "Excerpt [1] fits, so does [2].\n```json\n[1, 1, 0]\n```\nI hope this helps.",
                [true, true, false],
            ),
            ("Maybe [1, 1, 1]. No: [0, 0, 0]", [false, false, false]),
            ("[Yes, no, \"1\"]", [true, false, true]),
            ("[true, false, False,]", [true, false, false]),
            ("[[0, 1, 1]]", [false, true, true]),
        ] {
            assert_eq!(verdicts(answer, 3).unwrap(), want, "{answer}");
        }
    }

    #[test]
    fn lists_of_another_length_are_refused() {
        for (answer, found) in [("[1, 0]", 2), ("[1, 0, 1, 1]", 4), ("[1, 0, 1], see excerpt [1]", 1)] {
            let error = verdicts(answer, 3).unwrap_err();
            assert!(
                matches!(error, ScoringError::VerdictCount { expected: 3, found: n } if n == found),
                "{answer}: {error}"
            );
        }
        for answer in
            ["", "1, 0, 1", "[1, 0, 1", "[1, 2, 0]", "[]", "[ANSWER]: all three", "[0.5, 1, 0]", "[10, 1, 1]"]
        {
            let error = verdicts(answer, 3).unwrap_err();
            assert!(matches!(error, ScoringError::NoVerdicts), "{answer}: {error}");
        }
    }

    fn token<'a>(text: &'a str, top: &[(&'a str, f64)]) -> AnswerToken<'a> {
        let top: Vec<(&str, f64)> = top.iter().map(|&(text, p)| (text, p.ln())).collect();
        let logprob = top.iter().find(|(other, _)| *other == text).map_or(0.1f64.ln(), |top| top.1);
        AnswerToken { text, logprob, top }
    }

    #[test]
    fn ways_to_say_the_same_are_summed() {
        let sure = token("1", &[("1", 0.5), (" yes", 0.1), ("0", 0.15), ("No", 0.05), ("maybe", 0.2)]);
        assert!((sure.probability().unwrap() - 0.75).abs() < 1e-12);
        // Said, but not among the likeliest: it counts once more.
        let unlikely = token("0", &[("1", 0.3), ("2", 0.2)]);
        assert!((unlikely.probability().unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(token("1", &[("1", 0.9)]).probability(), Some(1.0));
        assert_eq!(token("maybe", &[("maybe", 0.9), ("10", 0.1)]).probability(), None);
        let without = AnswerToken { text: "1", logprob: f64::NAN, top: Vec::new() };
        assert_eq!(without.probability(), None);
        let tiny = AnswerToken { text: "1", logprob: -9999.0, top: vec![("0", -9999.0)] };
        assert_eq!(tiny.probability(), Some(0.5));
    }

    #[test]
    fn each_verdict_has_its_probability() {
        let tokens = [
            token("Excerpt", &[("Excerpt", 0.9)]),
            token(" 1", &[(" 1", 0.9)]),
            token(" fits: [", &[]),
            token("1", &[("1", 0.8), ("0", 0.2)]),
            token(",", &[(",", 1.0)]),
            token(" 0", &[(" 0", 0.6), (" 1", 0.2)]),
            token("]", &[("]", 1.0)]),
        ];
        let probabilities = verdict_probabilities(&tokens, &[true, false]).unwrap();
        assert!((probabilities[0] - 0.8).abs() < 1e-12 && (probabilities[1] - 0.25).abs() < 1e-12);
        assert_eq!(verdict_probabilities(&tokens, &[false, false]), None);
        assert_eq!(verdict_probabilities(&tokens, &[true, true, true, false]), None);
        assert_eq!(verdict_probabilities(&[], &[true]), None);
        // What is said behind the list is none of it.
        let more = [token(".", &[(".", 1.0)]), token(" No", &[(" No", 0.9)]), token(" other", &[])];
        let tokens: Vec<AnswerToken<'_>> = tokens.into_iter().chain(more).collect();
        assert_eq!(verdict_probabilities(&tokens, &[true, false]), Some(probabilities));
    }
}
