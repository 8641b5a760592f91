//! [`Windows`]: pieces of text, for fuzzing with tokens marked.

use std::collections::{BTreeMap, HashSet};

use act_cache::{CachedTokens, HookCache};
use anyhow::Result;
use explain::{FeatureKey, Outcome, Shown, TextExample, text_example, text_window};
use explain_kit::hook_of;
use lmm_prep::Tokenizer;
use sae_types::HookPoint;
use scoring::{fuzz, samples};

use crate::judge::exam::{Content, Item, Items, Score};
use crate::judge::pick::{Picked, Picker};

/// The texts of a cache.
pub(crate) struct Windows {
    pub(crate) hooks: BTreeMap<HookPoint, HookCache<'static>>,
    pub(crate) tokens: CachedTokens,
    pub(crate) tokenizer: Tokenizer,
    /// Tokens per window.
    pub(crate) context: usize,
    /// Tokens are marked from this share of the window's largest activation on.
    pub(crate) threshold: f32,
    pub(crate) picker: Picker,
}

/// A window with what is true of it.
struct Window {
    shown: Shown,
    example: TextExample,
}

impl Windows {
    pub(crate) fn items(&self, key: &FeatureKey, score: Score) -> Result<Items, Outcome> {
        let hook = hook_of(&self.hooks, &key.hook).map_err(|error| Outcome::Failed(error.told()))?;
        let picked = self.picker.pick(key, hook)?;
        self.read(key, hook, picked, score).map_err(|error| Outcome::Failed(format!("{error:#}")))
    }

    fn read(&self, key: &FeatureKey, hook: &HookCache<'_>, picked: Picked, score: Score) -> Result<Items> {
        let Picked { positives, hard, easy, mut random } = picked;
        let feature = hook.feature(key.feature)?;
        let mut said = HashSet::new();
        let mut is_new = |example: &TextExample| said.insert(plain(example));
        let mut on = Vec::new();
        for (sample, score) in positives {
            let example = text_example(&feature, &self.tokens, &self.tokenizer, sample, self.context)?;
            if let Some(example) = example.filter(&mut is_new) {
                on.push(Window { shown: Shown::example(sample, score), example });
            }
        }
        let (mut neighbours, mut others) = (Vec::new(), Vec::new());
        for found in hard {
            let neighbour = hook.feature(found.neighbour)?;
            let example =
                text_example(&neighbour, &self.tokens, &self.tokenizer, found.sample, self.context)?;
            if let Some(example) = example.filter(&mut is_new) {
                let shown = Shown { hard: true, ..Shown::counterexample(found.sample) };
                neighbours.push(Window { shown, example });
            }
        }
        for sample in easy {
            let start = |windows: usize| random.below(windows);
            let example = text_window(&feature, &self.tokens, &self.tokenizer, sample, self.context, start)?;
            if let Some(example) = example.filter(&mut is_new) {
                others.push(Window { shown: Shown::counterexample(sample), example });
            }
        }

        let n = self.picker.negatives;
        // Of fuzzing half are the same windows with other tokens marked.
        let n_off = match score {
            Score::Detection => n,
            Score::Fuzz => n / 2,
        };
        let off = samples::negatives(neighbours.len(), others.len(), n_off, &mut random);
        let off = off
            .into_iter()
            .map(|negative| if negative.is_hard { &neighbours[negative.at] } else { &others[negative.at] });
        if score == Score::Detection {
            let item = |window: &Window| item(window.shown, plain(&window.example));
            return Ok(Items {
                positives: on.iter().map(item).collect(),
                negatives: off.map(item).collect(),
                random,
            });
        }

        let right: Vec<Vec<usize>> = on
            .iter()
            .map(|window| fuzz::right_tokens(&activations(&window.example), self.threshold))
            .collect();
        let n_wrong = fuzz::wrong_count(&right.iter().map(Vec::len).collect::<Vec<_>>());
        let positives = on.iter().zip(&right);
        let positives = positives.map(|(window, right)| item(window.shown, window.example.marked(right)));
        let positives = positives.collect();
        let mut negatives = Vec::new();
        for window in off {
            // Off everywhere, whatever the neighbour is.
            let activations = vec![0.0; window.example.pieces.len()];
            let wrong = fuzz::wrong_tokens(&activations, n_wrong, &mut random);
            negatives.push(item(window.shown, window.example.marked(&wrong)));
        }
        for at in random.choose(on.len(), on.len()) {
            if negatives.len() >= n {
                break;
            }
            let window = &on[at];
            let wrong = fuzz::wrong_tokens(&activations(&window.example), n_wrong, &mut random);
            if !wrong.is_empty() {
                let shown = Shown::counterexample(window.shown.sample);
                negatives.push(item(shown, window.example.marked(&wrong)));
            }
        }
        Ok(Items { positives, negatives, random })
    }
}

fn item(shown: Shown, excerpt: String) -> Item {
    Item { shown, content: Content::Excerpt(excerpt) }
}

fn plain(example: &TextExample) -> String {
    example.pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn activations(example: &TextExample) -> Vec<f32> {
    example.pieces.iter().map(|piece| piece.activation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_have_the_marks_that_the_instructions_name() {
        assert_eq!(explain::MARKS, fuzz::MARKS);
    }
}
