//! [`Order`]: which sample comes when, over all epochs.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use mm_data::shuffled_order;

/// The samples of a run. A pure function of seed and sizes, so that a position in it is all a resumed run needs.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Samples to train on, in the order of the first epoch.
    samples: Arc<Vec<u32>>,
    epochs: usize,
    seed: u64,
}

impl Order {
    /// Shuffles `len` samples and holds out the last `held_out` of them, which are returned beside the order of at most `limit`
    /// of the others.
    pub(crate) fn new(
        len: usize,
        held_out: usize,
        limit: Option<NonZeroUsize>,
        epochs: NonZeroUsize,
        seed: u64,
    ) -> (Self, Vec<u32>) {
        let mut samples = shuffled_order(len, seed);
        let held_out = samples.split_off(len.saturating_sub(held_out));
        samples.truncate(limit.map_or(usize::MAX, NonZeroUsize::get));
        (Self { samples: Arc::new(samples), epochs: epochs.get(), seed }, held_out)
    }

    /// How many samples all epochs have together.
    pub(crate) fn len(&self) -> usize {
        self.samples.len() * self.epochs
    }

    /// The samples from position `start` on.
    pub(crate) fn from(&self, start: usize) -> impl Iterator<Item = u32> + Send + use<> {
        let Self { samples, epochs, seed } = self.clone();
        let per_epoch = samples.len().max(1);
        (start / per_epoch..epochs).flat_map(move |epoch| {
            let first = if epoch == start / per_epoch { start % per_epoch } else { 0 };
            // The first epoch has the samples as they are: shuffled already.
            let permuted =
                (epoch > 0).then(|| shuffled_order(samples.len(), seed.wrapping_add(epoch as u64)));
            let samples = Arc::clone(&samples);
            (first..samples.len()).map(move |at| match &permuted {
                None => samples[at],
                Some(permuted) => samples[permuted[at] as usize],
            })
        })
    }
}

/// Which share of each batch of `batch` samples is one process's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) batch: usize,
}

impl Share {
    /// Its part of a batch of `samples` samples, of the last batch never more than of the others.
    pub(crate) fn of(self, samples: usize) -> Range<usize> {
        collectives::share(samples, self.rank, self.size)
    }

    /// Its samples of the `len` positions of `samples`, which start at position `start`, the first of a batch.
    pub(crate) fn choose(
        self,
        samples: impl Iterator<Item = u32> + Send,
        start: usize,
        len: usize,
    ) -> impl Iterator<Item = u32> + Send {
        let chosen = (start..).zip(samples).filter(move |(position, _)| {
            let within = position % self.batch;
            self.of(self.batch.min(len - (position - within))).contains(&within)
        });
        chosen.map(|(_, sample)| sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn every_epoch_has_every_sample_once_and_another_order() {
        let (order, held_out) = Order::new(20, 5, None, size(3), 7);
        assert_eq!((order.len(), held_out.len()), (45, 5));
        let all: Vec<u32> = order.from(0).collect();
        let epochs: Vec<&[u32]> = all.chunks(15).collect();
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        for epoch in epochs {
            let mut sorted: Vec<u32> = epoch.iter().chain(&held_out).copied().collect();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..20));
        }
    }

    #[test]
    fn going_on_from_a_position_gives_the_rest() {
        let (order, _) = Order::new(10, 2, Some(size(7)), size(3), 1);
        let all: Vec<u32> = order.from(0).collect();
        assert_eq!(all.len(), 21);
        for start in 0..=21 {
            assert!(order.from(start).eq(all[start..].iter().copied()), "from {start}");
        }
    }

    #[test]
    fn shares_of_every_batch_make_up_the_batch() {
        let (order, _) = Order::new(10, 0, None, size(2), 3);
        let all: Vec<u32> = order.from(0).collect();
        for (ranks, batch) in [(1, 4), (2, 4), (3, 4), (3, 7)] {
            for start in [0, batch] {
                let mut shares: Vec<_> = (0..ranks)
                    .map(|rank| Share { rank, size: ranks, batch }.choose(order.from(start), start, 20))
                    .collect();
                let mut together = Vec::new();
                for first in (start..20).step_by(batch) {
                    for (rank, share) in shares.iter_mut().enumerate() {
                        let count = Share { rank, size: ranks, batch }.of(batch.min(20 - first)).len();
                        together.extend(share.take(count));
                    }
                }
                assert_eq!(together, all[start..], "{ranks} ranks, batches of {batch}, from {start}");
                assert!(shares.into_iter().all(|mut share| share.next().is_none()));
            }
        }
    }
}
