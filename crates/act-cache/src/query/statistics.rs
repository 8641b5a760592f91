//! [`FeatureStatistics`]: what can be said of every feature in one pass.

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sae_types::FeatureId;
use serde::Serialize;

use crate::{Activation, BaseTile, HookCache};

/// What can be said of a feature from all its activations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FeatureStatistics {
    /// The feature.
    pub feature: FeatureId,
    /// How many activations it has.
    pub n_activations: u64,
    /// In how many samples it is active.
    pub n_samples: u64,
    /// In how many samples it is active on the base tile.
    pub n_base_samples: u64,
    /// How many of its activations are on tokens of an image.
    pub n_image: u64,
    /// How many are on other tokens.
    pub n_text: u64,
    /// Share of the tokens it is active on.
    pub density: f64,
    /// Share of the images' tokens it is active on; 0 if there are none.
    pub image_density: f64,
    /// Share of the other tokens it is active on; 0 if there are none.
    pub text_density: f64,
    /// Mean of its activations, zeros not counted; 0 without any.
    pub mean: f64,
    /// Largest of its activations; 0 without any.
    pub max: f32,
    /// `T / (T + I)` of its mean activation `T` over text tokens and `I` over image tokens, zeros counted: 0 for a feature of
    /// images, 1 for one of text. It is 1 minus the modality score of arXiv 2504.11695. `None` if it is never active or the
    /// cache has only one kind of token.
    pub text_ratio: Option<f64>,
    /// How far it spreads over the base tile. Per sample: the standard deviation of the patches' centres weighted by
    /// activation, rows and columns each scaled to 0 to 1 and their variances added, relative to that of a map with the same
    /// activation on every patch. The mean over the samples it is active in on the base tile: 0 if always one patch,
    /// 1 for the whole tile, above 1 for opposite edges. `None` if it is never active there or the tile is one patch.
    pub spread: Option<f64>,
}

impl HookCache<'_> {
    /// Statistics of every stored feature, ascending, active or not. One pass over all activations on all
    /// threads of the current rayon pool; the result does not depend on their number.
    pub fn statistics(&self) -> Vec<FeatureStatistics> {
        self.stored().par_iter().map(|&feature| self.statistics_of(feature)).collect()
    }

    fn statistics_of(&self, feature: FeatureId) -> FeatureStatistics {
        let layout = &self.cache().manifest().token_layout;
        let slice = self.slice(feature);
        let n = slice.len() as u64;
        let (mut n_samples, mut n_base_samples, mut n_image, mut n_spread) = (0, 0, 0, 0u64);
        let (mut image_sum, mut sum, mut spreads, mut max) = (0.0, 0.0, 0.0, f32::NEG_INFINITY);
        for (sample, part) in slice.by_sample() {
            n_samples += 1;
            let record = self.cache().sample(sample);
            for activation in part.iter() {
                let value = f64::from(activation.value);
                sum += value;
                max = max.max(activation.value);
                if record.is_some_and(|record| record.is_image_token(activation.token, layout)) {
                    n_image += 1;
                    image_sum += value;
                }
            }
            let base = record.and_then(|record| record.base_tokens(layout)).zip(layout.base);
            let Some((tokens, tile)) = base else { continue };
            let on_base = || part.iter().filter(|activation| tokens.contains(&activation.token.0));
            n_base_samples += u64::from(on_base().next().is_some());
            if let Some(spread) = spread(on_base(), tokens.start, tile) {
                n_spread += 1;
                spreads += spread;
            }
        }
        let (image_tokens, text_tokens) =
            (self.n_image_tokens(), self.n_tokens().saturating_sub(self.n_image_tokens()));
        let share = |count: u64, of: u64| if of == 0 { 0.0 } else { count as f64 / of as f64 };
        let (image_mean, text_mean) =
            (image_sum / image_tokens as f64, (sum - image_sum) / text_tokens as f64);
        let both = image_tokens > 0 && text_tokens > 0 && n > 0;
        FeatureStatistics {
            feature,
            n_activations: n,
            n_samples,
            n_base_samples,
            n_image,
            n_text: n - n_image,
            density: share(n, self.n_tokens()),
            image_density: share(n_image, image_tokens),
            text_density: share(n - n_image, text_tokens),
            mean: if n == 0 { 0.0 } else { sum / n as f64 },
            max: if n == 0 { 0.0 } else { max },
            text_ratio: both.then(|| text_mean / (text_mean + image_mean)),
            spread: (n_spread > 0).then(|| spreads / n_spread as f64),
        }
    }
}

/// The spread of one sample's activations on the base tile, whose first token is `start`.
fn spread(on_base: impl Iterator<Item = Activation>, start: u32, tile: BaseTile) -> Option<f64> {
    let (rows, cols) = (f64::from(tile.rows), f64::from(tile.cols));
    let mut origin = None;
    let (mut weight, mut row, mut col, mut squares) = (0.0, 0.0, 0.0, 0.0);
    for activation in on_base {
        let (patch, w) = (activation.token.0 - start, f64::from(activation.value.abs()));
        let (r, c) = (f64::from(patch / tile.cols), f64::from(patch % tile.cols));
        // Relative to the first patch, so that one patch alone gives exactly 0.
        let &mut (first_r, first_c) = origin.get_or_insert((r, c));
        let (r, c) = ((r - first_r) / rows, (c - first_c) / cols);
        weight += w;
        row += w * r;
        col += w * c;
        squares += w * (r * r + c * c);
    }
    origin?;
    let variance = squares / weight - (row / weight).powi(2) - (col / weight).powi(2);
    // Of n equally weighted centres 1/n apart.
    let uniform = |n: f64| (n * n - 1.0) / (12.0 * n * n);
    let whole = uniform(rows) + uniform(cols);
    (whole > 0.0).then(|| (variance.max(0.0) / whole).sqrt())
}
