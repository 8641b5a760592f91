//! What a score has to beat: explanations of other features, masks in other places, the whole image, other images.
//!
//! | baseline | keeps | loses | answers |
//! |---|---|---|---|
//! | [another feature's explanation](OtherExplanations) | masks, images, and what explanations are like | whose explanation it is | does it say something about *this* feature? |
//! | [`translated`] mask | explanation, image, the mask's area and shape | where the mask lies | does the feature point at what the explanation names? |
//! | [`whole_image`] | explanation, image | the mask | is pointing anywhere better than pointing everywhere? |
//! | [`other_images`] | explanation, feature | that the feature is strong there | multimodal-sae's, near 0 by construction: most features are off in most images |
//!
//! The mask of the same area is the feature's own, moved. Scattered pixels of the same number would overlap any object by about
//! their share of the image, but no feature's mask is scattered, so they would be easier to beat than a blob that happens to lie
//! on the object; a rectangle has another shape. Moving around the border keeps area and shape, and makes every place as likely.

use std::ops::Range;

use crate::Random;

/// Explanations of other features: what [`OtherExplanations::draw`] draws from.
///
/// The null that an explanation is held against is "what some other feature was said to show". So the draw is uniform among all features
/// that say something else, whatever they say: a text that many of them have in common is drawn as often as it is said. Features that say the
/// same as the feature itself are left out, since that is no other explanation. Each feature draws for itself. Were explanations exchanged
/// one for one, then as soon as one half says the same, the other half could be given nothing but that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherExplanations {
    /// The features, those that say the same side by side.
    order: Vec<usize>,
    /// For each feature where those lie in `order` that say the same.
    same: Vec<Range<usize>>,
}

impl OtherExplanations {
    /// Takes every feature's explanation. Texts that differ in case, in white space and in a full stop at the end only say the same.
    pub fn new<T: AsRef<str>>(explanations: &[T]) -> Self {
        let said: Vec<String> = explanations.iter().map(|text| said(text.as_ref())).collect();
        let mut order: Vec<usize> = (0..said.len()).collect();
        order.sort_by(|&a, &b| said[a].cmp(&said[b]));
        let mut same = vec![0..0; said.len()];
        let mut start = 0;
        for group in order.chunk_by(|&a, &b| said[a] == said[b]) {
            let end = start + group.len();
            for &feature in group {
                same[feature] = start..end;
            }
            start = end;
        }
        Self { order, same }
    }

    /// A feature whose explanation says something else than that of `feature`, each as likely; `None` where there is none.
    ///
    /// # Panics
    /// When there is no such feature.
    #[track_caller]
    pub fn draw(&self, feature: usize, random: &mut Random) -> Option<usize> {
        let n = self.same.len();
        assert!(feature < n, "feature {feature} of {n}");
        let Range { start, end } = self.same[feature];
        let others = n - (end - start);
        let at = (others > 0).then(|| random.below(others))?;
        Some(self.order[if at < start { at } else { at + (end - start) }])
    }
}

fn said(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ").trim_end_matches('.').to_owned()
}

/// The mask `[height * width]`, row by row, moved right and down by a random number of pixels; what leaves at one border comes
/// back at the other. Every move is as likely, none at all among them.
///
/// # Panics
/// When the mask does not fill the image.
#[track_caller]
pub fn translated(mask: &[bool], width: usize, height: usize, random: &mut Random) -> Vec<bool> {
    assert_eq!(
        mask.len(),
        width * height,
        "a mask of {} pixels on an image of {width} x {height}",
        mask.len()
    );
    if mask.is_empty() {
        return Vec::new();
    }
    let (right, down) = (random.below(width), random.below(height));
    moved(mask, width, height, right, down)
}

pub(crate) fn moved(mask: &[bool], width: usize, height: usize, right: usize, down: usize) -> Vec<bool> {
    let mut moved = Vec::with_capacity(mask.len());
    for y in 0..height {
        let from = (y + height - down) % height * width;
        let row = &mask[from..from + width];
        moved.extend_from_slice(&row[width - right..]);
        moved.extend_from_slice(&row[..width - right]);
    }
    moved
}

/// The mask that points everywhere.
pub fn whole_image(pixels: usize) -> Vec<bool> {
    vec![true; pixels]
}

/// `n` different images out of `n_images`, none of `without`, in random order; fewer where there are no more.
pub fn other_images(n_images: usize, without: &[usize], n: usize, random: &mut Random) -> Vec<usize> {
    let mut without: Vec<usize> = without.iter().copied().filter(|&image| image < n_images).collect();
    without.sort_unstable();
    without.dedup();
    let chosen = random.choose(n, n_images - without.len());
    // The place among the others becomes the number of the image: one more for each that is left out before it.
    let image = |place: usize| {
        without.iter().enumerate().take_while(|&(before, &out)| out - before <= place).count() + place
    };
    chosen.into_iter().map(image).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_feature_that_says_something_else_is_as_likely() {
        let texts = ["a", "b", "A.", "c", "d", "b"];
        let others = OtherExplanations::new(&texts);
        let mut random = Random::new(5, 0);
        let mut counts = [0; 6];
        for _ in 0..6000 {
            counts[others.draw(2, &mut random).unwrap()] += 1;
        }
        // "b" is said by two of four, and drawn so often. 1500 each, standard deviation 34.
        assert_eq!((counts[0], counts[2]), (0, 0));
        assert!([1, 3, 4, 5].iter().all(|&at| (1380..1620).contains(&counts[at])), "{counts:?}");
    }

    #[test]
    fn a_majority_does_not_take_the_others_texts_away() {
        // Most say the same, as of a data set with much background.
        let mut texts = vec!["background".to_owned(); 60];
        texts.extend((0..40).map(|thing| format!("thing {thing}")));
        let others = OtherExplanations::new(&texts);
        let drawn = |feature: usize| {
            texts[others.draw(feature, &mut Random::new(1, feature as u64)).unwrap()].as_str()
        };
        let of_things = (60..100).filter(|&feature| drawn(feature) != "background").count();
        // 39 of 99 others, of 40: 16, standard deviation 3.
        assert!((6..27).contains(&of_things), "{of_things}");
        let of_background: std::collections::BTreeSet<&str> = (0..60).map(drawn).collect();
        assert!(of_background.len() > 20 && !of_background.contains("background"), "{of_background:?}");
    }

    #[test]
    fn there_may_be_no_other_explanation() {
        let mut random = Random::new(2, 0);
        for texts in [&["red"][..], &["red", "Red. ", " red"]] {
            assert_eq!(OtherExplanations::new(texts).draw(0, &mut random), None, "{texts:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_drawn_says_something_else(texts in prop::collection::vec("[a-d]", 1..30), seed: u64) {
            let others = OtherExplanations::new(&texts);
            for (feature, text) in texts.iter().enumerate() {
                let drawn = others.draw(feature, &mut Random::new(seed, feature as u64));
                prop_assert_eq!(drawn.is_some(), texts.iter().any(|other| other != text));
                prop_assert!(drawn.is_none_or(|other| texts[other] != *text));
            }
        }
    }

    #[test]
    fn masks_move_around_the_border() {
        // 3 wide, 2 high; one to the right, one down.
        let mask = [true, false, true, false, false, false];
        assert_eq!(moved(&mask, 3, 2, 1, 1), [false, false, false, true, true, false]);
        assert_eq!(moved(&mask, 3, 2, 0, 0), mask);
    }

    #[test]
    fn every_pixel_is_as_likely_and_the_area_stays() {
        let mut mask = vec![false; 12];
        mask[5] = true;
        mask[6] = true;
        let mut counts = [0; 12];
        let mut random = Random::new(9, 0);
        for _ in 0..6000 {
            let moved = translated(&mask, 4, 3, &mut random);
            assert_eq!(moved.iter().filter(|&&on| on).count(), 2);
            moved.iter().zip(&mut counts).for_each(|(&on, count)| *count += i32::from(on));
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert!(translated(&[], 0, 0, &mut random).is_empty());
    }

    #[test]
    fn other_images_are_the_others() {
        let mut random = Random::new(4, 0);
        let mut counts = [0; 6];
        for _ in 0..3000 {
            let images = other_images(6, &[4, 1, 4, 99], 2, &mut random);
            assert!(images.len() == 2 && images[0] != images[1]);
            for image in images {
                counts[image] += 1;
            }
        }
        assert!(counts[1] == 0 && counts[4] == 0);
        assert!([0, 2, 3, 5].iter().all(|&at| (1350..1650).contains(&counts[at])), "{counts:?}");
        let mut all = other_images(6, &[0], 10, &mut random);
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 5]);
    }
}
