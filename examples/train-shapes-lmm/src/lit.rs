//! Sets of masked scenes as an explainer meets them, and what their lit parts share.
//!
//! Masks are cut from made-up activations on the 8 x 8 base grid of `shapes-lmm-s`, ragged as real ones are: patches drop
//! out, neighbours and patches elsewhere join in, objects differ in strength. The pictures go through the same
//! [`explain::Masking`] as those of real features.

use explain::{Cut, Edges, HeatMap, Masking};
use image::RgbImage;
use rand::Rng;
use rand::SeedableRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use shapes_world::{Colour, Extent, Object, Scene, Shape, Texture};

use crate::descriptions::{Attributes, Description, UNCLEAR};
use crate::lessons::BACKGROUND;

/// What a reader is asked, and what the answer begins with.
pub(crate) const REQUEST: &str = "what do the lit parts share ?";
const MARKER: &str = "[explanation]:";
const UNABLE: &str = "unable to produce descriptions";

/// Words of requests and answers that no scene needs.
pub(crate) const WORDS: [&str; 15] = [
    MARKER,
    "unable",
    "to",
    "produce",
    "descriptions",
    "dim",
    "large",
    "small",
    "do",
    "lit",
    "parts",
    "share",
    "show",
    "0",
    "1",
];

/// Rows and columns of the activations.
const GRID: usize = 8;
/// At least this share of an object that is meant is lit, and at most that of one that is not.
const LEAST_LIT: f64 = 0.3;
const MOST_SPILT: f64 = 0.2;

/// Share of the sets learnt from in which one picture need not show all that the others do.
const ODD_SHARE: f64 = 0.25;

/// One picture: a scene, where it is lit, and the objects that are.
pub(crate) struct LitPicture {
    pub(crate) scene: Scene,
    heat: HeatMap,
    masking: Masking,
    /// Indices into the scene's objects; none when the background is lit.
    lit: Vec<usize>,
}

/// Several pictures of one made-up feature.
pub(crate) struct LitSet {
    pub(crate) pictures: Vec<LitPicture>,
}

/// What some pictures share, where that is clear.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) pictures: &'a [LitPicture],
    description: Description,
}

impl LitSet {
    /// The set `index` of the data set `seed`, with `n` pictures: a pure function.
    pub(crate) fn generate(seed: u64, index: u64, n: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        loop {
            if let Some(set) = Self::draw(&mut rng, seed, n, None) {
                return set;
            }
        }
    }

    /// The same for learning: in some sets one picture of many shares less than the others do, which is what readers overlook.
    pub(crate) fn lesson(seed: u64, index: u64, n: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let odd = rng.random_bool(ODD_SHARE).then(|| rng.random_range(0..n));
        loop {
            if let Some(set) = Self::draw(&mut rng, seed, n, odd) {
                return set;
            }
        }
    }

    /// A set of one picture that is lit all over.
    pub(crate) fn unmasked(seed: u64, index: u64) -> Self {
        let scene = Scene::generate(seed, index);
        let heat = HeatMap::new(1, 1, vec![1.0]).expect("one value for one patch");
        let lit = (0..scene.objects.len()).collect();
        Self { pictures: vec![LitPicture { scene, heat, masking: Masking::default(), lit }] }
    }

    /// Draws a set whose picture `odd` need not show all that the others do; `None` where what they share is unclear.
    fn draw(rng: &mut ChaCha8Rng, seed: u64, n: usize, odd: Option<usize>) -> Option<Self> {
        let wanted = wanted(rng);
        let cut = if rng.random_bool(0.7) { Cut::HalfMaximum } else { Cut::Positive };
        let edges = if rng.random_bool(0.6) { Edges::Bilinear } else { Edges::Nearest };
        let dim = if rng.random_bool(0.6) { 31 } else { rng.random_range(0..64) };
        let masking = Masking { cut, edges, dim };
        let mut pictures = Vec::with_capacity(n);
        let less = odd.map_or(wanted, |_| wanted.less(rng));
        while pictures.len() < n {
            let scene = Scene::generate(seed, rng.random());
            let wanted = if odd == Some(pictures.len()) { less } else { wanted };
            pictures.extend(LitPicture::draw(rng, &scene, wanted, masking));
        }
        let shared = Shared::of(&pictures)?.description;
        let nothing = Description::Objects(Attributes::default());
        (wanted != Wanted::Nothing || shared == nothing).then_some(Self { pictures })
    }

    /// What all the pictures of a generated set share.
    ///
    /// # Panics
    ///
    /// Where that is unclear, as it may be of an unmasked set.
    pub(crate) fn all(&self) -> Shared<'_> {
        Shared::of(&self.pictures).expect("sets are drawn until that is clear")
    }

    /// What its first 1, 2, … pictures share, where that is clear.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = Shared<'_>> {
        (1..=self.pictures.len()).filter_map(|n| Shared::of(&self.pictures[..n]))
    }
}

impl<'a> Shared<'a> {
    fn of(pictures: &'a [LitPicture]) -> Option<Self> {
        if pictures.iter().all(|picture| picture.lit.is_empty()) {
            return Some(Self { pictures, description: Description::Background });
        }
        let objects: Vec<&Object> = pictures.iter().flat_map(LitPicture::lit_objects).collect();
        let shared = objects.iter().map(|object| Attributes::of(object)).reduce(Attributes::and)?;
        let unclear = |extent: Extent, near: &dyn Fn(u32) -> bool| {
            shared.extent != Some(extent) && objects.iter().all(|object| near(object.size))
        };
        let is_unclear = unclear(Extent::Large, &|size| size + UNCLEAR >= Extent::LARGE)
            || unclear(Extent::Small, &|size| size <= Extent::SMALL + UNCLEAR);
        (!is_unclear).then_some(Self { pictures, description: Description::Objects(shared) })
    }

    /// The only right answer to [`REQUEST`].
    pub(crate) fn answer(&self) -> String {
        let text = match self.description {
            Description::Background => BACKGROUND.to_owned(),
            Description::Objects(shared) if shared.is_open() => UNABLE.to_owned(),
            Description::Objects(shared) => shared.text(),
        };
        format!("{MARKER} {text}")
    }

    /// What sort of feature it stands for.
    pub(crate) fn kind(&self) -> &'static str {
        self.description.kind()
    }

    /// Questions whether a description fits, up to `each` with the answer `1`, where it fits all that is lit, and as many
    /// with `0`, where it fits what is lit in two pictures of five at most.
    pub(crate) fn judgements(&self, rng: &mut ChaCha8Rng, each: usize) -> Vec<(String, &'static str)> {
        let question = |description: Description| format!("do the lit parts show {} ?", description.text());
        let mut asked = Vec::new();
        for _ in 0..each {
            match self.description {
                Description::Objects(shared) if !shared.is_open() => {
                    asked.push((question(Description::Objects(shared.part(rng))), "1"));
                }
                Description::Objects(_) => {}
                Description::Background => asked.push((question(self.description), "1")),
            }
            // A near miss, or anything.
            let near = match self.description {
                Description::Objects(shared) if !shared.is_open() && rng.random_bool(0.6) => shared.part(rng),
                _ => Attributes::default(),
            };
            let wrong = near.with_one_anew(rng);
            let wrong =
                if rng.random_bool(0.1) { Description::Background } else { Description::Objects(wrong) };
            let fitting = self.pictures.iter().filter(|picture| picture.fits(wrong)).count();
            if 5 * fitting <= 2 * self.pictures.len() {
                asked.push((question(wrong), "0"));
            }
        }
        asked
    }
}

/// What a made-up feature is about.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Objects(Attributes),
    Background,
    Nothing,
}

impl Wanted {
    /// Some of it, or nothing; a background is lit in all pictures or in none.
    fn less(self, rng: &mut ChaCha8Rng) -> Self {
        match self {
            Self::Objects(attributes) if rng.random_bool(0.5) => Self::Objects(attributes.part(rng)),
            Self::Objects(_) => Self::Nothing,
            other => other,
        }
    }
}

fn wanted(rng: &mut ChaCha8Rng) -> Wanted {
    let colour = Colour::ALL.choose(rng).copied();
    let shape = Shape::ALL.choose(rng).copied();
    let texture = Texture::ALL.choose(rng).copied();
    let open = Attributes::default();
    Wanted::Objects(match rng.random_range(0..16) {
        0..3 => Attributes { colour, ..open },
        3..5 => Attributes { shape, ..open },
        5..7 => Attributes { texture, ..open },
        7..9 => Attributes { colour, shape, ..open },
        9 => Attributes { colour, texture, ..open },
        10 => Attributes { texture, shape, ..open },
        11 => Attributes { extent: Some(Extent::Large), ..open },
        12 => Attributes { extent: Some(Extent::Small), ..open },
        13 => return Wanted::Background,
        _ => return Wanted::Nothing,
    })
}

impl LitPicture {
    /// A picture of the scene for a feature, if it shows what is wanted and its mask comes out clear.
    fn draw(rng: &mut ChaCha8Rng, scene: &Scene, wanted: Wanted, masking: Masking) -> Option<Self> {
        const TRIES: usize = 8;
        let mut lit: Vec<usize> = match wanted {
            Wanted::Background => Vec::new(),
            Wanted::Nothing => (0..scene.objects.len()).collect(),
            Wanted::Objects(a) => (0..scene.objects.len()).filter(|&i| a.fits(&scene.objects[i])).collect(),
        };
        if wanted != Wanted::Background {
            lit.shuffle(rng);
            let most = if wanted == Wanted::Nothing { rng.random_range(1..=2) } else { scene.objects.len() };
            lit.truncate(most);
            if lit.len() > 1 && rng.random_bool(0.2) {
                lit.pop();
            }
            if lit.is_empty() {
                return None;
            }
        }
        let coverage = Coverage::of(scene);
        (0..TRIES).find_map(|_| {
            let heat = if lit.is_empty() { coverage.background(rng) } else { coverage.objects(rng, &lit) };
            let heat = HeatMap::new(GRID, GRID, heat).ok()?;
            let on = heat.on(masking.cut);
            let clear = (0..scene.objects.len()).all(|object| {
                let share = coverage.share_on(object, &on);
                if lit.contains(&object) { share >= LEAST_LIT } else { share <= MOST_SPILT }
            });
            let any = on.iter().any(|&on| on);
            (clear && any).then(|| Self { scene: scene.clone(), heat, masking, lit: lit.clone() })
        })
    }

    /// The picture an explainer is shown.
    pub(crate) fn render(&self) -> RgbImage {
        self.masking.apply(&self.scene.render(), &self.heat)
    }

    /// The light on each pixel, 0 to 255, row by row.
    pub(crate) fn light(&self) -> Vec<u8> {
        let shade = self.masking.shade(&self.heat, self.scene.width, self.scene.height);
        shade.as_raw().iter().map(|shade| 255 - shade).collect()
    }

    /// The same picture with `dim` light left where it is not lit.
    pub(crate) fn dimmed(mut self, dim: u8) -> Self {
        self.masking.dim = dim;
        self
    }

    /// What is lit; nothing when the background is.
    pub(crate) fn lit_objects(&self) -> impl Iterator<Item = &Object> {
        self.lit.iter().map(|&index| &self.scene.objects[index])
    }

    fn fits(&self, description: Description) -> bool {
        match description {
            Description::Background => self.lit.is_empty(),
            Description::Objects(wanted) => {
                !self.lit.is_empty() && self.lit_objects().all(|object| wanted.fits(object))
            }
        }
    }
}

/// For each object of a scene, which share of each patch it covers.
struct Coverage {
    patches: Vec<[f64; GRID * GRID]>,
}

impl Coverage {
    fn of(scene: &Scene) -> Self {
        let (width, height) = (scene.width as usize, scene.height as usize);
        let per_patch = (width * height) as f64 / (GRID * GRID) as f64;
        let mut patches = vec![[0.0; GRID * GRID]; scene.objects.len()];
        for (pixel, &label) in scene.label_map().as_raw().iter().enumerate() {
            if let Some(object) = label.checked_sub(1) {
                let (x, y) = (pixel % width, pixel / width);
                patches[object as usize][(y * GRID / height) * GRID + x * GRID / width] += 1.0 / per_patch;
            }
        }
        Self { patches }
    }

    fn share_on(&self, object: usize, on: &[bool]) -> f64 {
        let all: f64 = self.patches[object].iter().sum();
        let lit: f64 =
            self.patches[object].iter().zip(on).filter(|&(_, &on)| on).map(|(share, _)| share).sum();
        lit / all
    }

    fn objects(&self, rng: &mut ChaCha8Rng, lit: &[usize]) -> Vec<f32> {
        let mut heat = vec![0f32; GRID * GRID];
        let (dropped, joined) = (rng.random_range(0.0..0.3), rng.random_range(0.0..0.25));
        for &object in lit {
            let strength = rng.random_range(0.6..1.0);
            for (value, &share) in heat.iter_mut().zip(&self.patches[object]) {
                if share > 0.05 && !rng.random_bool(dropped) {
                    *value = value.max((strength * share.powf(0.7) * rng.random_range(0.6..1.4)) as f32);
                }
            }
        }
        let core = heat.clone();
        for (patch, value) in heat.iter_mut().enumerate() {
            let (row, col) = (patch / GRID, patch % GRID);
            let beside = |other: usize| {
                core[other] > 0.0 && row.abs_diff(other / GRID) <= 1 && col.abs_diff(other % GRID) <= 1
            };
            if *value == 0.0 && (0..GRID * GRID).any(beside) && rng.random_bool(joined) {
                *value = rng.random_range(0.1..0.7);
            }
        }
        for _ in 0..rng.random_range(0i32..6) - 3 {
            heat[rng.random_range(0..GRID * GRID)] = rng.random_range(0.2..0.8);
        }
        heat
    }

    fn background(&self, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let kept = rng.random_range(0.35..0.95);
        (0..GRID * GRID)
            .map(|patch| {
                let covered: f64 = self.patches.iter().map(|object| object[patch]).sum();
                let free = covered < 0.05 || (covered < 0.3 && rng.random_bool(0.2));
                if free && rng.random_bool(kept) { rng.random_range(0.3..1.0) } else { 0.0 }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn answers_say_what_every_lit_object_has_and_no_more() {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for index in 0..300 {
            let set = LitSet::generate(3, index, 5);
            let again = LitSet::generate(3, index, 5);
            assert_eq!(set.all().answer(), again.all().answer());
            assert_eq!(set.pictures.len(), 5);
            let text = set.all().answer();
            let text = text.strip_prefix("[explanation]: ").unwrap();
            for word in Colour::ALL.iter().map(|c| c.name()).chain(Shape::ALL.iter().map(|s| s.name())) {
                let shared = set.pictures.iter().all(|picture| {
                    !picture.lit.is_empty() && picture.lit_objects().all(|o| o.labels().contains(&word))
                });
                assert_eq!(text.split(' ').any(|w| w == word), shared, "{text}: {word}");
            }
            *kinds.entry(text.to_owned()).or_default() += 1;
        }
        assert!(kinds[UNABLE] > 10 && kinds[BACKGROUND] > 5 && kinds["red"] > 3, "{kinds:?}");
        assert!(*kinds.values().max().unwrap() < 90, "{kinds:?}");
    }

    #[test]
    fn in_some_lessons_one_picture_shares_less() {
        let exact = |set: &LitSet| set.all().answer();
        let but_one = |set: &LitSet| {
            (0..5).any(|odd| {
                let others = set.pictures.iter().enumerate().filter(|&(i, _)| i != odd);
                let objects: Vec<&Object> = others.flat_map(|(_, picture)| picture.lit_objects()).collect();
                let shared = objects.iter().map(|object| Attributes::of(object)).reduce(Attributes::and);
                shared.is_some_and(|shared| !shared.is_open() && !exact(set).contains(&shared.text()))
            })
        };
        let count =
            |draw: fn(u64, u64, usize) -> LitSet| (0..300).filter(|&i| but_one(&draw(7, i, 5))).count();
        let (plain, lessons) = (count(LitSet::generate), count(LitSet::lesson));
        assert!(lessons > plain + 15, "{lessons} of 300 lessons beside {plain} of 300 plain sets");
    }

    #[test]
    fn what_is_meant_is_brighter_than_what_is_not() {
        for index in 0..40 {
            for picture in LitSet::generate(4, index, 3).pictures {
                let light = picture.light();
                let labels = picture.scene.label_map();
                let mean = |object: usize| {
                    let own =
                        labels.as_raw().iter().zip(&light).filter(|&(&l, _)| usize::from(l) == object + 1);
                    let values: Vec<f64> = own.map(|(_, &light)| f64::from(light)).collect();
                    values.iter().sum::<f64>() / values.len() as f64
                };
                let lit: Vec<f64> = picture.lit.iter().map(|&object| mean(object)).collect();
                for object in (0..picture.scene.objects.len()).filter(|o| !picture.lit.contains(o)) {
                    assert!(lit.iter().all(|&lit| lit > mean(object)), "set {index}");
                }
            }
        }
    }

    #[test]
    fn judgements_hold_for_the_set() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (mut yes, mut no) = (0, 0);
        for index in 0..200 {
            let set = LitSet::generate(5, index, 4);
            for (question, answer) in set.all().judgements(&mut rng, 2) {
                let words: Vec<&str> = question.split(' ').collect();
                let wanted = &words[5..words.len() - 1];
                let fits = |picture: &LitPicture| match wanted {
                    ["background"] => picture.lit.is_empty(),
                    _ => {
                        !picture.lit.is_empty()
                            && picture.lit_objects().all(|o| {
                                let labels = o.labels();
                                wanted
                                    .iter()
                                    .all(|w| labels.contains(w) || o.extent().is_some_and(|e| e.name() == *w))
                            })
                    }
                };
                let fitting = set.pictures.iter().filter(|picture| fits(picture)).count();
                if answer == "1" {
                    assert_eq!(fitting, 4, "{question}");
                    yes += 1;
                } else {
                    assert!(fitting <= 1, "{question}");
                    no += 1;
                }
            }
        }
        assert!(yes > 200 && no > 200, "{yes} {no}");
    }
}
