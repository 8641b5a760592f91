//! [`Images`]: whole pictures for detection, pictures with a part lit for fuzzing.

use std::collections::BTreeMap;

use act_cache::HookCache;
use anyhow::Result;
use explain::{Encoding, FeatureKey, HeatMap, Masking, Outcome, Shown, heat_map};
use explain_kit::{Pictures, hook_of};
use sae_types::{HookPoint, SampleId};
use scoring::{fuzz, samples};

use crate::judge::exam::{Content, Item, Items, Score};
use crate::judge::pick::{Picked, Picker};

/// The images of a cache.
pub(crate) struct Images {
    pub(crate) hooks: BTreeMap<HookPoint, HookCache<'static>>,
    pub(crate) pictures: Pictures,
    pub(crate) encoding: Encoding,
    pub(crate) masking: Masking,
    pub(crate) picker: Picker,
}

impl Images {
    pub(crate) fn items(&self, key: &FeatureKey, score: Score) -> Result<Items, Outcome> {
        let failed = |error: anyhow::Error| Outcome::Failed(format!("{error:#}"));
        let hook = hook_of(&self.hooks, &key.hook).map_err(|error| Outcome::Failed(error.told()))?;
        let picked = self.picker.pick(key, hook)?;
        match score {
            Score::Detection => Ok(self.whole(key, picked)),
            Score::Fuzz => self.lit(key, hook, picked).map_err(failed),
        }
    }

    /// Whole pictures; half of the negatives are hard ones.
    fn whole(&self, key: &FeatureKey, picked: Picked) -> Items {
        let Picked { positives, hard, easy, mut random } = picked;
        let positives = positives.into_iter().map(|(sample, score)| Shown::example(sample, score));
        let negatives = samples::negatives(hard.len(), easy.len(), self.picker.negatives, &mut random);
        let negatives = negatives.into_iter().map(|negative| {
            let sample = if negative.is_hard { hard[negative.at].sample } else { easy[negative.at] };
            Shown { hard: negative.is_hard, ..Shown::counterexample(sample) }
        });
        let positives = positives.filter_map(|shown| self.item(key, shown, None)).collect();
        let negatives = negatives.filter_map(|shown| self.item(key, shown, None)).collect();
        Items { positives, negatives, random }
    }

    /// Pictures lit where the feature is on; where it is not, in the same pictures; and where a feature that often comes with it is on, in pictures
    /// without it.
    fn lit(&self, key: &FeatureKey, hook: &HookCache<'_>, picked: Picked) -> Result<Items> {
        let Picked { positives: samples, hard, easy: _, mut random } = picked;
        let feature = hook.feature(key.feature)?;
        let (mut positives, mut heats) = (Vec::new(), Vec::new());
        for (sample, score) in samples {
            let heat = heat_map(&feature, sample)?;
            if let Some(item) = self.item(key, Shown::example(sample, score), Some(&heat)) {
                positives.push(item);
                heats.push((sample, heat));
            }
        }
        let mut negatives = Vec::new();
        for found in hard.iter().take(self.picker.negatives / 2) {
            let heat = heat_map(&hook.feature(found.neighbour)?, found.sample)?;
            let shown = Shown { hard: true, ..Shown::counterexample(found.sample) };
            negatives.extend(self.item(key, shown, Some(&heat)));
        }
        // Each picture once, and those that can be lit in yet another place again while more are wanted.
        let order = random.choose(heats.len(), heats.len());
        let mut taken: Vec<(SampleId, HeatMap)> = Vec::new();
        for at in order.iter().chain(&order).copied() {
            if negatives.len() >= self.picker.negatives {
                break;
            }
            let (sample, heat) = &heats[at];
            let Some(moved) = self.moved(heat, &mut random)? else { continue };
            let moved = (*sample, moved);
            if !taken.contains(&moved) {
                negatives.extend(self.item(key, Shown::counterexample(*sample), Some(&moved.1)));
                taken.push(moved);
            }
        }
        Ok(Items { positives, negatives, random })
    }

    /// The region that is lit, moved to where the feature is off; `None` if there is no such place.
    fn moved(&self, heat: &HeatMap, random: &mut scoring::Random) -> Result<Option<HeatMap>> {
        let (rows, cols) = heat.shape();
        let on: Vec<bool> = heat.values().iter().map(|&value| value > 0.0).collect();
        let wrong = fuzz::wrong_region(&heat.on(self.masking.cut), &on, rows, cols, random);
        Ok(wrong.map(|wrong| HeatMap::of_region(rows, cols, &wrong.patches)).transpose()?)
    }

    /// A picture, lit by a heat map if there is one; `None`, and a warning, if it cannot be shown.
    fn item(&self, key: &FeatureKey, shown: Shown, heat: Option<&HeatMap>) -> Option<Item> {
        match self.picture(shown.sample, heat) {
            Ok(picture) => Some(Item { shown, content: Content::Picture(picture) }),
            Err(error) => {
                tracing::warn!("{key}: an image is left out: {error:#}");
                None
            }
        }
    }

    fn picture(&self, sample: SampleId, heat: Option<&HeatMap>) -> Result<chat_client::Image> {
        let picture = self.pictures.get(sample)?;
        let lit = heat.map(|heat| self.masking.apply(&picture, heat));
        Ok(self.encoding.image(lit.as_ref().unwrap_or(&picture))?)
    }
}
