//! Pictures as a score shows them: whole scenes, scenes lit in part, and parts cut out; each with what it shows.

use image::{GrayImage, RgbImage, imageops};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shapes_world::{Object, Scene};

use crate::clip_folder::GRID;
use crate::clip_texts::Text;
use crate::descriptions::{Extents, Fit};
use crate::lessons::{PatchWords, probe_cells};
use crate::lit::LitSet;
use crate::lit_lessons::words;

/// Share of lit pictures that are black where they are not lit; the others are dim there.
const BLACK: f64 = 0.2;
/// Most pixels of a scene around an object that is cut out.
const MARGIN: u32 = 20;
/// At least this share of an object is in a part that shows it, and at most that in one that does not.
const LEAST_SHOWN: f64 = 0.7;
const MOST_SHOWN: f64 = 0.1;

/// How a picture shows a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Whole,
    /// Lit where a made-up feature is on, dim or black elsewhere.
    Lit,
    /// The surroundings of one object, cut out.
    Part,
}

/// A picture, and what it shows.
pub(crate) struct Picture {
    pub(crate) image: RgbImage,
    view: View,
    /// Lit objects, from left to right; none where the background is lit.
    pub(crate) objects: Vec<Object>,
    /// What its patches show, row by row.
    pub(crate) patches: Vec<PatchWords>,
}

impl Picture {
    /// The picture `index` of the data set `seed`: a pure function.
    pub(crate) fn draw(seed: u64, index: u64, view: View) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xC11F);
        rng.set_stream(index);
        if view == View::Part {
            return Self::part(&Scene::generate(seed, index), &mut rng);
        }
        let set = if view == View::Whole {
            LitSet::unmasked(seed, index)
        } else {
            LitSet::generate(seed, index, 1)
        };
        let lit = set.pictures.into_iter().next().expect("a set of one picture");
        let lit = if view == View::Lit && rng.random_bool(BLACK) { lit.dimmed(0) } else { lit };
        let scene = &lit.scene;
        let mut objects: Vec<Object> = lit.lit_objects().cloned().collect();
        objects.sort_by_key(|object| (2 * object.left + object.size, 2 * object.top + object.size));
        let (labels, light) = (scene.label_map(), lit.light());
        let size = (scene.width as usize, scene.height as usize);
        let patches = probe_cells((GRID, GRID), size, |pixels| words(scene, labels.as_raw(), &light, pixels));
        Self { image: lit.render(), view, objects, patches }
    }

    /// One object of a scene with some of what is around it.
    fn part(scene: &Scene, rng: &mut ChaCha8Rng) -> Self {
        let labels = scene.label_map();
        let object = scene.objects.choose(rng).expect("a scene has an object");
        let shown = |of: usize, cut: &GrayImage| {
            let count = |image: &GrayImage| {
                image.as_raw().iter().filter(|&&label| usize::from(label) == of + 1).count()
            };
            count(cut) as f64 / count(&labels) as f64
        };
        let mut widest = MARGIN;
        loop {
            let mut margin = || rng.random_range(0..=widest);
            let (left, top) = (object.left.saturating_sub(margin()), object.top.saturating_sub(margin()));
            let right = (object.left + object.size + margin()).min(scene.width);
            let bottom = (object.top + object.size + margin()).min(scene.height);
            let (width, height) = (right - left, bottom - top);
            let cut = imageops::crop_imm(&labels, left, top, width, height).to_image();
            let shares: Vec<f64> = (0..scene.objects.len()).map(|of| shown(of, &cut)).collect();
            if shares.iter().any(|share| (MOST_SHOWN..LEAST_SHOWN).contains(share)) {
                // Objects are apart, so that no margin always does.
                widest = widest.saturating_sub(1);
                continue;
            }
            let kept = shares.iter().zip(&scene.objects).filter(|&(&share, _)| share >= LEAST_SHOWN);
            let mut objects: Vec<Object> = kept.map(|(_, object)| object.clone()).collect();
            objects.sort_by_key(|object| (2 * object.left + object.size, 2 * object.top + object.size));
            let light = vec![255; (width * height) as usize];
            let patches = probe_cells((GRID, GRID), (width as usize, height as usize), |pixels| {
                let [colour, shape, texture, _] = words(scene, cut.as_raw(), &light, pixels);
                [colour, shape, texture, None]
            });
            let image = imageops::crop_imm(&scene.render(), left, top, width, height).to_image();
            return Self { image, view: View::Part, objects, patches };
        }
    }

    /// Whether a text fits: all that it names is among what is lit.
    pub(crate) fn fit(&self, text: &Text) -> Fit {
        if text.named.is_empty() {
            return match self.view {
                // Each whole scene has a background, and is about its objects.
                View::Whole => Fit::Unclear,
                _ if self.objects.is_empty() => Fit::Yes,
                _ => Fit::No,
            };
        }
        let extents = if self.view == View::Part { Extents::Lost } else { Extents::Told };
        let best = text.named.iter().map(|named| {
            let fits = self.objects.iter().map(|object| named.fit(object, extents));
            fits.max().unwrap_or(Fit::No)
        });
        best.min().unwrap_or(Fit::No)
    }
}

#[cfg(test)]
mod tests {
    use shapes_world::Colour;

    use super::*;
    use crate::descriptions::{Attributes, Description};

    fn red() -> Text {
        Text::of(Description::Objects(Attributes { colour: Some(Colour::Red), ..Attributes::default() }))
    }

    #[test]
    fn a_part_shows_its_object_whole_and_others_clearly_or_not() {
        for index in 0..60 {
            let picture = Picture::draw(11, index, View::Part);
            let scene = Scene::generate(11, index);
            assert!(!picture.objects.is_empty() && picture.objects.len() <= scene.objects.len());
            let (width, height) = picture.image.dimensions();
            assert!(picture.objects.iter().any(|object| object.size <= width && object.size <= height));
            let named: Vec<_> = picture.patches.iter().filter_map(|words| words[0]).collect();
            let colours: Vec<_> = picture.objects.iter().map(|object| object.colour.name()).collect();
            assert!(colours.iter().any(|colour| named.contains(colour)), "picture {index}: {named:?}");
        }
    }

    #[test]
    fn texts_fit_what_is_lit() {
        let background = Text::of(Description::Background);
        let (mut fits, mut dim_red) = (0, 0);
        for index in 0..200 {
            let whole = Picture::draw(12, index, View::Whole);
            assert_eq!(whole.fit(&background), Fit::Unclear);
            let has_red =
                Scene::generate(12, index).objects.iter().any(|object| object.colour == Colour::Red);
            assert_eq!(whole.fit(&red()), if has_red { Fit::Yes } else { Fit::No });
            let caption = Text::caption(&whole.objects);
            assert_eq!(whole.fit(&caption), Fit::Yes, "{}", caption.words);

            let lit = Picture::draw(12, index, View::Lit);
            fits += usize::from(lit.fit(&background) == Fit::Yes);
            assert_eq!(lit.fit(&background) == Fit::Yes, lit.objects.is_empty());
            let lit_red = lit.objects.iter().any(|object| object.colour == Colour::Red);
            assert_eq!(lit.fit(&red()) == Fit::Yes, lit_red);
            dim_red += usize::from(lit.fit(&red()) == Fit::No);
        }
        assert!(fits > 5 && dim_red > 50, "{fits} {dim_red}");
    }
}
