//! How alike the images are in which a feature is strong, without any explanation.
//!
//! The monosemanticity score of Pach et al. (2504.02821): over all pairs of images the mean similarity of their embeddings,
//! weighted by how strong the feature is in both,
//!
//! ```text
//! MS = Σ_{a<b} r_a r_b cos(E_a, E_b) / Σ_{a<b} r_a r_b,     r = (z - min z) / (max z - min z) over all images.
//! ```
//!
//! The pairs need no loop over pairs: `Σ_{a<b} r_a r_b e_a·e_b = Σ_b r_b e_b · Σ_{a<b} r_a e_a` for unit vectors `e`, so one pass
//! over the images with a running sum does, `O(n d)`. That equals `(|Σ r_a e_a|² - Σ r_a²) / ((Σ r_a)² - Σ r_a²)`, but subtracts
//! nothing, which matters where one image outweighs all others. The division by `max z - min z` cancels. Images in which the
//! feature is off weigh nothing where `min z` is 0, so they are not visited: all features together cost `O(nonzeros · d)`.

use rayon::prelude::*;

use crate::ScoringError;

/// Numbers that are summed side by side, so that the compiler makes vectors of them; their order is the same on every machine.
const LANES: usize = 8;

/// An embedding of every image of a data set, `[n_images, dimension]`, row by row, with the directions taken in f64.
#[derive(Clone, Debug)]
pub struct Embeddings<'a> {
    values: &'a [f32],
    dimension: usize,
    inverse_lengths: Vec<f64>,
}

impl<'a> Embeddings<'a> {
    /// Takes embeddings of any length but 0.
    ///
    /// # Errors
    /// When one has no direction: its length is 0 or no number.
    ///
    /// # Panics
    /// When the values are not whole rows of `dimension` numbers.
    #[track_caller]
    pub fn new(values: &'a [f32], dimension: usize) -> Result<Self, ScoringError> {
        assert!(
            dimension > 0 && values.len().is_multiple_of(dimension),
            "{} values are no rows of {dimension} numbers",
            values.len()
        );
        let inverse = |(image, row): (usize, &[f32])| {
            let length = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            if length > 0.0 && length.is_finite() {
                Ok(1.0 / length)
            } else {
                Err(ScoringError::Embedding { image, length })
            }
        };
        let inverse_lengths =
            values.par_chunks_exact(dimension).enumerate().map(inverse).collect::<Result<_, _>>()?;
        Ok(Self { values, dimension, inverse_lengths })
    }

    /// How many images.
    pub fn len(&self) -> usize {
        self.inverse_lengths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.inverse_lengths.is_empty()
    }

    /// The score of a feature that is on in these images with these activations, each image once, and off in all others. `None`
    /// where it is not defined: fewer than two images are above the weakest, as of a feature that is on in fewer than two or is
    /// the same in all.
    ///
    /// Sums are f64. The result depends on the order of the images by rounding only, and not on threads.
    ///
    /// # Errors
    /// When an image has no embedding, or an activation is negative or no finite number.
    pub fn monosemanticity(&self, on: &[(u32, f32)]) -> Result<Option<f64>, ScoringError> {
        for &(image, value) in on {
            if image as usize >= self.len() {
                return Err(ScoringError::UnknownImage { image, n_images: self.len() });
            }
            if !(value.is_finite() && value >= 0.0) {
                return Err(ScoringError::Activation { image, value });
            }
        }
        let is_off_somewhere = on.len() < self.len();
        let least =
            if is_off_somewhere { 0.0 } else { on.iter().map(|on| on.1).fold(f32::INFINITY, f32::min) };
        let mut sum = vec![0.0; self.dimension];
        let (mut weight, mut alike, mut pairs, mut above) = (0.0, 0.0, 0.0, 0u64);
        for &(image, value) in on.iter().filter(|on| on.1 > least) {
            // Both exact in f64.
            let r = f64::from(value) - f64::from(least);
            let image = image as usize;
            let row = &self.values[image * self.dimension..][..self.dimension];
            let scale = r * self.inverse_lengths[image];
            alike += scale * dot_then_add(row, scale, &mut sum);
            pairs += r * weight;
            weight += r;
            above += 1;
        }
        Ok((above >= 2).then(|| alike / pairs))
    }

    /// The scores of many features, in parallel and in order. `on` gives a feature's images, from wherever they lie: no more
    /// features than there are threads are held at a time.
    ///
    /// # Errors
    /// The first that `on` or [`Self::monosemanticity`] gives.
    pub fn monosemanticity_of<E>(
        &self,
        n_features: usize,
        on: impl Fn(usize) -> Result<Vec<(u32, f32)>, E> + Sync,
    ) -> Result<Vec<Option<f64>>, E>
    where
        E: From<ScoringError> + Send,
    {
        let score = |feature| Ok(self.monosemanticity(&on(feature)?)?);
        (0..n_features).into_par_iter().map(score).collect()
    }
}

/// `row · sum` in f64 before `scale * row` is added to `sum`.
fn dot_then_add(row: &[f32], scale: f64, sum: &mut [f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (rows, row_rest) = row.as_chunks::<LANES>();
    let (sums, sum_rest) = sum.as_chunks_mut::<LANES>();
    for (row, sum) in rows.iter().zip(sums) {
        for lane in 0..LANES {
            let value = f64::from(row[lane]);
            lanes[lane] += value * sum[lane];
            sum[lane] += scale * value;
        }
    }
    let mut dot: f64 = lanes.iter().sum();
    for (&value, sum) in row_rest.iter().zip(sum_rest) {
        dot += f64::from(value) * *sum;
        *sum += scale * f64::from(value);
    }
    dot
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Random;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, 0);
        (0..n).map(|_| random.below(2_000_001) as f32 / 1_000_000.0 - 1.0).collect()
    }

    /// The definition, pair by pair, zeros included.
    fn pair_by_pair(values: &[f32], dimension: usize, activations: &[f32]) -> Option<f64> {
        let unit: Vec<Vec<f64>> = values
            .chunks_exact(dimension)
            .map(|row| {
                let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
                row.iter().map(|&x| f64::from(x) / length).collect()
            })
            .collect();
        let (least, most) = activations
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &z| (a.min(z.into()), b.max(z.into())));
        let r: Vec<f64> = activations.iter().map(|&z| (f64::from(z) - least) / (most - least)).collect();
        let (mut alike, mut pairs) = (0.0, 0.0);
        for a in 0..r.len() {
            for b in a + 1..r.len() {
                let cos: f64 = unit[a].iter().zip(&unit[b]).map(|(x, y)| x * y).sum();
                alike += r[a] * r[b] * cos;
                pairs += r[a] * r[b];
            }
        }
        (pairs > 0.0).then(|| alike / pairs)
    }

    fn sparse(activations: &[f32]) -> Vec<(u32, f32)> {
        (0..).zip(activations.iter().copied()).filter(|on| on.1 != 0.0).collect()
    }

    #[test]
    fn three_images_by_hand() {
        // Lengths 2, 1 and 5; cosines 0 (first, second), 0.6 (first, third), 0.8 (second, third).
        let values = [2.0, 0.0, 0.0, 1.0, 3.0, 4.0];
        let embeddings = Embeddings::new(&values, 2).unwrap();
        // All on, weakest 1: r is 0, 1, 3 up to scale, so only the second and the third count.
        let score = embeddings.monosemanticity(&[(0, 1.0), (1, 2.0), (2, 4.0)]).unwrap().unwrap();
        assert!((score - 0.8).abs() < 1e-15);
        // Off in the second: r is 1 and 2.
        let score = embeddings.monosemanticity(&[(0, 1.0), (2, 2.0)]).unwrap().unwrap();
        assert!((score - 0.6).abs() < 1e-15);
        // A fourth image, off, makes the first three weigh 1, 2, 4: (2 · 0 + 4 · 0.6 + 8 · 0.8) / 14.
        let values = [2.0, 0.0, 0.0, 1.0, 3.0, 4.0, 1.0, 1.0];
        let embeddings = Embeddings::new(&values, 2).unwrap();
        let score = embeddings.monosemanticity(&[(0, 1.0), (1, 2.0), (2, 4.0)]).unwrap().unwrap();
        assert!((score - 8.8 / 14.0).abs() < 1e-15);
    }

    #[test]
    fn undefined_scores_are_none() {
        let values = noise(12, 1);
        let embeddings = Embeddings::new(&values, 3).unwrap();
        for on in [
            &[][..],
            &[(2, 1.0)],
            // On everywhere and the same, and on everywhere with one above the weakest.
            &[(0, 2.0), (1, 2.0), (2, 2.0), (3, 2.0)],
            &[(0, 2.0), (1, 2.0), (2, 2.5), (3, 2.0)],
        ] {
            assert_eq!(embeddings.monosemanticity(on).unwrap(), None, "{on:?}");
        }
    }

    #[test]
    fn identical_images_score_1() {
        let values = [0.3, -0.2, 0.9].repeat(5);
        let embeddings = Embeddings::new(&values, 3).unwrap();
        let score = embeddings.monosemanticity(&[(0, 0.1), (3, 5.0), (4, 2.0)]).unwrap().unwrap();
        assert!((score - 1.0).abs() < 1e-14);
    }

    #[test]
    fn one_image_may_outweigh_the_others() {
        // The subtracted form would lose seven digits here.
        let values = noise(8 * 5, 3);
        let mut activations = [1e-8; 8];
        activations[5] = 1.0;
        activations[6] = 0.0;
        let embeddings = Embeddings::new(&values, 5).unwrap();
        let score = embeddings.monosemanticity(&sparse(&activations)).unwrap().unwrap();
        let want = pair_by_pair(&values, 5, &activations).unwrap();
        assert!((score - want).abs() < 1e-13, "{score} {want}");
    }

    proptest! {
        #[test]
        fn the_pass_equals_the_loop(
            activations in prop::collection::vec(prop_oneof![Just(0.0f32), 0.01f32..9.0], 2..40),
            dimension in 1usize..20,
            all_on: bool,
            seed: u64,
        ) {
            let lift = if all_on { 0.5 } else { 0.0 };
            let activations: Vec<f32> = activations.iter().map(|z| z + lift).collect();
            let values = noise(activations.len() * dimension, seed);
            prop_assume!(values.chunks_exact(dimension).all(|row| row.iter().any(|&x| x != 0.0)));
            let embeddings = Embeddings::new(&values, dimension).unwrap();
            let got = embeddings.monosemanticity(&sparse(&activations)).unwrap();
            let want = pair_by_pair(&values, dimension, &activations);
            prop_assert_eq!(got.is_some(), want.is_some());
            if let (Some(got), Some(want)) = (got, want) {
                prop_assert!((got - want).abs() < 1e-10, "{} {}", got, want);
            }
        }
    }

    #[test]
    fn many_features_come_in_order() {
        let values = noise(50 * 16, 8);
        let embeddings = Embeddings::new(&values, 16).unwrap();
        let on = |feature: usize| -> Result<Vec<(u32, f32)>, ScoringError> {
            Ok((0..feature as u32 % 7).map(|at| (at * 7, 1.0 + at as f32)).collect())
        };
        let scores = embeddings.monosemanticity_of(100, on).unwrap();
        for (feature, &score) in scores.iter().enumerate() {
            assert_eq!(score, embeddings.monosemanticity(&on(feature).unwrap()).unwrap());
        }
        assert_eq!(scores.iter().filter(|score| score.is_none()).count(), 30);
        let broken = |_| Ok::<_, ScoringError>(vec![(50, 1.0)]);
        assert!(embeddings.monosemanticity_of(3, broken).is_err());
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        assert!(matches!(
            Embeddings::new(&[1.0, 0.0, 0.0, 0.0], 2),
            Err(ScoringError::Embedding { image: 1, length: 0.0 })
        ));
        let embeddings = Embeddings::new(&[1.0, 0.0], 2).unwrap();
        for on in [(1, 1.0), (0, -1.0), (0, f32::NAN), (0, f32::INFINITY)] {
            assert!(embeddings.monosemanticity(&[on]).is_err(), "{on:?}");
        }
    }

    #[test]
    #[should_panic(expected = "3 values are no rows of 2 numbers")]
    fn rows_are_whole() {
        let _ = Embeddings::new(&[1.0, 2.0, 3.0], 2);
    }
}
