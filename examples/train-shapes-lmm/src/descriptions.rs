//! What objects can be called, and whether a description fits one.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use shapes_world::{Colour, Extent, Object, Shape, Texture};

use crate::lessons::BACKGROUND;

/// Sides this near to being large or small make it unclear whether an object is.
pub(crate) const UNCLEAR: u32 = 3;

/// Whether a description fits. Of several objects one that fits is enough, so that the best counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    No,
    /// Nothing is to be learnt or counted.
    Unclear,
    Yes,
}

/// Whether a picture tells how large its objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extents {
    Told,
    /// Of a part of a picture, enlarged.
    Lost,
}

/// Attributes of an object, each given or open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) extent: Option<Extent>,
    pub(crate) colour: Option<Colour>,
    pub(crate) texture: Option<Texture>,
    pub(crate) shape: Option<Shape>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Description {
    Objects(Attributes),
    Background,
}

impl Attributes {
    pub(crate) fn of(object: &Object) -> Self {
        Self {
            extent: object.extent(),
            colour: Some(object.colour),
            texture: Some(object.texture),
            shape: Some(object.shape),
        }
    }

    /// What both have.
    pub(crate) fn and(self, other: Self) -> Self {
        fn same<T: PartialEq + Copy>(a: Option<T>, b: Option<T>) -> Option<T> {
            if a == b { a } else { None }
        }
        Self {
            extent: same(self.extent, other.extent),
            colour: same(self.colour, other.colour),
            texture: same(self.texture, other.texture),
            shape: same(self.shape, other.shape),
        }
    }

    pub(crate) fn fits(self, object: &Object) -> bool {
        self.and(Self::of(object)) == self
    }

    /// The same for an object of which a picture may not tell everything.
    pub(crate) fn fit(self, object: &Object, extents: Extents) -> Fit {
        if !(Self { extent: None, ..self }).fits(object) {
            return Fit::No;
        }
        match self.extent {
            None => Fit::Yes,
            Some(_) if extents == Extents::Lost => Fit::Unclear,
            Some(wanted) if object.extent() == Some(wanted) => Fit::Yes,
            Some(Extent::Large) if object.size + UNCLEAR >= Extent::LARGE => Fit::Unclear,
            Some(Extent::Small) if object.size <= Extent::SMALL + UNCLEAR => Fit::Unclear,
            Some(_) => Fit::No,
        }
    }

    pub(crate) fn is_open(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn text(self) -> String {
        let words = [
            self.extent.map(Extent::name),
            self.colour.map(Colour::name),
            self.texture.map(Texture::name),
            self.shape.map(Shape::name),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// These, but for one that is drawn anew.
    pub(crate) fn with_one_anew(mut self, rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..4) {
            0 => self.extent = Extent::ALL.choose(rng).copied(),
            1 => self.texture = Texture::ALL.choose(rng).copied(),
            2 => self.shape = Shape::ALL.choose(rng).copied(),
            _ => self.colour = Colour::ALL.choose(rng).copied(),
        }
        self
    }

    /// Some of these attributes, at least one.
    pub(crate) fn part(self, rng: &mut ChaCha8Rng) -> Self {
        loop {
            let mut keep = || rng.random_bool(0.5);
            let part = Self {
                extent: self.extent.filter(|_| keep()),
                colour: self.colour.filter(|_| keep()),
                texture: self.texture.filter(|_| keep()),
                shape: self.shape.filter(|_| keep()),
            };
            if !part.is_open() {
                return part;
            }
        }
    }
}

impl Description {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Objects(attributes) => attributes.text(),
            Self::Background => BACKGROUND.to_owned(),
        }
    }

    /// What it is about: one attribute, several, the background, or nothing.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Background => BACKGROUND,
            Self::Objects(Attributes { extent, colour, texture, shape }) => {
                match (extent, colour, texture, shape) {
                    (None, None, None, None) => "nothing",
                    (Some(_), None, None, None) => "extent",
                    (None, Some(_), None, None) => "colour",
                    (None, None, Some(_), None) => "texture",
                    (None, None, None, Some(_)) => "shape",
                    _ => "several",
                }
            }
        }
    }

    /// Every description there is: the background, then each choice of attributes.
    pub(crate) fn every() -> Vec<Self> {
        fn open_or<T: Copy>(values: &[T]) -> Vec<Option<T>> {
            std::iter::once(None).chain(values.iter().copied().map(Some)).collect()
        }
        let mut all = vec![Self::Background];
        for extent in open_or(Extent::ALL) {
            for colour in open_or(Colour::ALL) {
                for texture in open_or(Texture::ALL) {
                    for shape in open_or(Shape::ALL) {
                        let attributes = Attributes { extent, colour, texture, shape };
                        all.extend((!attributes.is_open()).then_some(Self::Objects(attributes)));
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(size: u32) -> Object {
        Object {
            shape: Shape::Circle,
            colour: Colour::Red,
            texture: Texture::Striped,
            tone: Colour::Red.rgb(),
            left: 3,
            top: 3,
            size,
        }
    }

    #[test]
    fn a_size_between_two_words_fits_neither_and_contradicts_only_the_farther() {
        let large = Attributes { extent: Some(Extent::Large), ..Attributes::default() };
        let fits = |size| large.fit(&object(size), Extents::Told);
        assert_eq!([24, 31, 32, 34, 35].map(fits), [Fit::No, Fit::No, Fit::Unclear, Fit::Unclear, Fit::Yes]);
        assert_eq!(large.fit(&object(40), Extents::Lost), Fit::Unclear);
        let large_blue = Attributes { colour: Some(Colour::Blue), ..large };
        assert_eq!(large_blue.fit(&object(40), Extents::Lost), Fit::No);
        let striped = Attributes { texture: Some(Texture::Striped), ..Attributes::default() };
        assert_eq!(striped.fit(&object(32), Extents::Lost), Fit::Yes);
    }

    #[test]
    fn every_description_is_there_once() {
        let mut texts: Vec<String> = Description::every().iter().copied().map(Description::text).collect();
        assert_eq!(texts.len(), 3 * 7 * 5 * 6);
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 3 * 7 * 5 * 6);
        assert!(texts.contains(&"small red striped circle".to_owned()));
        let kinds = |kind| Description::every().iter().filter(|d| d.kind() == kind).count();
        assert_eq!([kinds("extent"), kinds("colour"), kinds("texture"), kinds("shape")], [2, 6, 4, 5]);
    }
}
