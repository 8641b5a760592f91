//! [`Random`]: what is drawn by chance, the same on every platform and in every version.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A source of chance that depends on a seed and a stream only. A stream per feature makes what is drawn for it independent of
/// the other features, and so of how they are shared among workers.
///
/// ChaCha8 keyed by seed and stream (little endian, then zeros).
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// Begins the stream.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&stream.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A number below `n`: `floor(x · n / 2^64)` of the next 64 bits `x`.
    ///
    /// # Panics
    /// When `n` is 0.
    #[track_caller]
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "there is no number below 0 to draw");
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Puts items in a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }

    /// `n` different numbers below `of`, in random order; all of them where there are no more. Takes as many draws as numbers,
    /// whatever `of` is (Floyd's method).
    pub fn choose(&mut self, n: usize, of: usize) -> Vec<usize> {
        let n = n.min(of);
        let mut taken = BTreeSet::new();
        let mut chosen = Vec::with_capacity(n);
        for last in of - n..of {
            let drawn = self.below(last + 1);
            let number = if taken.insert(drawn) { drawn } else { last };
            taken.insert(number);
            chosen.push(number);
        }
        self.shuffle(&mut chosen);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_and_stream_decide() {
        let draw = |seed, stream| Random::new(seed, stream).choose(5, 1000);
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(2, 1));
        assert_ne!(draw(1, 2), draw(1, 3));
    }

    #[test]
    fn choices_are_distinct_and_every_number_is_as_likely() {
        let mut random = Random::new(7, 0);
        let mut counts = [0; 6];
        for _ in 0..6000 {
            let chosen = random.choose(2, 6);
            assert_ne!(chosen[0], chosen[1]);
            counts[chosen[0]] += 1;
        }
        // 1000 each, standard deviation 29.
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
        let mut all = random.choose(9, 4);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
        assert!(random.choose(3, 0).is_empty());
    }

    #[test]
    fn orders_are_as_likely() {
        let mut random = Random::new(3, 0);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            let mut order = [0, 1, 2];
            random.shuffle(&mut order);
            *counts.entry(order).or_insert(0) += 1;
        }
        assert!(counts.len() == 6 && counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
