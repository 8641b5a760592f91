//! [`share`]: what part of some work is one rank's.

use std::ops::Range;

/// Part `rank` of `size` parts of `0..total`, in the order of ranks: they differ by one at most, and the first are the longer ones, so that a rank's
/// part of less is never longer than its part of more.
///
/// # Panics
///
/// If `size` is 0.
pub fn share(total: usize, rank: usize, size: usize) -> Range<usize> {
    let (each, longer) = (total / size, total % size);
    let start = rank * each + rank.min(longer);
    start..start + each + usize::from(rank < longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once_and_grow_with_it() {
        for size in 1..7 {
            for total in 0..40 {
                let shares: Vec<_> = (0..size).map(|rank| share(total, rank, size)).collect();
                assert!(shares.iter().cloned().flatten().eq(0..total), "{shares:?}");
                for (rank, part) in shares.iter().enumerate() {
                    assert!((total / size..=total.div_ceil(size)).contains(&part.len()), "{shares:?}");
                    assert!(part.len() <= share(total + 1, rank, size).len(), "{shares:?}");
                }
            }
        }
    }
}
