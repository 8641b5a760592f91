//! [`Effects`]: what each feature adds to the score on each token.

use std::ops::Range;

use sae_types::{FeatureId, HookPoint, TokenIndex};

/// What one feature adds to the score on one token. Positive supports the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effect {
    /// The feature.
    pub feature: FeatureId,
    /// The token, counted from the start of the prompt.
    pub token: TokenIndex,
    /// The effect on the score, in logits.
    pub value: f32,
}

/// The effects at one hook point for one question: those of features that are on, each on each of its tokens, and those of
/// what is no feature. Features that are off have none.
#[derive(Clone, Debug, PartialEq)]
pub struct Effects {
    /// Where.
    pub point: HookPoint,
    /// The number of latents of the autoencoder.
    pub num_latents: usize,
    /// The length of the prompt.
    pub n_tokens: usize,
    /// By feature, then by token.
    entries: Vec<Effect>,
    /// Of each token's reconstruction error, `<x - x̂, g>`, `[n_tokens]`; empty where the method drops the error.
    pub error: Vec<f32>,
    /// Of what each token's reconstruction holds beside features, `<b_dec, g>` and a transcoder's skip connection, `[n_tokens]`;
    /// empty where the method gives none.
    pub bias: Vec<f32>,
}

/// How the effects of a feature on several tokens become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pool {
    /// Their sum: what the feature adds in all.
    #[default]
    Sum,
    /// Their mean over the tokens, those included where the feature is off. It ranks as the sum does.
    Mean,
    /// The largest, at least 0 if the feature is off on one of the tokens.
    Max,
}

impl Effects {
    /// Takes effects in any order.
    ///
    /// # Panics
    /// When a feature or a token is out of range, or `error` or `bias` are neither empty nor one per token.
    #[track_caller]
    pub fn new(
        point: HookPoint,
        num_latents: usize,
        n_tokens: usize,
        mut entries: Vec<Effect>,
        [error, bias]: [Vec<f32>; 2],
    ) -> Self {
        entries.sort_unstable_by_key(|entry| (entry.feature, entry.token));
        assert!(
            entries.last().is_none_or(|entry| entry.feature.index() < num_latents),
            "a feature out of range"
        );
        assert!(entries.iter().all(|entry| entry.token.index() < n_tokens), "a token out of range");
        for list in [&error, &bias] {
            assert!(list.is_empty() || list.len() == n_tokens, "{} of {n_tokens} tokens", list.len());
        }
        Self { point, num_latents, n_tokens, entries, error, bias }
    }

    /// All effects of features, by feature, then by token.
    pub fn entries(&self) -> &[Effect] {
        &self.entries
    }

    /// The effects of one feature, by token.
    pub fn of(&self, feature: FeatureId) -> &[Effect] {
        let start = self.entries.partition_point(|entry| entry.feature < feature);
        let end = self.entries.partition_point(|entry| entry.feature <= feature);
        &self.entries[start..end]
    }

    /// The effects of one feature on every token, `[n_tokens]`.
    pub fn row(&self, feature: FeatureId) -> Vec<f32> {
        let mut row = vec![0.0; self.n_tokens];
        for entry in self.of(feature) {
            row[entry.token.index()] = entry.value;
        }
        row
    }

    /// What each feature that is on among `tokens` adds there, ascending by feature; sums are f64.
    pub fn pooled(&self, tokens: &Tokens, pool: Pool) -> Vec<(FeatureId, f64)> {
        let groups = self.entries.chunk_by(|a, b| a.feature == b.feature);
        groups.filter_map(|group| Some((group[0].feature, pooled(group, tokens, pool)?))).collect()
    }

    /// The same of one feature; `None` where it is off among `tokens`.
    pub fn pooled_of(&self, feature: FeatureId, tokens: &Tokens, pool: Pool) -> Option<f64> {
        pooled(self.of(feature), tokens, pool)
    }

    /// The `n` features that support the answer most, best first; the lower feature of equals first.
    pub fn top(&self, n: usize, tokens: &Tokens, pool: Pool) -> Vec<(FeatureId, f64)> {
        first(n, self.pooled(tokens, pool), |value| value)
    }

    /// The `n` features that move the score most in either direction, summed over all tokens; the lower feature of equals first.
    pub fn strongest(&self, n: usize) -> Vec<(FeatureId, f64)> {
        first(n, self.pooled(&Tokens::all(self.n_tokens), Pool::Sum), f64::abs)
    }

    /// The sum of all effects, those of errors and biases included, in f64.
    pub fn total(&self) -> f64 {
        let features = self.entries.iter().map(|entry| entry.value);
        features.chain(self.error.iter().copied()).chain(self.bias.iter().copied()).map(f64::from).sum()
    }

    /// All of it as msae stores it, `[num_latents, n_tokens]` row by row: 4 bytes each, 0 where a feature is off.
    pub fn dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.num_latents * self.n_tokens];
        for entry in &self.entries {
            dense[entry.feature.index() * self.n_tokens + entry.token.index()] = entry.value;
        }
        dense
    }
}

/// One number of a feature's effects.
fn pooled(own: &[Effect], tokens: &Tokens, pool: Pool) -> Option<f64> {
    let n = tokens.len();
    let values = own.iter().filter(|entry| tokens.holds(entry.token)).map(|entry| f64::from(entry.value));
    let (count, sum, max) = values.fold((0, 0.0, f64::NEG_INFINITY), |(count, sum, max), value| {
        (count + 1, sum + value, f64::max(max, value))
    });
    (count > 0).then(|| match pool {
        Pool::Sum => sum,
        Pool::Mean => sum / n as f64,
        Pool::Max if count < n => max.max(0.0),
        Pool::Max => max,
    })
}

fn first(n: usize, mut features: Vec<(FeatureId, f64)>, by: impl Fn(f64) -> f64) -> Vec<(FeatureId, f64)> {
    features.sort_by(|a, b| by(b.1).total_cmp(&by(a.1)).then(a.0.cmp(&b.0)));
    features.truncate(n);
    features
}

/// A set of a prompt's tokens, as ranges of positions that ascend and do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(Vec<Range<usize>>);

impl Tokens {
    /// All tokens of a prompt.
    pub fn all(n_tokens: usize) -> Self {
        Self(std::iter::once(0..n_tokens).collect())
    }

    /// The tokens of all images: base tiles, high-resolution tiles and newlines.
    pub fn images(layout: &lmm_prep::TokenLayout) -> Self {
        Self(layout.images.iter().map(lmm_prep::ImageSpan::positions).collect())
    }

    /// The tokens that are no image's.
    pub fn text(layout: &lmm_prep::TokenLayout) -> Self {
        let mut ranges = Vec::new();
        let mut from = 0;
        for image in Self::images(layout).0 {
            ranges.push(from..image.start);
            from = image.end;
        }
        ranges.push(from..layout.n_tokens);
        Self(ranges)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a token is one of them.
    pub fn holds(&self, token: TokenIndex) -> bool {
        self.0.iter().any(|range| range.contains(&token.index()))
    }

    /// Their positions, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.0.iter().cloned().flatten()
    }
}

#[cfg(test)]
mod tests {
    use lmm_prep::{ImageSpan, TokenLayout};

    use super::*;

    fn effects(entries: &[(u32, u32, f32)]) -> Effects {
        let entries = entries.iter().map(|&(feature, token, value)| Effect {
            feature: FeatureId(feature),
            token: TokenIndex(token),
            value,
        });
        let others = [vec![0.5; 6], vec![0.25; 6]];
        Effects::new(HookPoint::layer(1), 8, 6, entries.collect(), others)
    }

    fn ids(features: &[(FeatureId, f64)]) -> Vec<(u32, f64)> {
        features.iter().map(|&(feature, value)| (feature.0, value)).collect()
    }

    #[test]
    fn features_are_ranked_over_image_and_text_tokens_apart() {
        let image = ImageSpan { start: 1, base: (1, 1), high: (1, 1) };
        let layout = TokenLayout { images: vec![image], n_tokens: 6 };
        let (images, text) = (Tokens::images(&layout), Tokens::text(&layout));
        assert_eq!(images.positions().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(text.positions().collect::<Vec<_>>(), [0, 4, 5]);
        let effects =
            effects(&[(7, 3, 1.0), (2, 1, 3.0), (2, 2, -1.5), (2, 4, -4.0), (3, 1, -2.0), (5, 0, 1.0)]);
        assert_eq!(ids(&effects.top(9, &images, Pool::Sum)), [(2, 1.5), (7, 1.0), (3, -2.0)]);
        assert_eq!(ids(&effects.top(2, &images, Pool::Mean)), [(2, 0.5), (7, 1.0 / 3.0)]);
        assert_eq!(ids(&effects.top(9, &images, Pool::Max)), [(2, 3.0), (7, 1.0), (3, 0.0)]);
        assert_eq!(ids(&effects.top(9, &text, Pool::Sum)), [(5, 1.0), (2, -4.0)]);
        assert_eq!(effects.pooled_of(FeatureId(2), &text, Pool::Mean), Some(-4.0 / 3.0));
        assert_eq!(effects.pooled_of(FeatureId(3), &text, Pool::Sum), None);
        assert_eq!(ids(&effects.strongest(2)), [(2, -2.5), (3, -2.0)]);
        assert_eq!(effects.total(), -2.5 - 2.0 + 2.0 + 6.0 * 0.75);
    }

    #[test]
    fn rows_and_the_dense_table_are_the_entries() {
        let effects = effects(&[(2, 4, 1.0), (2, 0, 2.0), (7, 5, 3.0)]);
        assert_eq!(effects.of(FeatureId(2)).iter().map(|entry| entry.value).collect::<Vec<_>>(), [2.0, 1.0]);
        assert_eq!(effects.row(FeatureId(2)), [2.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(effects.row(FeatureId(3)), [0.0; 6]);
        let dense = effects.dense();
        for feature in 0..8 {
            assert_eq!(dense[feature * 6..][..6], effects.row(FeatureId(feature as u32)), "{feature}");
        }
    }
}
