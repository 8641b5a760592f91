//! [`Exam`]: what a judge is asked about a feature, made of samples of images or of text.

use explain::{FeatureKey, Outcome, Shown, prompt};
use explain_kit::{Instruction, Part, Prepared, Question, Stage, Texts};
use scoring::detection::TextBatch;
use scoring::{Random, detection, fuzz, samples};

use crate::judge::images::Images;
use crate::judge::pick::Side;
use crate::judge::text::Windows;

/// Which of the two scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Score {
    /// Does the explanation fit the sample?
    Detection,
    /// Does it fit the part that is lit or marked?
    Fuzz,
}

/// A sample as it is shown.
pub(crate) struct Item {
    pub(crate) shown: Shown,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    Picture(chat_client::Image),
    Excerpt(String),
}

/// Samples that fit and samples that do not.
pub(crate) struct Items {
    pub(crate) positives: Vec<Item>,
    pub(crate) negatives: Vec<Item>,
    pub(crate) random: Random,
}

/// Where samples come from.
pub(crate) enum Material {
    Images(Box<Images>),
    Text(Box<Windows>),
}

/// What makes questions of features.
pub(crate) struct Exam {
    pub(crate) score: Score,
    pub(crate) material: Material,
    pub(crate) batch: Batch,
    pub(crate) instruction: Instruction,
    /// Whether the instructions are the user's own, for any number of samples.
    pub(crate) is_own: bool,
}

/// How samples are put to a judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// One by one; the answer is a verdict.
    Single,
    /// So many at once, numbered; the answer is a list.
    Of(usize),
}

impl Score {
    /// Its files.
    pub(crate) const fn stage(self) -> Stage {
        match self {
            Self::Detection => stage("detection", &["detection.html"]),
            Self::Fuzz => stage("fuzz", &["fuzz.html"]),
        }
    }

    /// Those in which explanations are other features'.
    pub(crate) const fn permuted_stage(self) -> Stage {
        match self {
            Self::Detection => stage("detection-permuted", &[]),
            Self::Fuzz => stage("fuzz-permuted", &[]),
        }
    }

    /// The program's own instructions for a question about `n` samples.
    pub(crate) fn instruction(self, side: Side, batch: Batch, n: usize) -> String {
        match (self, side, batch) {
            (Self::Detection, Side::Image, Batch::Single) => detection::picture_instruction(),
            (Self::Detection, Side::Image, Batch::Of(_)) => detection::pictures_instruction(n),
            (Self::Detection, Side::Text, _) => detection::text_instruction(n),
            (Self::Fuzz, Side::Image, Batch::Single) => fuzz::picture_instruction(),
            (Self::Fuzz, Side::Image, Batch::Of(_)) => fuzz::pictures_instruction(n),
            (Self::Fuzz, Side::Text, _) => fuzz::text_instruction(n),
        }
    }
}

const fn stage(name: &'static str, extra: &'static [&'static str]) -> Stage {
    Stage { name, suffix: None, extra, keeps_images: false, flag: "--save-dir" }
}

impl Batch {
    /// Samples per question.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Of(n) => n,
        }
    }
}

impl Exam {
    /// Everything that is asked about a feature, in random order; of one without a text the explainer had nothing to say.
    ///
    /// # Errors
    /// The outcome of a feature that nothing is asked about.
    pub(crate) fn question(&self, key: &FeatureKey, texts: &Texts) -> Result<Prepared, Outcome> {
        let explanation = texts.get(key).ok_or(Outcome::Unable)?;
        let (items, side) = match &self.material {
            Material::Images(images) => (images.items(key, self.score)?, Side::Image),
            Material::Text(windows) => (windows.items(key, self.score)?, Side::Text),
        };
        let Items { positives, negatives, mut random } = items;
        if positives.is_empty() {
            return Err(Outcome::Failed("no sample in which it is active can be shown".to_owned()));
        }
        if negatives.is_empty() {
            let problem = match self.score {
                Score::Detection => "no sample in which it is not active can be shown",
                Score::Fuzz => "it is active nearly everywhere: no other part can be shown",
            };
            return Err(Outcome::Skipped(problem.to_owned()));
        }
        let batches = samples::batches(positives, negatives, self.batch.size(), &mut random);
        let part = |batch: Vec<(bool, Item)>| {
            let own = self.is_own.then(|| self.instruction.text.clone());
            let instruction = own.unwrap_or_else(|| self.score.instruction(side, self.batch, batch.len()));
            let (mut shown, mut pictures, mut excerpts) = (Vec::new(), Vec::new(), Vec::new());
            for (_, item) in batch {
                shown.push(item.shown);
                match item.content {
                    Content::Picture(picture) => pictures.push(picture),
                    Content::Excerpt(excerpt) => excerpts.push(excerpt),
                }
            }
            let messages = match side {
                Side::Image => prompt::about_pictures_and_explanation(pictures, explanation, &instruction),
                Side::Text => {
                    let question = TextBatch { excerpts }.question(explanation, &instruction);
                    vec![chat_client::ChatMessage::user(question)]
                }
            };
            Part { messages, shown }
        };
        let parts = batches.into_iter().map(part).collect();
        Ok(Prepared::Ask(Question { key: key.clone(), parts, prompt: self.instruction.short_hash() }))
    }
}
