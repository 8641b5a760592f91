//! Fuzzing: a judge sees a sample with a part of it marked, and says whether the explanation fits what is marked. It is right if
//! that is where the feature is on.
//!
//! Wrong marks must look like right ones, or a judge could tell them apart without the explanation: as many tokens as are marked
//! in the positives on average, or the shape of a true mask in another place.

use crate::Random;
use crate::baselines::moved;
use crate::detection::{EXAMPLES, EXPLANATION, list_form};

/// Stand around marked tokens.
pub const MARKS: [&str; 2] = ["<<", ">>"];

/// Instructions for judging one picture of which a part is lit; the answer is `[ANSWER]: 1` or `[ANSWER]: 0`.
pub fn picture_instruction() -> String {
    format!(
        "In this picture one part is lit at its full brightness and everything else is dimmed. Someone claims that a feature inside a \
         neural network reacts to the lit part, and described what the feature reacts to:\n\
         {EXPLANATION}\n\n\
         Does the lit part show that? What is dimmed does not count, even if it fits. Answer with 1 if the lit part shows it and with 0 \
         if it does not, on one line of this form:\n\
         [ANSWER]: 1 or 0"
    )
}

/// Instructions for judging `n` such pictures at once; the answer is a list that [`verdicts`](crate::verdicts) reads.
pub fn pictures_instruction(n: usize) -> String {
    format!(
        "You see {n} pictures, numbered from 1 in the order in which they are shown. In each of them one part is lit at its full \
         brightness and everything else is dimmed. Someone claims that a feature inside a neural network reacts to the lit parts, and \
         described what the feature reacts to:\n\
         {EXPLANATION}\n\n\
         In which pictures does the lit part show that? It may be all, some or none; what is dimmed does not count, even if it fits.\n\
         {}",
        list_form(n, "picture", "the lit part shows it")
    )
}

/// Instructions for judging `n` excerpts of text with marked tokens at once; the answer is a list that
/// [`verdicts`](crate::verdicts) reads.
pub fn text_instruction(n: usize) -> String {
    let [open, close] = MARKS;
    format!(
        "Below are {n} excerpts of text. In each of them someone put the tokens between {open} and {close} that a feature inside a \
         language model is said to react to, and described what that feature reacts to:\n\
         {EXPLANATION}\n\n\
         In which excerpts are the right tokens marked? An excerpt is right only if the description fits all that is marked in it; \
         what is not marked does not count, even if it fits. All may be right, some or none.\n\n\
         {EXAMPLES}\n\n\
         {}",
        list_form(n, "excerpt", "its marks are right")
    )
}

/// The tokens whose activation is at least `threshold` (delphi's is 0.3) of the largest, and above 0.
pub fn right_tokens(activations: &[f32], threshold: f32) -> Vec<usize> {
    let least = threshold * activations.iter().copied().fold(0.0, f32::max);
    let is_right = |&(_, &value): &(usize, &f32)| value > 0.0 && value >= least;
    activations.iter().enumerate().filter(is_right).map(|(at, _)| at).collect()
}

/// How many tokens a wrong mark takes: the mean of the numbers marked in the positives, rounded up; 0 without positives.
pub fn wrong_count(marked: &[usize]) -> usize {
    let sum: usize = marked.iter().sum();
    sum.div_ceil(marked.len().max(1))
}

/// `n` tokens at random on which the feature is off, in order; all of them where there are no more.
pub fn wrong_tokens(activations: &[f32], n: usize, random: &mut Random) -> Vec<usize> {
    let off: Vec<usize> =
        activations.iter().enumerate().filter(|(_, value)| **value <= 0.0).map(|(at, _)| at).collect();
    let mut wrong: Vec<usize> = random.choose(n, off.len()).into_iter().map(|at| off[at]).collect();
    wrong.sort_unstable();
    wrong
}

/// A region that has the shape of a true one and lies where the feature is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongRegion {
    /// Which patches are in it, `[rows * cols]`, row by row.
    pub patches: Vec<bool>,
    /// How many of them the feature is on in: 0 where that can be had.
    pub overlap: usize,
}

/// Moves the shape of a true region, of this image or of another, over the patches of an image to where the feature is off. Of
/// all places those count that share the fewest patches with the ones it is on in, of those the ones where the shape is not cut
/// by the border, of those each is as likely. `shape` and `on` are `[rows * cols]`, row by row.
///
/// `None` where the shape is empty, or can only lie where more than half of it is right.
///
/// # Panics
/// When `shape` or `on` does not fill the grid.
#[track_caller]
pub fn wrong_region(
    shape: &[bool],
    on: &[bool],
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> Option<WrongRegion> {
    assert_eq!(shape.len(), rows * cols, "a shape of {} patches on a grid of {rows} x {cols}", shape.len());
    assert_eq!(on.len(), rows * cols, "{} patches on a grid of {rows} x {cols}", on.len());
    let patches: Vec<(usize, usize)> =
        shape.iter().enumerate().filter(|(_, is_in)| **is_in).map(|(at, _)| (at / cols, at % cols)).collect();
    let bottom = patches.iter().map(|patch| patch.0).max()?;
    let right = patches.iter().map(|patch| patch.1).max()?;
    let top = patches.iter().map(|patch| patch.0).min()?;
    let left = patches.iter().map(|patch| patch.1).min()?;
    // A move right by `across` cuts the shape if it takes one part over the border and not the other.
    let cuts = |low: usize, high: usize, by: usize, size: usize| (low + by) / size != (high + by) / size;
    let quality = |down: usize, across: usize| {
        let is_on = |&&(row, col): &&(usize, usize)| on[(row + down) % rows * cols + (col + across) % cols];
        let overlap = patches.iter().filter(is_on).count();
        (overlap, cuts(top, bottom, down, rows) || cuts(left, right, across, cols))
    };
    let mut best = Vec::new();
    let mut least = (usize::MAX, true);
    for (down, across) in (0..rows).flat_map(|down| (0..cols).map(move |across| (down, across))) {
        let quality = quality(down, across);
        if quality < least {
            least = quality;
            best.clear();
        }
        if quality == least {
            best.push((down, across));
        }
    }
    let (overlap, _) = least;
    if 2 * overlap > patches.len() {
        return None;
    }
    let (down, across) = best[random.below(best.len())];
    Some(WrongRegion { patches: moved(shape, cols, rows, across, down), overlap })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_tokens_are_near_the_peak_and_wrong_ones_are_off() {
        let activations = [0.0, 2.0, 4.0, 1.0, 0.0, 0.0];
        assert_eq!(right_tokens(&activations, 0.3), [1, 2]);
        assert_eq!(right_tokens(&activations, 0.0), [1, 2, 3]);
        assert_eq!(right_tokens(&[0.0; 3], 0.3), [0usize; 0]);
        let mut random = Random::new(1, 0);
        for _ in 0..20 {
            let wrong = wrong_tokens(&activations, 2, &mut random);
            assert!(wrong.len() == 2 && wrong[0] < wrong[1] && wrong.iter().all(|at| [0, 4, 5].contains(at)));
        }
        assert_eq!(wrong_tokens(&activations, 9, &mut random), [0, 4, 5]);
    }

    #[test]
    fn wrong_marks_are_as_many_as_right_ones_on_average() {
        assert_eq!([wrong_count(&[1, 2, 2]), wrong_count(&[2, 2]), wrong_count(&[])], [2, 2, 0]);
    }

    fn grid(rows: &[&str]) -> Vec<bool> {
        rows.concat().chars().map(|c| c == '#').collect()
    }

    #[test]
    fn a_region_moves_to_where_the_feature_is_off_and_stays_whole() {
        let shape = grid(&["##..", "#...", "...."]);
        let mut random = Random::new(2, 0);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let wrong = wrong_region(&shape, &shape, 3, 4, &mut random).unwrap();
            assert_eq!(wrong.overlap, 0);
            seen.insert(wrong.patches);
        }
        // Of the six whole places, those without any of the three patches.
        let places = [
            grid(&["..##", "..#.", "...."]),
            grid(&["....", "..##", "..#."]),
            grid(&["....", ".##.", ".#.."]),
        ];
        assert_eq!(seen, places.into_iter().collect());
    }

    #[test]
    fn a_region_is_cut_rather_than_right() {
        // The only place free of the feature lies over the border.
        let wrong = wrong_region(&grid(&["##.."]), &grid(&[".##."]), 1, 4, &mut Random::new(3, 0)).unwrap();
        assert_eq!((wrong.patches, wrong.overlap), (grid(&["#..#"]), 0));
    }

    #[test]
    fn a_region_that_can_only_be_right_is_none() {
        let mut random = Random::new(4, 0);
        assert_eq!(wrong_region(&grid(&["##"]), &grid(&["##"]), 1, 2, &mut random), None);
        assert_eq!(wrong_region(&grid(&["..", ".."]), &grid(&["#.", ".."]), 2, 2, &mut random), None);
        // Half right is the best that can be had.
        let half = wrong_region(&grid(&["##."]), &grid(&["##."]), 1, 3, &mut random).unwrap();
        assert_eq!((half.overlap, half.patches.iter().filter(|&&patch| patch).count()), (1, 2));
        // Another image, in which the feature is off: anywhere.
        assert_eq!(wrong_region(&grid(&["##."]), &[false; 3], 1, 3, &mut random).unwrap().overlap, 0);
    }

    #[test]
    fn instructions_say_how_many_and_what_counts() {
        let text = text_instruction(3);
        assert!(text.contains("3 excerpts") && text.contains("between << and >>"), "{text}");
        assert!(text.contains(EXAMPLES) && text.ends_with("[_, _, _]"), "{text}");
        for text in [picture_instruction(), pictures_instruction(2), text] {
            assert_eq!(text.matches(EXPLANATION).count(), 1, "{text}");
        }
    }
}
