//! What holds of every scene, and the pixels of a few.

use std::collections::BTreeSet;

use proptest::prelude::*;
use shapes_world::{
    CANVASES, CAPTION_REQUEST, Canvas, GAP, MAX_SIZE, MIN_SIZE, QuestionKind, Scene, Shape, vocabulary,
};

/// FNV-1a, 64 bits.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A committed checkpoint was trained on these pixels and words: a change here asks for a new one.
#[test]
fn scenes_keep_their_pixels_and_words() {
    let facts: Vec<String> = [(0, 0), (0, 1), (1, 0), (u64::MAX, 123_456_789)]
        .into_iter()
        .map(|(seed, index)| {
            let scene = Scene::generate(seed, index);
            format!(
                "{:016x} {}x{} {}",
                hash(scene.render().as_raw()),
                scene.width,
                scene.height,
                scene.caption()
            )
        })
        .collect();
    assert_eq!(facts, PINNED);
}

const PINNED: [&str; 4] = [
    "2f6525072a26c262 96x192 a yellow dotted circle",
    "5a06b3ce3dcec8fd 96x96 a blue dotted cross and an orange checkered cross",
    "17eadaedc5ba87c0 96x96 an orange solid triangle and a green solid circle",
    "41757252d5fe9089 96x192 a purple dotted cross and a yellow solid square",
];

#[test]
fn every_attribute_comes_up_about_as_often_as_it_should() {
    let scenes: Vec<Scene> = (0..4_000).map(|index| Scene::generate(3, index)).collect();
    let share = |holds: &dyn Fn(&Scene) -> bool| {
        scenes.iter().filter(|scene| holds(scene)).count() as f64 / scenes.len() as f64
    };
    let square = share(&|scene| scene.width == scene.height);
    assert!((square - 0.5).abs() < 0.03, "{square} of the canvases are square");
    for count in 1..=4 {
        let share = share(&|scene| scene.objects.len() == count);
        assert!((share - 0.25).abs() < 0.03, "{share} of the scenes have {count} objects");
    }
    for &shape in Shape::ALL {
        let share = scenes.iter().flat_map(|s| &s.objects).filter(|o| o.shape == shape).count() as f64
            / scenes.iter().map(|s| s.objects.len()).sum::<usize>() as f64;
        assert!((share - 0.2).abs() < 0.02, "{share} of the objects are {shape}s");
    }
    for kind in [QuestionKind::Colour, QuestionKind::Shape, QuestionKind::Count, QuestionKind::Position] {
        let share = share(&|scene| scene.questions().iter().any(|question| question.kind == kind));
        assert!(share > 0.4, "only {share} of the scenes ask for {kind:?}");
    }
}

/// An answer found by other means than the crate's: from the question's words and the caption alone.
fn answer(scene: &Scene, question: &str) -> Vec<String> {
    let words: Vec<&str> = question.split(' ').collect();
    let caption = scene.caption();
    let objects: Vec<Vec<&str>> = caption.split(" and ").map(|o| o.split(' ').collect()).collect();
    let with = |at: usize, word: &str, want: usize| {
        objects.iter().filter(|o| o[at] == word).map(|o| o[want].to_owned()).collect()
    };
    match words[0] {
        "what" => with(3, words[4], 1),
        "which" => with(1, words[3], 3),
        "how" => vec![["one", "two", "three", "four"][objects.len() - 1].to_owned()],
        _ => {
            let found: Vec<_> = scene.objects.iter().filter(|o| o.shape.name() == words[3]).collect();
            found
                .into_iter()
                .map(|object| {
                    let (x, y) = object.centre();
                    let names = [["", "top", ""], ["left", "centre", "right"], ["", "bottom", ""]];
                    let row = (y * 3.0 / f64::from(scene.height)) as usize;
                    let column = (x * 3.0 / f64::from(scene.width)) as usize;
                    names[row][column].to_owned()
                })
                .collect()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_scene_is_a_function_of_seed_and_index(seed: u64, index: u64) {
        let scene = Scene::generate(seed, index);
        prop_assert_eq!(&scene, &Scene::generate(seed, index));
        prop_assert_eq!(scene.render(), Scene::generate(seed, index).render());
    }

    #[test]
    fn objects_lie_inside_and_apart(seed: u64, index: u64) {
        let scene = Scene::generate(seed, index);
        let canvas = Canvas { width: scene.width, height: scene.height };
        prop_assert!(CANVASES.contains(&canvas));
        prop_assert!((1..=4).contains(&scene.objects.len()));
        for (i, a) in scene.objects.iter().enumerate() {
            prop_assert!((MIN_SIZE..=MAX_SIZE).contains(&a.size));
            prop_assert!(a.left >= GAP && a.left + a.size + GAP <= scene.width, "{:?}", a);
            prop_assert!(a.top >= GAP && a.top + a.size + GAP <= scene.height, "{:?}", a);
            for b in &scene.objects[..i] {
                let across = a.left + a.size + GAP <= b.left || b.left + b.size + GAP <= a.left;
                let down = a.top + a.size + GAP <= b.top || b.top + b.size + GAP <= a.top;
                prop_assert!(across || down, "{:?} and {:?}", a, b);
            }
        }
    }

    #[test]
    fn masks_and_label_map_agree(seed: u64, index: u64) {
        let scene = Scene::generate(seed, index);
        let labels = scene.label_map();
        let masks: Vec<_> = (0..scene.objects.len()).map(|object| scene.mask(object)).collect();
        for (x, y, label) in labels.enumerate_pixels() {
            for (object, mask) in masks.iter().enumerate() {
                let inside = usize::from(label.0[0]) == object + 1;
                prop_assert_eq!(mask.get_pixel(x, y).0[0], if inside { 255 } else { 0 });
            }
        }
        for (label, union) in scene.masks_by_label() {
            for (x, y, pixel) in union.enumerate_pixels() {
                let at = usize::from(labels.get_pixel(x, y).0[0]);
                let inside = at > 0 && scene.objects[at - 1].labels().contains(&label);
                prop_assert_eq!(pixel.0[0] == 255, inside);
            }
        }
        for (object, mask) in scene.objects.iter().zip(&masks) {
            let area = mask.pixels().filter(|pixel| pixel.0[0] == 255).count();
            let square = (object.size * object.size) as usize;
            prop_assert!(area * 100 >= square * 45, "{:?} covers {} of {}", object, area, square);
        }
    }

    #[test]
    fn objects_stand_out_from_the_background(seed: u64, index: u64) {
        let scene = Scene::generate(seed, index);
        let (image, labels) = (scene.render(), scene.label_map());
        for (pixel, label) in image.pixels().zip(labels.pixels()) {
            let [r, g, b] = pixel.0;
            let spread = r.max(g).max(b) - r.min(g).min(b);
            prop_assert_eq!(spread > 40, label.0[0] > 0, "{:?}", pixel);
        }
    }

    #[test]
    fn answers_are_the_only_right_ones(seed: u64, index: u64) {
        let scene = Scene::generate(seed, index);
        let questions = scene.questions();
        let texts: BTreeSet<_> = questions.iter().map(|question| &question.text).collect();
        prop_assert_eq!(texts.len(), questions.len());
        for question in &questions {
            prop_assert_eq!(answer(&scene, &question.text), [question.answer], "{}", question.text);
        }
    }

    #[test]
    fn texts_use_the_vocabulary_only(seed: u64, index: u64) {
        let scene = Scene::generate(seed, index);
        let words = vocabulary();
        let mut texts = vec![scene.caption(), CAPTION_REQUEST.to_owned()];
        texts.extend(scene.questions().into_iter().flat_map(|q| [q.text, q.answer.to_owned()]));
        for text in texts {
            for word in text.split(' ') {
                prop_assert!(words.contains(&word), "{word:?} of {text:?}");
            }
        }
    }
}
