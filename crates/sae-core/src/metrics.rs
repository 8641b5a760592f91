//! How well an autoencoder reconstructs, which latents it uses, and which of them double others. Sums are f64, streamed over
//! any number of batches.

mod decoder_cosines;

pub use decoder_cosines::DecoderCosines;
use ndarray::ArrayView2;
use sae_types::SparseCodes;

/// The fraction of variance unexplained, `Σ ||x - x̂||² / Σ ||x - mean||²`, with the mean of **all** rows pushed
/// (not of each batch, as the training loss has it).
///
/// The variance is kept as a mean and a sum of squared deviations, merged batch by batch (Chan's method), so that a
/// large common offset costs no digits. The result depends on how rows were batched only in the last digits of f64.
///
/// Of a transcoder, `x` is the module's output and `x̂` what is predicted of it. Parts of a set (image and text tokens) are measured
/// each with its own value, and the whole by [`Reconstruction::merge`].
#[derive(Clone, Debug, Default)]
pub struct Reconstruction {
    rows: usize,
    mean: Vec<f64>,
    deviation: f64,
    residual: f64,
    sum_of_squares: f64,
    /// Rows that are not zero, which have a direction and a length to compare with.
    directed: usize,
    cosines: f64,
    ratios: f64,
}

impl Reconstruction {
    /// Nothing pushed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds vectors `x` `[n, d]` and their reconstructions.
    ///
    /// # Panics
    /// When the shapes differ, or `d` differs from that of earlier batches.
    #[track_caller]
    pub fn push(&mut self, x: ArrayView2<'_, f32>, reconstruction: ArrayView2<'_, f32>) {
        assert_eq!(x.dim(), reconstruction.dim(), "vectors against reconstructions");
        if x.nrows() == 0 {
            return;
        }
        let mut batch = Self { rows: x.nrows(), mean: vec![0.0; x.ncols()], ..Self::default() };
        for row in x.rows() {
            for (mean, &x) in batch.mean.iter_mut().zip(row) {
                *mean += f64::from(x) / batch.rows as f64;
            }
        }
        for (x, y) in x.rows().into_iter().zip(reconstruction.rows()) {
            let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
            for ((&x, &y), mean) in x.iter().zip(y).zip(&batch.mean) {
                let (x, y) = (f64::from(x), f64::from(y));
                batch.deviation += (x - mean).powi(2);
                batch.residual += (x - y).powi(2);
                xx += x * x;
                xy += x * y;
                yy += y * y;
            }
            batch.sum_of_squares += xx;
            if xx > 0.0 {
                batch.directed += 1;
                batch.ratios += (yy / xx).sqrt();
                if yy > 0.0 {
                    batch.cosines += xy / (xx.sqrt() * yy.sqrt());
                }
            }
        }
        self.merge(&batch);
    }

    /// Adds what another accumulator has seen.
    ///
    /// # Panics
    /// When both have seen rows, of different lengths.
    #[track_caller]
    pub fn merge(&mut self, other: &Self) {
        if other.rows == 0 {
            return;
        }
        if self.rows == 0 {
            self.clone_from(other);
            return;
        }
        assert_eq!(self.mean.len(), other.mean.len(), "length of the vectors against earlier ones");
        let (n, m) = (self.rows as f64, other.rows as f64);
        let mut between = 0.0;
        for (mean, other) in self.mean.iter_mut().zip(&other.mean) {
            let delta = other - *mean;
            between += delta * delta;
            *mean += delta * m / (n + m);
        }
        self.deviation += other.deviation + between * n * m / (n + m);
        self.residual += other.residual;
        self.sum_of_squares += other.sum_of_squares;
        self.directed += other.directed;
        self.cosines += other.cosines;
        self.ratios += other.ratios;
        self.rows += other.rows;
    }

    /// How many rows were pushed.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `Σ ||x - x̂||² / Σ ||x - mean||²`: 0 is perfect, 1 no better than the mean. `None` where all rows are equal.
    pub fn fvu(&self) -> Option<f64> {
        (self.deviation > 0.0).then(|| self.residual / self.deviation)
    }

    /// The uncentred `Σ ||x - x̂||² / Σ ||x||²`, never larger than the FVU. `None` where all rows are zero.
    pub fn nmse(&self) -> Option<f64> {
        (self.sum_of_squares > 0.0).then(|| self.residual / self.sum_of_squares)
    }

    /// The mean of `<x, x̂> / (||x|| ||x̂||)` over the rows that are not zero, 0 where `x̂` is zero. `None` where all rows are zero.
    pub fn cosine(&self) -> Option<f64> {
        (self.directed > 0).then(|| self.cosines / self.directed as f64)
    }

    /// The mean of `||x̂|| / ||x||` over the rows that are not zero: below 1 where reconstructions shrink. `None` where all rows
    /// are zero.
    pub fn norm_ratio(&self) -> Option<f64> {
        (self.directed > 0).then(|| self.ratios / self.directed as f64)
    }
}

/// How often each latent fires.
#[derive(Clone, Debug)]
pub struct Firing {
    rows: usize,
    counts: Vec<u64>,
}

impl Firing {
    /// Nothing pushed yet, for `num_latents` latents.
    pub fn new(num_latents: usize) -> Self {
        Self { rows: 0, counts: vec![0; num_latents] }
    }

    /// Adds the rows of `codes`.
    ///
    /// # Panics
    /// When the widths differ.
    #[track_caller]
    pub fn push(&mut self, codes: &SparseCodes) {
        assert_eq!(codes.num_latents(), self.counts.len(), "width of the codes");
        self.rows += codes.n_rows();
        for &latent in codes.latents() {
            self.counts[latent as usize] += 1;
        }
    }

    /// Adds what another accumulator has seen.
    ///
    /// # Panics
    /// When the widths differ.
    #[track_caller]
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(other.counts.len(), self.counts.len(), "width of the dictionary");
        self.rows += other.rows;
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
    }

    /// How many rows were pushed.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `[num_latents]` rows on which each latent fired.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Latents that fire on a row, on average. `None` without rows.
    pub fn l0(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.counts.iter().sum::<u64>() as f64 / self.rows as f64)
    }

    /// The share of latents that never fired. `None` without rows.
    pub fn dead_share(&self) -> Option<f64> {
        self.share(|count| count == 0)
    }

    /// The share of latents that fired on more than `frequency` of the rows (0.1 is customary). `None` without rows.
    pub fn dense_share(&self, frequency: f64) -> Option<f64> {
        let limit = frequency * self.rows as f64;
        self.share(|count| count as f64 > limit)
    }

    /// `[edges - 1]` how many latents have a `log10(fired / rows)` from one of `edges`, which rise, up to the next; below the
    /// first and at the last count with their neighbours. Latents that never fired have no logarithm and are in none.
    ///
    /// # Panics
    /// With fewer than two edges.
    #[track_caller]
    pub fn log10_histogram(&self, edges: &[f64]) -> Vec<u64> {
        assert!(edges.len() > 1, "{} edges, expected at least 2", edges.len());
        let mut bins = vec![0; edges.len() - 1];
        let inner = &edges[1..edges.len() - 1];
        for &count in self.counts.iter().filter(|&&count| count > 0) {
            let logarithm = (count as f64 / self.rows as f64).log10();
            bins[inner.partition_point(|&edge| edge <= logarithm)] += 1;
        }
        bins
    }

    fn share(&self, of: impl Fn(u64) -> bool) -> Option<f64> {
        let chosen = self.counts.iter().filter(|&&count| of(count)).count();
        (self.rows > 0 && !self.counts.is_empty()).then(|| chosen as f64 / self.counts.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Axis, array, s};
    use sae_types::FeatureId;

    use super::*;

    #[test]
    fn fvu_is_zero_for_the_vectors_and_one_for_their_mean() {
        // A common offset a million times the spread: naive sums of squares would lose it in f32 and most of it in f64.
        let x = Array2::from_shape_fn((257, 5), |(i, j)| 1e4 + ((i * 7 + j * 3) % 11) as f32 * 0.01);
        let mean = x.mapv(f64::from).mean_axis(Axis(0)).unwrap();
        let mean = Array2::from_shape_fn(x.dim(), |(_, j)| mean[j] as f32);
        for batch in [1, 2, 100, 257] {
            let (mut same, mut flat) = (Reconstruction::new(), Reconstruction::new());
            for start in (0..x.nrows()).step_by(batch) {
                let rows = s![start..(start + batch).min(x.nrows()), ..];
                same.push(x.slice(rows), x.slice(rows));
                flat.push(x.slice(rows), mean.slice(rows));
            }
            assert_eq!(same.fvu(), Some(0.0));
            // The mean rounded to f32 is off by up to 5e-4.
            let fvu = flat.fvu().unwrap();
            assert!((fvu - 1.0).abs() < 1e-3, "batches of {batch}: {fvu}");
            assert!(flat.nmse().unwrap() < 1e-9);
            assert_eq!(flat.rows(), 257);
        }
        assert_eq!(Reconstruction::new().fvu(), None);
    }

    #[test]
    fn fvu_by_hand() {
        let mut metric = Reconstruction::new();
        metric.push(array![[0.0, 0.0]].view(), array![[0.0, 1.0]].view());
        metric.push(array![[2.0, 4.0]].view(), array![[2.0, 4.0]].view());
        // Mean (1, 2), deviations 1 + 4 twice, residual 1.
        assert_eq!(metric.fvu(), Some(0.1));
        assert_eq!(metric.nmse(), Some(1.0 / 20.0));
    }

    #[test]
    fn cosine_and_norm_ratio_by_hand() {
        let x = array![[3.0, 4.0], [0.0, 2.0], [0.0, 0.0], [1.0, 0.0]];
        let y = array![[3.0, 4.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]];
        let mut metric = Reconstruction::new();
        assert_eq!((metric.cosine(), metric.norm_ratio()), (None, None));
        for rows in [0..1, 1..4] {
            metric.push(x.slice(s![rows.clone(), ..]), y.slice(s![rows, ..]));
        }
        let root = 0.5_f64.sqrt();
        assert!((metric.cosine().unwrap() - (1.0 + root) / 3.0).abs() < 1e-15);
        assert!((metric.norm_ratio().unwrap() - (1.0 + root) / 3.0).abs() < 1e-15);
    }

    #[test]
    fn firing_by_hand() {
        let mut codes = SparseCodes::new(4);
        codes.push_row([(FeatureId(0), 1.0), (FeatureId(2), 1.0)]).unwrap();
        codes.push_row([(FeatureId(0), 1.0)]).unwrap();
        let mut firing = Firing::new(4);
        assert_eq!((firing.l0(), firing.dead_share()), (None, None));
        firing.push(&codes);
        assert_eq!(firing.counts(), [2, 0, 1, 0]);
        assert_eq!(
            (firing.l0(), firing.dead_share(), firing.dense_share(0.5)),
            (Some(1.5), Some(0.5), Some(0.25))
        );
        assert_eq!(firing.log10_histogram(&[-1.0, -0.1, 0.0]), [1, 1]);
        assert_eq!(firing.log10_histogram(&[-0.2, -0.1]), [2]);
        let half = firing.clone();
        firing.merge(&half);
        assert_eq!((firing.rows(), firing.counts()), (4, &[4, 0, 2, 0][..]));
    }
}
