//! Texts as explanations are worded: single words, descriptions of an object, captions, the background.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use shapes_world::{Colour, Extent, Object, Shape, Texture};

use crate::clip_pictures::Picture;
use crate::descriptions::{Attributes, Description};

/// Share of descriptions that begin with an article, and of those with a word that the model does not know.
const WITH_ARTICLE: f64 = 0.2;
const WITH_UNKNOWN: f64 = 0.05;
const UNKNOWN: &str = "thing";
/// Share of pictures whose caption is among the texts of a lesson.
const CAPTIONS: f64 = 0.25;

/// A text, and the objects it names.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) words: String,
    /// None for the background.
    pub(crate) named: Vec<Attributes>,
}

impl Text {
    pub(crate) fn of(description: Description) -> Self {
        let named = match description {
            Description::Objects(attributes) => vec![attributes],
            Description::Background => Vec::new(),
        };
        Self { words: description.text(), named }
    }

    /// Objects in this order: `a red striped circle and an orange solid ring`.
    pub(crate) fn caption(objects: &[Object]) -> Self {
        let named: Vec<Attributes> =
            objects.iter().map(|object| Attributes { extent: None, ..Attributes::of(object) }).collect();
        let words: Vec<String> = named.iter().map(|named| with_article(&named.text())).collect();
        Self { words: words.join(" and "), named }
    }

    /// The same description in other words, mostly the plain ones.
    fn reworded(mut self, rng: &mut ChaCha8Rng) -> Self {
        if rng.random_bool(WITH_UNKNOWN) {
            let mut words: Vec<&str> = self.words.split(' ').collect();
            words.insert(rng.random_range(0..=words.len()), UNKNOWN);
            self.words = words.join(" ");
        }
        if rng.random_bool(WITH_ARTICLE) {
            self.words =
                if rng.random_bool(0.3) { format!("the {}", self.words) } else { with_article(&self.words) };
        }
        self
    }
}

fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

/// Each word that describes something by itself, and the background.
pub(crate) fn single_words() -> Vec<Description> {
    let open = Attributes::default();
    let colours = Colour::ALL.iter().map(|&colour| Attributes { colour: Some(colour), ..open });
    let shapes = Shape::ALL.iter().map(|&shape| Attributes { shape: Some(shape), ..open });
    let textures = Texture::ALL.iter().map(|&texture| Attributes { texture: Some(texture), ..open });
    let extents = Extent::ALL.iter().map(|&extent| Attributes { extent: Some(extent), ..open });
    let words = colours.chain(shapes).chain(textures).chain(extents).map(Description::Objects);
    words.chain([Description::Background]).collect()
}

/// The texts that a batch of pictures is held against, each once: all single words, of each picture a description, a part of it
/// and a near miss; and some captions, which come last, with their number.
pub(crate) fn texts_of(pictures: &[Picture], rng: &mut ChaCha8Rng) -> (Vec<Text>, usize) {
    let mut descriptions: Vec<Text> = single_words().into_iter().map(Text::of).collect();
    let mut captions = Vec::new();
    for picture in pictures {
        let Some(object) = picture.objects.choose(rng) else { continue };
        let whole = Attributes::of(object);
        let part = whole.part(rng);
        let near = part.with_one_anew(rng);
        let drawn = [whole, part, near].map(|attributes| Text::of(Description::Objects(attributes)));
        descriptions.extend(drawn.map(|text| text.reworded(rng)));
        if rng.random_bool(CAPTIONS) {
            let mut objects = picture.objects.clone();
            // An explanation need not name them from left to right.
            if rng.random_bool(0.3) {
                objects.shuffle(rng);
            }
            captions.push(Text::caption(&objects));
        }
    }
    let once = |texts: &mut Vec<Text>| {
        let mut seen = std::collections::BTreeSet::new();
        texts.retain(|text| seen.insert(text.words.clone()));
    };
    once(&mut descriptions);
    captions.retain(|caption| descriptions.iter().all(|text| text.words != caption.words));
    once(&mut captions);
    let count = captions.len();
    descriptions.extend(captions);
    (descriptions, count)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::clip_pictures::View;
    use crate::descriptions::Fit;

    #[test]
    fn every_picture_has_texts_that_fit_and_texts_that_do_not() {
        let pictures: Vec<Picture> = (0..30)
            .map(|index| Picture::draw(21, index, [View::Whole, View::Lit, View::Part][index as usize % 3]))
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (texts, captions) = texts_of(&pictures, &mut rng);
        assert!(captions > 2 && captions < texts.len() - 50, "{captions} of {}", texts.len());
        for (index, picture) in pictures.iter().enumerate() {
            let count = |fit| texts.iter().filter(|text| picture.fit(text) == fit).count();
            assert!(count(Fit::Yes) >= 1 && count(Fit::No) >= 20, "picture {index}");
        }
        let mut words: Vec<&str> = texts.iter().map(|text| text.words.as_str()).collect();
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn words_say_what_is_named() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let orange = Attributes {
            extent: Some(Extent::Large),
            colour: Some(Colour::Orange),
            texture: None,
            shape: Some(Shape::Ring),
        };
        let text = Text::of(Description::Objects(orange));
        assert_eq!(text.words, "large orange ring");
        assert_eq!(with_article("orange ring"), "an orange ring");
        for _ in 0..100 {
            let reworded = text.clone().reworded(&mut rng);
            let plain: Vec<&str> = reworded
                .words
                .split(' ')
                .filter(|word| !["a", "an", "the", UNKNOWN].contains(word))
                .collect();
            assert_eq!(plain.join(" "), text.words);
        }
    }
}
