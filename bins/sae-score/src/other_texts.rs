//! [`OtherTexts`]: for each feature what another one was said to show, the baseline of every explanation.

use std::collections::BTreeMap;

use explain::FeatureKey;
use explain_kit::Texts;
use scoring::baselines::OtherExplanations;

use crate::chance::{Draw, random};

/// Explanations of other features.
#[derive(Debug, Default)]
pub(crate) struct OtherTexts {
    /// By the feature that is held against them; none of one for which there is none.
    pub(crate) texts: Texts,
    /// Of how many features there is none, since all others are said to show the same.
    pub(crate) without: usize,
}

impl OtherTexts {
    /// Draws for each feature another one that is said to show something else, each as likely. A feature's draw depends on the seed and on what
    /// is said of all features, and on nothing else, so that every worker comes to the same.
    pub(crate) fn of<'t>(said: impl Iterator<Item = (&'t FeatureKey, &'t str)>, seed: u64) -> Self {
        let (keys, said): (Vec<&FeatureKey>, Vec<&str>) = said.unzip();
        let others = OtherExplanations::new(&said);
        let other = |(feature, key): (usize, &&FeatureKey)| {
            let source = others.draw(feature, &mut random(seed, key, Draw::OtherText))?;
            Some((FeatureKey::clone(key), said[source].to_owned()))
        };
        let texts: BTreeMap<FeatureKey, String> = keys.iter().enumerate().filter_map(other).collect();
        let without = keys.len() - texts.len();
        if without > 0 {
            tracing::warn!(
                "{without} of {} features are held against no other explanation: all others are explained alike",
                keys.len()
            );
        }
        Self { texts: Texts::new(texts), without }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(feature: usize) -> FeatureKey {
        format!("model.layers.1_feature{feature}").parse().unwrap()
    }

    fn drawn(said: &[(FeatureKey, String)], seed: u64) -> OtherTexts {
        OtherTexts::of(said.iter().map(|(key, text)| (key, text.as_str())), seed)
    }

    #[test]
    fn every_feature_gets_what_another_was_said_to_show() {
        let mut said: Vec<(FeatureKey, String)> =
            (0..20).map(|feature| (key(feature), format!("thing {}", feature / 2))).collect();
        let others = drawn(&said, 7);
        assert_eq!(others.without, 0);
        for (key, own) in &said {
            let other = others.texts.get(key).unwrap();
            assert!(other != own && said.iter().any(|(_, text)| text == other), "{own} {other}");
        }
        assert!(said.iter().any(|(key, _)| others.texts.get(key) != drawn(&said, 8).texts.get(key)));
        // In whatever order they come.
        said.reverse();
        said.sort_by_key(|(key, _)| key.feature);
        let again = drawn(&said, 7);
        assert!(said.iter().all(|(key, _)| again.texts.get(key) == others.texts.get(key)));
    }

    #[test]
    fn features_explained_alike_have_none() {
        let mut said: Vec<(FeatureKey, String)> =
            (0..3).map(|feature| (key(feature), "A wall.".to_owned())).collect();
        let others = drawn(&said, 7);
        assert!(others.without == 3 && said.iter().all(|(key, _)| !others.texts.contains(key)));
        said.push((key(3), "a door".to_owned()));
        let others = drawn(&said, 7);
        let given: Vec<&str> = said.iter().map(|(key, _)| others.texts.get(key).unwrap()).collect();
        assert_eq!((others.without, given), (0, vec!["a door", "a door", "a door", "A wall."]));
    }
}
