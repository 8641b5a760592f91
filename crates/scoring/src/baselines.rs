//! What a score has to beat: explanations of other features, masks in other places, the whole image, other images.
//!
//! | baseline | keeps | loses | answers |
//! |---|---|---|---|
//! | [`permuted`] explanations | masks, images, and the whole set of explanations | whose explanation it is | does it say something about *this* feature? |
//! | [`translated`] mask | explanation, image, the mask's area and shape | where the mask lies | does the feature point at what the explanation names? |
//! | [`whole_image`] | explanation, image | the mask | is pointing anywhere better than pointing everywhere? |
//! | [`other_images`] | explanation, feature | that the feature is strong there | multimodal-sae's, near 0 by construction: most features are off in most images |
//!
//! The mask of the same area is the feature's own, moved. Scattered pixels of the same number would overlap any object by about
//! their share of the image, but no feature's mask is scattered, so they would be easier to beat than a blob that happens to lie
//! on the object; a rectangle has another shape. Moving around the border keeps area and shape, and makes every place as likely.

use std::collections::BTreeMap;

use crate::Random;

/// Explanations of other features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permuted {
    /// For each feature the one whose explanation it gets: each gives and gets one, and none keeps its own.
    pub sources: Vec<usize>,
    /// How many get an explanation that says the same as their own: no more than cannot be avoided.
    pub same_text: usize,
}

/// Gives each feature the explanation of another. Texts that differ in case, in white space and in a full stop at the end only
/// say the same. No feature gets what says the same as its own, unless more than half of them say it: then as few as possible do.
///
/// The features are put in a random order, grouped by what is said, and each gets the text of the one that stands a random number
/// of places further, at least as many as the largest group has and at most as many as the others have together.
///
/// `None` where there are fewer than two features.
pub fn permuted<T: AsRef<str>>(explanations: &[T], random: &mut Random) -> Option<Permuted> {
    let n = explanations.len();
    if n < 2 {
        return None;
    }
    let said: Vec<String> = explanations.iter().map(|text| said(text.as_ref())).collect();
    let mut order: Vec<usize> = (0..n).collect();
    random.shuffle(&mut order);
    // Groups stand where their first member stands in that order.
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for &feature in &order {
        let next = groups.len();
        groups.entry(&said[feature]).or_insert(next);
    }
    order.sort_by_key(|&feature| groups[said[feature].as_str()]);
    let largest = order.chunk_by(|&a, &b| said[a] == said[b]).map(<[usize]>::len).max().unwrap_or(1);
    let least = largest.min(n - 1);
    let most = (n - largest).max(least);
    let step = least + random.below(most - least + 1);
    let mut sources = vec![0; n];
    for (at, &feature) in order.iter().enumerate() {
        sources[feature] = order[(at + step) % n];
    }
    let same_text = sources.iter().enumerate().filter(|&(to, &from)| said[to] == said[from]).count();
    Some(Permuted { sources, same_text })
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
    fn no_feature_keeps_its_explanation() {
        let texts = ["red", "blue", "red circle", "a ring"];
        let permuted = permuted(&texts, &mut Random::new(1, 0)).unwrap();
        let mut sources = permuted.sources.clone();
        assert!(sources.iter().enumerate().all(|(to, &from)| to != from));
        sources.sort_unstable();
        assert_eq!((sources, permuted.same_text), (vec![0, 1, 2, 3], 0));
    }

    #[test]
    fn every_other_feature_is_as_likely() {
        let texts = ["a", "b", "c", "d"];
        let mut counts = [0; 4];
        let mut random = Random::new(5, 0);
        for _ in 0..6000 {
            counts[permuted(&texts, &mut random).unwrap().sources[1]] += 1;
        }
        assert!(
            counts[1] == 0 && [0, 2, 3].iter().all(|&at| (1850..2150).contains(&counts[at])),
            "{counts:?}"
        );
    }

    #[test]
    fn the_same_text_is_avoided_as_far_as_it_can_be() {
        let mut random = Random::new(2, 0);
        let same = |texts: &[&str], random: &mut Random| permuted(texts, random).unwrap().same_text;
        for _ in 0..50 {
            assert_eq!(same(&["red", "Red.", " red", "ring", "ring", "dog"], &mut random), 0);
            // Four of six say it: the two others take two of them, and two remain.
            assert_eq!(same(&["red", "red", "red", "red", "ring", "dog"], &mut random), 2);
            assert_eq!(same(&["red", "red"], &mut random), 2);
        }
        assert_eq!(permuted(&["red"], &mut random), None);
    }

    proptest! {
        #[test]
        fn permutations_are_as_good_as_can_be(texts in prop::collection::vec("[a-d]", 2..30), seed: u64) {
            let permuted = permuted(&texts, &mut Random::new(seed, 0)).unwrap();
            let n = texts.len();
            let mut given = vec![false; n];
            for (to, &from) in permuted.sources.iter().enumerate() {
                prop_assert!(to != from && !given[from]);
                given[from] = true;
            }
            let largest = texts.iter().map(|text| texts.iter().filter(|other| *other == text).count()).max();
            prop_assert_eq!(permuted.same_text, (2 * largest.unwrap()).saturating_sub(n));
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
