//! What a judge is shown: positives from every strength of a feature, as many negatives, in random order.

use crate::Random;

/// A sample in which the feature is on, with how strong it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positive {
    /// Its place in the list it was picked from.
    pub at: usize,
    /// Its group by activation: 0 holds the strongest.
    pub quantile: usize,
}

/// Picks `n` of the samples with these activations, as many from each of `quantiles` groups of equal size by activation: a
/// feature is judged by its weak activations as much as by its strong ones. Groups differ by one sample at most, the strongest
/// come first, ties go to the lower place; what `n` leaves over goes to the strongest groups. All of them are picked where there
/// are no more.
///
/// # Panics
/// When there are no groups.
#[track_caller]
pub fn positives(activations: &[f32], quantiles: usize, n: usize, random: &mut Random) -> Vec<Positive> {
    assert!(quantiles > 0, "samples fall into at least one group");
    let mut order: Vec<usize> = (0..activations.len()).collect();
    order.sort_by(|&a, &b| activations[b].total_cmp(&activations[a]).then(a.cmp(&b)));
    let edge = |of: usize, group: usize| of * group / quantiles;
    // Larger shares to the first groups: the edges of the picked ones are rounded up.
    let wanted = |group: usize| {
        let n = n.min(order.len());
        (n * (group + 1)).div_ceil(quantiles) - (n * group).div_ceil(quantiles)
    };
    let mut picked = Vec::with_capacity(n.min(order.len()));
    // What a group lacks, the next ones give.
    let mut lacking = 0;
    for quantile in 0..quantiles {
        let group = &order[edge(order.len(), quantile)..edge(order.len(), quantile + 1)];
        let wanted = wanted(quantile) + lacking;
        let chosen = random.choose(wanted, group.len());
        lacking = wanted - chosen.len();
        picked.extend(chosen.into_iter().map(|at| Positive { at: group[at], quantile }));
    }
    picked
}

/// A sample in which the feature is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negative {
    /// Its place in the list it was picked from.
    pub at: usize,
    /// Whether that is the list of hard ones.
    pub is_hard: bool,
}

/// Picks `n` samples in which the feature is off: half, rounded up, of `hard` ones, in which features are on that are often on
/// with it, the rest of `easy` ones, in which anything may be on. Where a list has too few, the other gives more; where both
/// have, all are picked. Random order within each list, hard ones first.
///
/// Easy negatives alone let an explanation pass that is far too wide: *an animal* tells a dog feature from random images.
pub fn negatives(hard: usize, easy: usize, n: usize, random: &mut Random) -> Vec<Negative> {
    let of_hard = n.div_ceil(2).max(n.saturating_sub(easy)).min(hard);
    let hard = random.choose(of_hard, hard).into_iter().map(|at| Negative { at, is_hard: true });
    let hard: Vec<Negative> = hard.collect();
    let easy = random.choose(n - hard.len(), easy).into_iter().map(|at| Negative { at, is_hard: false });
    hard.into_iter().chain(easy).collect()
}

/// Puts positives and negatives in random order and cuts them into batches of `size`, the last one shorter: each item with
/// whether it is positive.
///
/// # Panics
/// When batches have no size.
#[track_caller]
pub fn batches<T>(
    positives: impl IntoIterator<Item = T>,
    negatives: impl IntoIterator<Item = T>,
    size: usize,
    random: &mut Random,
) -> Vec<Vec<(bool, T)>> {
    assert!(size > 0, "a batch holds at least one item");
    let positives = positives.into_iter().map(|item| (true, item));
    let mut items: Vec<(bool, T)> =
        positives.chain(negatives.into_iter().map(|item| (false, item))).collect();
    random.shuffle(&mut items);
    let mut items = items.into_iter();
    let mut batches = Vec::new();
    loop {
        let batch: Vec<(bool, T)> = items.by_ref().take(size).collect();
        if batch.is_empty() {
            return batches;
        }
        batches.push(batch);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_group(picked: &[Positive], quantile: usize) -> Vec<usize> {
        let mut of_group: Vec<usize> = picked
            .iter()
            .filter(|positive| positive.quantile == quantile)
            .map(|positive| positive.at)
            .collect();
        of_group.sort_unstable();
        of_group
    }

    #[test]
    fn every_strength_is_represented() {
        // Strongest: places 9, 8, 7, then 6, 5, 4, then 3 to 0.
        let activations: Vec<f32> = (0..10u8).map(f32::from).collect();
        let picked = positives(&activations, 3, 7, &mut Random::new(1, 0));
        assert_eq!(of_group(&picked, 0), [7, 8, 9]);
        assert!(of_group(&picked, 1).len() == 2 && of_group(&picked, 1).iter().all(|at| (4..7).contains(at)));
        assert!(of_group(&picked, 2).len() == 2 && of_group(&picked, 2).iter().all(|&at| at < 4));
    }

    #[test]
    fn ties_go_to_the_lower_place() {
        let picked = positives(&[1.0, 1.0, 1.0, 1.0], 2, 4, &mut Random::new(1, 0));
        assert_eq!((of_group(&picked, 0), of_group(&picked, 1)), (vec![0, 1], vec![2, 3]));
    }

    proptest! {
        #[test]
        fn as_many_as_asked_and_none_twice(
            activations in prop::collection::vec(0f32..1.0, 0..60),
            quantiles in 1usize..12,
            n in 0usize..70,
            seed: u64,
        ) {
            let picked = positives(&activations, quantiles, n, &mut Random::new(seed, 0));
            let mut places: Vec<usize> = picked.iter().map(|positive| positive.at).collect();
            places.sort_unstable();
            places.dedup();
            prop_assert_eq!(places.len(), n.min(activations.len()));
            prop_assert_eq!(picked.len(), places.len());
            let counts: Vec<usize> = (0..quantiles).map(|quantile| of_group(&picked, quantile).len()).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            prop_assert!(most.unwrap() - least.unwrap() <= 2, "{:?}", counts);
        }
    }

    #[test]
    fn half_of_the_negatives_are_hard_if_there_are_as_many() {
        let mut random = Random::new(3, 0);
        let mut counts = |hard, easy, n| {
            let picked = negatives(hard, easy, n, &mut random);
            let of_hard = picked.iter().filter(|negative| negative.is_hard).count();
            let mut distinct: Vec<_> =
                picked.iter().map(|negative| (negative.is_hard, negative.at)).collect();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), picked.len());
            (of_hard, picked.len() - of_hard)
        };
        assert_eq!(counts(100, 100, 5), (3, 2));
        assert_eq!(counts(1, 100, 5), (1, 4));
        assert_eq!(counts(100, 1, 5), (4, 1));
        assert_eq!(counts(2, 1, 5), (2, 1));
        assert_eq!(counts(0, 0, 5), (0, 0));
    }

    #[test]
    fn batches_hold_each_item_once() {
        let batches = batches(["a", "b", "c"], ["x", "y"], 2, &mut Random::new(6, 0));
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        let mut items = batches.concat();
        items.sort_unstable();
        assert_eq!(items, [(false, "x"), (false, "y"), (true, "a"), (true, "b"), (true, "c")]);
    }
}
