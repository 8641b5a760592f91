//! What each patch shows, scored against the word embeddings of the language model.

use std::collections::BTreeMap;

use lmm_prep::Inputs;
use shapes_world::{Colour, Extent, Shape, Texture};
use tch::{Kind, Tensor};

use crate::lessons::{BACKGROUND, DIM, Lesson, PatchWords};

/// Sharpness of the classifier's cosine-like logits.
const TEMPERATURE: f64 = 4.0;

/// The words of each family that a lesson's patches may show: the tower learns to see, and to say it in the language
/// model's own vocabulary.
pub(crate) struct PatchWordScores {
    families: Vec<Family>,
    /// How much a patch that shows no object counts beside one that does.
    background_weight: f64,
}

struct Family {
    /// Token ids of the words.
    ids: Tensor,
    classes: BTreeMap<&'static str, i64>,
    /// Words from here on are those of objects.
    first_object: i64,
}

impl PatchWordScores {
    /// Over the words of a tokenizer; a word's place is its id. Words it does not have cannot be shown.
    pub(crate) fn new(vocabulary: &[String], background_weight: f64) -> Self {
        let family = |names: Vec<&'static str>| {
            let id = |word: &str| vocabulary.iter().position(|known| known == word).map(|id| id as i64);
            let no_object: Vec<_> = [BACKGROUND, DIM].into_iter().filter(|word| id(word).is_some()).collect();
            let words: Vec<_> = no_object.iter().copied().chain(names).collect();
            let ids: Vec<i64> = words.iter().filter_map(|word| id(word)).collect();
            Family {
                ids: Tensor::from_slice(&ids),
                classes: words.into_iter().zip(0..).collect(),
                first_object: no_object.len() as i64,
            }
        };
        Self {
            background_weight,
            families: vec![
                family(Colour::ALL.iter().map(|c| c.name()).collect()),
                family(Shape::ALL.iter().map(|s| s.name()).collect()),
                family(Texture::ALL.iter().map(|t| t.name()).collect()),
                family(Extent::ALL.iter().map(|e| e.name()).collect()),
            ],
        }
    }

    /// The loss, and the share of the words of object patches that are right.
    /// `embeddings [prompts, tokens, hidden]` are the prompts' as the language model gets them, `words [vocabulary, hidden]`
    /// its word embeddings.
    pub(crate) fn loss(&self, lesson: &Lesson, embeddings: &Tensor, words: &Tensor) -> (Tensor, f64) {
        let tokens = embeddings.size()[1];
        let places = image_places(&lesson.prompts, tokens);
        let features = embeddings.flatten(0, 1).index_select(0, &places).to_kind(Kind::Float);
        let features = &features / (features.square().mean_dim(-1, true, Kind::Float) + 1e-6).sqrt();
        let features = features * (TEMPERATURE / (embeddings.size()[2] as f64).sqrt());
        self.loss_of(&features, &lesson.patches.iter().flatten(), &words.to_kind(Kind::Float))
    }

    /// The same for patches `features [patches, hidden]` that show `shown`, where the score of a word is the dot product with its
    /// row of `words [vocabulary, hidden]`.
    pub(crate) fn loss_of<'a>(
        &self,
        features: &Tensor,
        shown: &(impl Iterator<Item = &'a PatchWords> + Clone),
        words: &Tensor,
    ) -> (Tensor, f64) {
        let mut loss = Tensor::from(0f32);
        let (mut right, mut words_of_objects) = (0.0, 0.0);
        for (index, family) in self.families.iter().enumerate() {
            let shown: Vec<i64> =
                shown.clone().map(|words| words[index].map_or(-1, |word| family.classes[word])).collect();
            let shown = Tensor::from_slice(&shown);
            let patches = shown.ge(0).nonzero().squeeze_dim(1);
            if patches.numel() == 0 {
                continue;
            }
            let classes = shown.index_select(0, &patches);
            let scores = features.index_select(0, &patches).matmul(&words.index_select(0, &family.ids).tr());
            let is_object = classes.ge(family.first_object);
            let weight =
                is_object.to_kind(Kind::Float) * (1.0 - self.background_weight) + self.background_weight;
            let each =
                -scores.log_softmax(-1, Kind::Float).gather(1, &classes.unsqueeze(1), false).squeeze_dim(1);
            loss += (each * &weight).sum(Kind::Float) / weight.sum(Kind::Float);
            let hits = scores.argmax(-1, false).eq_tensor(&classes);
            right += hits.logical_and(&is_object).sum(Kind::Float).double_value(&[]);
            words_of_objects += is_object.sum(Kind::Float).double_value(&[]);
        }
        (loss, right / words_of_objects)
    }
}

/// Where the image tokens of all prompts lie in `[prompts * tokens]`, in the order of a lesson's patches.
fn image_places(prompts: &[Inputs], tokens: i64) -> Tensor {
    let places: Vec<i64> = prompts
        .iter()
        .zip(0i64..)
        .flat_map(|(prompt, row)| {
            let spans = prompt.layout.images.iter();
            spans.flat_map(move |span| span.positions().map(move |place| row * tokens + place as i64))
        })
        .collect();
    Tensor::from_slice(&places)
}
