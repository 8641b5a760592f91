//! [`Progress`]: the counters of a run, and BatchTopK's running threshold.

/// Decay of the running mean of thresholds, once there are enough of them.
const DECAY: f64 = 0.999;

/// Counters that do not depend on the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    /// Batches whose gradients wait for the next optimizer step.
    pub(crate) pending: u32,
    pub(crate) optimizer_steps: u64,
    pub(crate) tokens: u64,
    pub(crate) threshold: Threshold,
}

impl Progress {
    /// Counts a batch of `rows` rows whose parts kept activations down to `smallest`.
    pub(crate) fn count(&mut self, rows: u64, smallest: &[Option<f32>], stepped: bool) {
        self.tokens += rows;
        self.pending += 1;
        let smallest = || smallest.iter().flatten();
        self.threshold.waiting_sum += smallest().copied().map(f64::from).sum::<f64>();
        self.threshold.waiting += smallest().count() as u64;
        if stepped {
            self.pending = 0;
            self.optimizer_steps += 1;
            self.threshold.update();
        }
    }

    /// Forgets batches that wait.
    pub(crate) fn drop_pending(&mut self) {
        self.pending = 0;
        (self.threshold.waiting, self.threshold.waiting_sum) = (0, 0.0);
    }
}

/// The running mean of the smallest activation that BatchTopK keeps of a batch, updated once per optimizer step with the mean
/// of its batches' (Bussmann et al. 2024, arXiv 2412.06410).
///
/// Its decay is `min(0.999, (1 + t) / (10 + t))` at update `t`, so that the first batches, from an untrained encoder, are soon
/// forgotten.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Threshold {
    pub(crate) mean: f64,
    pub(crate) updates: u64,
    /// Of batches since the last update.
    pub(crate) waiting_sum: f64,
    pub(crate) waiting: u64,
}

impl Threshold {
    pub(crate) fn value(&self) -> Option<f64> {
        (self.updates > 0).then_some(self.mean)
    }

    /// Goes on from a threshold that was found before.
    pub(crate) fn start_from(&mut self, threshold: f64) {
        *self = Self { mean: threshold, updates: 10_000, ..Self::default() };
    }

    pub(crate) fn rescale(&mut self, factor: f64) {
        self.mean *= factor;
    }

    fn update(&mut self) {
        if self.waiting == 0 {
            return;
        }
        let smallest = self.waiting_sum / self.waiting as f64;
        let decay = if self.updates == 0 {
            0.0
        } else {
            DECAY.min((1 + self.updates) as f64 / (10 + self.updates) as f64)
        };
        self.mean = decay * self.mean + (1.0 - decay) * smallest;
        self.updates += 1;
        (self.waiting, self.waiting_sum) = (0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_follows_the_last_batches() {
        let mut progress = Progress::default();
        assert_eq!(progress.threshold.value(), None);
        progress.count(5, &[Some(4.0)], true);
        assert_eq!(progress.threshold.value(), Some(4.0));
        // Two batches of one step count as their mean, and only when the step is taken.
        progress.count(5, &[Some(1.0)], false);
        assert_eq!((progress.threshold.value(), progress.pending), (Some(4.0), 1));
        progress.count(5, &[Some(3.0)], true);
        let decay = 2.0 / 11.0;
        assert_eq!(progress.threshold.value(), Some(decay * 4.0 + (1.0 - decay) * 2.0));
        for _ in 0..300 {
            progress.count(5, &[Some(1.0)], true);
        }
        assert!((progress.threshold.value().unwrap() - 1.0).abs() < 1e-6);
        assert_eq!((progress.optimizer_steps, progress.tokens, progress.pending), (302, 303 * 5, 0));
    }
}
