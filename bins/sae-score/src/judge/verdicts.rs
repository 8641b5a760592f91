//! [`Verdicts`]: the questions about a feature, asked side by side, and the verdicts read from their answers.

use chat_client::{ChatError, ChatReply, FinishReason};
use explain::parse::{self, Answer};
use explain::{Asked, Outcome, Record, Shown};
use explain_kit::{Ask, Logprobs, Part, Question, Server, Told};
use futures_util::future::try_join_all;
use scoring::{AnswerToken, JudgeScore, Judged, verdict_probabilities};

/// Asks about all samples of a feature; what is said of each stands with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdicts;

/// A verdict and its probability.
type Verdict = (bool, Option<f64>);

impl Ask for Verdicts {
    async fn ask(&self, server: &Server, question: Question) -> Result<Record, ChatError> {
        let Question { key, parts, prompt } = question;
        let answers = parts.into_iter().map(|Part { messages, shown }| {
            let (prompt, n) = (prompt.clone(), shown.len());
            async move {
                let read = move |reply: &ChatReply| read(reply, n);
                let answer = server.ask_for(messages, prompt, Logprobs::Ask, read).await?;
                Ok::<_, ChatError>((shown, answer))
            }
        });
        let (mut all, mut asked) = (Vec::new(), Asked::default());
        let (mut refused, mut failed) = (None, None);
        for (mut shown, (told, one)) in try_join_all(answers).await? {
            asked.add(one);
            match told {
                Told::Read(verdicts) => {
                    for (shown, (verdict, probability)) in shown.iter_mut().zip(verdicts) {
                        (shown.verdict, shown.probability) = (Some(verdict), probability);
                    }
                }
                Told::Unparsed => {}
                Told::Refused(reason) => drop(refused.get_or_insert(reason)),
                Told::Failed(reason) => drop(failed.get_or_insert(reason)),
            }
            all.extend(shown);
        }
        let counts = JudgeScore::of(all.iter().map(judged)).confusion;
        let outcome = match (counts.n(), failed, refused) {
            // What came by chance of a server's troubles is no choice of samples: the feature is to be asked about again.
            (_, Some(reason), _) | (0, None, Some(reason)) => Outcome::Failed(reason),
            (0, None, None) => Outcome::Unparsed,
            (n, None, refused) => {
                if let Some(reason) = refused {
                    tracing::warn!("{key}: some samples have no verdict: {reason}");
                }
                Outcome::Answered(format!("{} of {n} right", counts.true_positive + counts.true_negative))
            }
        };
        Ok(Record { shown: all, asked: Some(asked), ..Record::of(&key, outcome) })
    }
}

/// A sample with what is so and what was said.
pub(crate) fn judged(shown: &Shown) -> Judged {
    Judged { truth: !shown.not, verdict: shown.verdict, probability: shown.probability }
}

/// The verdicts of an answer about `n` samples; `None` if it cannot be read, or says something else than one about each.
fn read(reply: &ChatReply, n: usize) -> Option<Vec<Verdict>> {
    let is_whole = reply.finish_reason != FinishReason::Length;
    let single = || match parse::verdict(&reply.text, is_whole) {
        Answer::Given(verdict) => Some(vec![verdict == "1"]),
        Answer::Unable | Answer::Unparsed => None,
    };
    let verdicts = match n {
        1 => single().or_else(|| scoring::verdicts(&reply.text, 1).ok())?,
        _ => scoring::verdicts(&reply.text, n).ok()?,
    };
    let tokens: Vec<AnswerToken<'_>> = reply
        .logprobs
        .iter()
        .map(|token| AnswerToken {
            text: &token.token,
            logprob: token.logprob,
            top: token.top_logprobs.iter().map(|top| (top.token.as_str(), top.logprob)).collect(),
        })
        .collect();
    let probabilities = verdict_probabilities(&tokens, &verdicts);
    let probabilities =
        probabilities.map_or_else(|| vec![None; n], |all| all.into_iter().map(Some).collect());
    Some(verdicts.into_iter().zip(probabilities).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chat_client::{TokenLogprob, Usage};

    use super::*;

    fn reply(text: &str, finish_reason: FinishReason, logprobs: Vec<TokenLogprob>) -> ChatReply {
        ChatReply {
            text: text.to_owned(),
            reasoning: None,
            finish_reason,
            usage: Usage::default(),
            logprobs,
            model: "m".to_owned(),
            attempts: 1,
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn single_verdicts_and_lists() {
        let whole = |text: &str, n| {
            let read = read(&reply(text, FinishReason::Stop, Vec::new()), n)?;
            Some(read.into_iter().map(|(verdict, _)| verdict).collect::<Vec<_>>())
        };
        assert_eq!(whole("1", 1), Some(vec![true]));
        assert_eq!(whole("[ANSWER]: 0", 1), Some(vec![false]));
        assert_eq!(whole("[ANSWER]: [1]", 1), Some(vec![true]));
        assert_eq!(whole("It is [yes]", 1), Some(vec![true]));
        assert_eq!(whole("[ANSWER]: [1, 0, 0]", 3), Some(vec![true, false, false]));
        for (text, n) in [("It fits", 1), ("1", 2), ("[1, 0]", 3), ("[1, 0]", 1)] {
            assert_eq!(whole(text, n), None, "{text}");
        }
        assert_eq!(read(&reply("1", FinishReason::Length, Vec::new()), 1), None);
    }

    #[test]
    fn probabilities_stand_beside_verdicts() {
        let token = |token: &str, p: f64, top: &[(&str, f64)]| TokenLogprob {
            token: token.to_owned(),
            logprob: p.ln(),
            top_logprobs: top
                .iter()
                .map(|&(token, p)| TokenLogprob {
                    token: token.to_owned(),
                    logprob: p.ln(),
                    top_logprobs: Vec::new(),
                })
                .collect(),
        };
        let tokens = vec![token("0", 0.6, &[("0", 0.6), ("1", 0.2), ("x", 0.1)])];
        let verdicts = read(&reply("0", FinishReason::Stop, tokens), 1).unwrap();
        assert!(!verdicts[0].0 && (verdicts[0].1.unwrap() - 0.25).abs() < 1e-12, "{verdicts:?}");
        let none = vec![token("0", 0.6, &[])];
        assert_eq!(read(&reply("[1]", FinishReason::Stop, none), 1), Some(vec![(true, None)]));
    }
}
