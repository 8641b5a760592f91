//! What is drawn for a feature: the same whichever worker draws, whatever else is scored, and apart for each purpose.

use explain::FeatureKey;
use scoring::Random;
use stage_kit::hash_bytes;

/// What something is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draw {
    /// Which samples a judge is shown.
    Samples,
    /// Which feature's explanation stands in as a baseline.
    OtherText,
    /// Images whatever the feature is on.
    RandomImages,
    /// Where its mask is moved to.
    MovedMask,
    /// Images that are given its activations.
    Shuffled,
}

/// The chance of one feature for one purpose.
pub(crate) fn random(seed: u64, key: &FeatureKey, draw: Draw) -> Random {
    Random::new(seed, stream(key).wrapping_add(draw as u64))
}

fn stream(key: &FeatureKey) -> u64 {
    let hash = hash_bytes(key.to_string().as_bytes());
    u64::from_str_radix(&hash[..16], 16).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_its_own_chance() {
        let stream = |text: &str| stream(&text.parse().unwrap());
        assert_ne!(stream("model.layers.1_feature2"), stream("model.layers.1_feature3"));
        assert_ne!(stream("model.layers.1_feature2"), stream("model.layers.2_feature2"));
        assert_ne!(stream("model.layers.1_feature2"), 0);
    }

    #[test]
    fn every_purpose_has_its_own_chance() {
        let key: FeatureKey = "model.layers.1_feature2".parse().unwrap();
        let drawn = |draw| random(1, &key, draw).choose(5, 1000);
        let all = [Draw::Samples, Draw::OtherText, Draw::RandomImages, Draw::MovedMask, Draw::Shuffled];
        let different: std::collections::BTreeSet<Vec<usize>> = all.into_iter().map(drawn).collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(drawn(Draw::Samples), drawn(Draw::Samples));
    }
}
