//! Which features a run is about.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use explain::FeatureKey;
use sae_types::{FeatureId, Filters, HookPoint};
use stage_kit::World;

use crate::ExplainKitError;

/// Which features a run is about: flatten it into a binary's arguments.
#[derive(Debug, clap::Args)]
pub struct FeatureArgs {
    /// Only these hook points; default: all there are
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "HOOKPOINT", help_heading = "Features")]
    hookpoints: Vec<HookPoint>,
    /// JSON file of the only features to ask about, {"model.layers.24": [0, 1, 2]}
    #[arg(long, value_name = "FILE", help_heading = "Features")]
    filters: Option<PathBuf>,
    /// Only these features of each hook point, 0-99,200 with both ends
    #[arg(long, value_delimiter = ',', value_name = "LIST", help_heading = "Features")]
    features: Vec<Features>,
}

/// `7`, or `0-99` with 99.
#[derive(Clone, Debug)]
struct Features(std::ops::RangeInclusive<u32>);

impl std::str::FromStr for Features {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let range = match text.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)),
            None => number(text).map(|one| (one, one)),
        };
        let range = range.filter(|(first, last)| first <= last);
        range
            .map(|(first, last)| Self(first..=last))
            .ok_or_else(|| format!("{text:?} is no feature: expected 7, or 0-99"))
    }
}

/// What the flags ask for.
#[derive(Debug)]
pub struct Wanted<'a> {
    args: &'a FeatureArgs,
    filters: Option<Filters>,
}

impl FeatureArgs {
    /// Reads the filters.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn wanted(&self) -> Result<Wanted<'_>, ExplainKitError> {
        let read = |path: &Path| Filters::read(path, |bytes| serde_json::from_slice(bytes));
        Ok(Wanted { args: self, filters: self.filters.as_deref().map(read).transpose()? })
    }
}

impl Wanted<'_> {
    /// The features asked for among those there are, hook point by hook point, and of them a worker's share: every `size`-th.
    ///
    /// # Errors
    /// When a hook point is asked for that is not there, or nothing is chosen.
    pub fn among<'h>(
        &self,
        there: impl Iterator<Item = (&'h HookPoint, Vec<FeatureId>)>,
        world: World,
    ) -> Result<Selection, ExplainKitError> {
        let there: Vec<_> = there.collect();
        let known: BTreeSet<&HookPoint> = there.iter().map(|(hook, _)| *hook).collect();
        let named = self.args.hookpoints.iter().chain(self.filters.iter().flat_map(Filters::hooks));
        for hook in named {
            if !known.contains(hook) {
                let known = known.into_iter().cloned().collect();
                return Err(ExplainKitError::UnknownHook { hook: hook.clone(), known });
            }
        }
        let mut at = 0;
        let mut selection = Selection(Vec::new());
        for (hook, features) in there {
            let missing = self.missing(hook, &features);
            if missing > 0 {
                tracing::warn!(
                    "{missing} of the features asked for at {hook} are not there and are passed over"
                );
            }
            let mut share = features;
            share.retain(|&feature| self.wants(hook, feature));
            share.retain(|_| {
                at += 1;
                (at - 1) % world.size == world.rank
            });
            selection.0.push((hook.clone(), share));
        }
        if at == 0 {
            return Err(ExplainKitError::NothingChosen);
        }
        Ok(selection)
    }

    /// How many features are named that are not among those `there`.
    fn missing(&self, hook: &HookPoint, there: &[FeatureId]) -> u64 {
        let args = self.args;
        if !self.concerns(hook) {
            return 0;
        }
        let in_ranges = |feature: &FeatureId| args.features.iter().any(|range| range.0.contains(&feature.0));
        if let Some(named) = self.filters.as_ref().and_then(|filters| filters.features(hook)) {
            let there: BTreeSet<&FeatureId> = there.iter().collect();
            let asked = named.iter().filter(|feature| args.features.is_empty() || in_ranges(feature));
            return asked.filter(|feature| !there.contains(feature)).count() as u64;
        }
        // Of overlapping ranges each feature counts once.
        let mut ranges: Vec<_> = args.features.iter().map(|Features(range)| range.clone()).collect();
        ranges.sort_by_key(|range| *range.start());
        let (mut named, mut next) = (0, 0);
        for range in ranges {
            let (first, end) = (next.max(u64::from(*range.start())), u64::from(*range.end()) + 1);
            named += end.saturating_sub(first);
            next = next.max(end);
        }
        named - there.iter().filter(|&feature| in_ranges(feature)).count() as u64
    }

    /// Refuses what is named beyond the `width` features of a hook point: for runs that have all of an autoencoder before them.
    ///
    /// # Errors
    /// When a feature is beyond, which is wrong usage.
    pub fn check_width(&self, hook: &HookPoint, width: usize) -> Result<(), ExplainKitError> {
        if !self.concerns(hook) {
            return Ok(());
        }
        let beyond = |what: &str, feature: u32| {
            let last = width.saturating_sub(1);
            ExplainKitError::usage(format!(
                "{what}: {feature} is beyond {hook}, which has features 0 to {last}"
            ))
        };
        if let Some(filters) = &self.filters {
            filters.check_width(hook, width).map_err(|error| ExplainKitError::usage(error.to_string()))?;
        }
        let ends = self.args.features.iter().map(|Features(range)| *range.end());
        match ends.max().filter(|&end| end as usize >= width) {
            Some(end) => Err(beyond("--features", end)),
            None => Ok(()),
        }
    }

    /// Whether any feature of a hook point may be asked for.
    pub fn concerns(&self, hook: &HookPoint) -> bool {
        (self.args.hookpoints.is_empty() || self.args.hookpoints.contains(hook))
            && self.filters.as_ref().is_none_or(|filters| filters.features(hook).is_some())
    }

    fn wants(&self, hook: &HookPoint, feature: FeatureId) -> bool {
        let args = self.args;
        let in_filters = |filters: &Filters| {
            filters.features(hook).is_some_and(|wanted| wanted.binary_search(&feature).is_ok())
        };
        (args.hookpoints.is_empty() || args.hookpoints.contains(hook))
            && self.filters.as_ref().is_none_or(in_filters)
            && (args.features.is_empty() || args.features.iter().any(|range| range.0.contains(&feature.0)))
    }
}

/// Features, by hook point.
#[derive(Clone, Debug)]
pub struct Selection(Vec<(HookPoint, Vec<FeatureId>)>);

impl Selection {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(_, features)| features.len()).sum()
    }

    /// Whether there is none, which a worker's share can be.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the features that `keep` says yes to.
    pub fn retain(&mut self, keep: impl Fn(&FeatureKey) -> bool) {
        for (hook, features) in &mut self.0 {
            features.retain(|&feature| keep(&FeatureKey { hook: hook.clone(), feature }));
        }
    }

    /// The hook points with features.
    pub fn hooks(&self) -> impl Iterator<Item = &HookPoint> {
        self.0.iter().filter(|(_, features)| !features.is_empty()).map(|(hook, _)| hook)
    }

    /// All of them, in order.
    pub fn keys(self) -> impl Iterator<Item = FeatureKey> {
        self.0.into_iter().flat_map(|(hook, features)| {
            features.into_iter().map(move |feature| FeatureKey { hook: hook.clone(), feature })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_both_ends() {
        for (text, range) in [("7", 7..=7), ("0-99", 0..=99), (" 3 - 4", 3..=4)] {
            assert_eq!(text.parse::<Features>().unwrap().0, range, "{text}");
        }
        for text in ["", "-1", "9-3", "0..9", "a"] {
            assert!(text.parse::<Features>().is_err(), "{text}");
        }
    }

    #[test]
    fn workers_share_what_is_wanted_and_nothing_is_left_over() {
        let args = FeatureArgs {
            hookpoints: Vec::new(),
            filters: None,
            features: vec!["2-6".parse().unwrap(), "9".parse().unwrap()],
        };
        let hooks = [HookPoint::layer(1), HookPoint::layer(2)];
        let there = || hooks.iter().map(|hook| (hook, (0..8).map(FeatureId).collect()));
        let mut all = Vec::new();
        for rank in 0..3 {
            all.extend(args.wanted().unwrap().among(there(), World { rank, size: 3 }).unwrap().keys());
        }
        all.sort();
        let mut none = args.wanted().unwrap().among(there(), World { rank: 0, size: 1 }).unwrap();
        assert_eq!(none.len(), all.len());
        none.retain(|key| key.feature.0 == 9 || key.hook == hooks[1] && key.feature.0 < 4);
        assert_eq!((none.len(), none.hooks().collect::<Vec<_>>()), (2, vec![&hooks[1]]));
        let wanted = hooks
            .iter()
            .flat_map(|hook| (2..7).map(|f| FeatureKey { hook: hook.clone(), feature: FeatureId(f) }));
        assert_eq!(all, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn what_is_not_there_is_counted_and_refused() {
        let [one, two] = [1, 2].map(HookPoint::layer);
        let there: Vec<FeatureId> = [0, 1, 2, 5, 9].map(FeatureId).into();
        let of = |features: &[&str]| FeatureArgs {
            hookpoints: Vec::new(),
            filters: None,
            features: features.iter().map(|range| range.parse().unwrap()).collect(),
        };
        // 0 to 5 and 9 to 10: all but 3, 4 and 10 are there, overlap or not.
        for ranges in [&["0-5", "9-10"][..], &["2-5", "0-3", "9", "9-10", "1"]] {
            let args = of(ranges);
            let wanted = args.wanted().unwrap();
            assert_eq!(wanted.missing(&one, &there), 3, "{ranges:?}");
            assert!(wanted.check_width(&one, 11).is_ok(), "{ranges:?}");
            let error = wanted.check_width(&one, 10).unwrap_err().to_string();
            assert!(error.contains("--features: 10 is beyond model.layers.1"), "{error}");
        }
        let all = of(&[]);
        assert_eq!(all.wanted().unwrap().missing(&one, &there), 0);
        let most = of(&["0-4294967295"]);
        assert_eq!(most.wanted().unwrap().missing(&one, &there), (1 << 32) - 5);
        let both = of(&["5-7"]);
        let filters: Filters = serde_json::from_str(r#"{"model.layers.1": [1, 3, 5, 6]}"#).unwrap();
        let wanted = Wanted { args: &all, filters: Some(filters.clone()) };
        assert_eq!((wanted.missing(&one, &there), wanted.missing(&two, &there)), (2, 0));
        assert!(wanted.check_width(&one, 6).is_err() && wanted.check_width(&two, 1).is_ok());
        assert_eq!(Wanted { args: &both, filters: Some(filters) }.missing(&one, &there), 1);
    }
}
