//! [`Explained`]: the features to score, with what was said of each.

use std::path::PathBuf;

use act_cache::Cache;
use anyhow::Result;
use explain::FeatureKey;
use explain_kit::{
    EXPLANATIONS, Explanations, FeatureArgs, Selection, SourceArgs, Texts, open_cache, require_base_tile,
    stored,
};
use sae_types::{FeatureId, HookPoint};
use stage_kit::{UsageError, World};

/// Of the entities that `sae-explain refine` makes of explanations, and of the labels that `sae-explain label` gives them.
const REFINED: &str = "refined";
const LABELS: &str = "labels";

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainedArgs {
    /// What to score: a folder of sae-explain, a ledger (.jsonl), or a file that multimodal-sae published (.json)
    #[arg(long)]
    explanations: PathBuf,
    /// Score the short entities that `sae-explain refine` wrote into that folder
    #[arg(long)]
    refined: bool,
    /// Also give the scores per label: the folder, ledger or file that `sae-explain label` wrote
    #[arg(long)]
    labels: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    features: FeatureArgs,
}

/// The features to score.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) cache: &'static Cache,
    /// What was said, of all features, those of other workers included.
    pub(crate) texts: Texts,
    /// All features with a text that the cache has, in order, chosen or not: what baselines draw from, so that they do not depend on the
    /// choice.
    pub(crate) all: Vec<FeatureKey>,
    labels: Option<Explanations>,
    /// Those of which the explainer had nothing to say, within what the flags choose.
    pub(crate) unable: Vec<FeatureKey>,
}

impl ExplainedArgs {
    /// Opens explanations and cache; gives them with this worker's share of the features.
    pub(crate) fn open(&self, world: World) -> Result<(Explained, Selection)> {
        let stage = if self.refined { REFINED } else { EXPLANATIONS };
        let Explanations { texts, unable, .. } = Explanations::open(&self.explanations, stage)?;
        let labels = self.labels.as_deref().map(|path| Explanations::open(path, LABELS)).transpose()?;
        let cache = open_cache(&self.source.cache)?;
        require_base_tile(cache, &self.source.cache)?;
        let there = stored(cache)?;
        let wanted = self.features.wanted()?;
        let with = |said: &dyn Fn(&FeatureKey) -> bool| {
            let of_hook = |(hook, features): &(_, Vec<FeatureId>)| {
                let said = |&feature: &FeatureId| said(&FeatureKey { hook: Clone::clone(*hook), feature });
                (*hook, features.iter().copied().filter(said).collect::<Vec<_>>())
            };
            there.iter().map(of_hook).collect::<Vec<_>>()
        };
        let explained = with(&|key| texts.contains_key(key));
        if explained.iter().all(|(_, features)| features.is_empty()) {
            let problem = format!(
                "none of the features in {} is in {}",
                self.explanations.display(),
                self.source.cache.display()
            );
            return Err(UsageError::new(problem).into());
        }
        let whole = World { rank: 0, size: 1 };
        let key =
            |hook: &HookPoint, feature: &FeatureId| FeatureKey { hook: hook.clone(), feature: *feature };
        let all = explained
            .iter()
            .flat_map(|(hook, features)| features.iter().map(move |feature| key(hook, feature)))
            .collect();
        let selection = wanted.among(explained.into_iter(), world)?;
        let nothing = with(&|key| unable.contains(key));
        let unable = if nothing.iter().all(|(_, features)| features.is_empty()) {
            Vec::new()
        } else {
            // The flags may choose none of them.
            wanted.among(nothing.into_iter(), whole).map_or_else(|_| Vec::new(), |some| some.keys().collect())
        };
        Ok((Explained { cache, texts: Texts::new(texts), all, labels, unable }, selection))
    }
}

impl Explained {
    /// What sort of concept a feature was said to be.
    pub(crate) fn label(&self, key: &FeatureKey) -> Option<String> {
        let labels = self.labels.as_ref()?;
        labels.texts.get(key).cloned()
    }
}
