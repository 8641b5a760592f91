//! [`Explained`]: the features to score, with what was said of each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use act_cache::Cache;
use anyhow::Result;
use explain::FeatureKey;
use explain_kit::{
    EXPLANATIONS, ExplainKitError, Explanations, FeatureArgs, Selection, SourceArgs, Texts, open_cache,
    require_base_tile, short_hash, stored,
};
use sae_types::{FeatureId, HookPoint};
use stage_kit::World;

/// Of the entities that `sae-explain refine` makes of explanations, and of the labels that `sae-explain label` gives them.
const REFINED: &str = "refined";
pub(crate) const LABELS: &str = "labels";

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
    all: Vec<FeatureKey>,
    labels: Option<Explanations>,
}

impl ExplainedArgs {
    /// Opens explanations and cache; gives them with this worker's share of the features, those included of which the explainer had nothing to
    /// say.
    pub(crate) fn open(&self, world: World) -> Result<(Explained, Selection)> {
        let stage = if self.refined { REFINED } else { EXPLANATIONS };
        let Said { explanations, before } = Said::open(&self.explanations, stage)?;
        if self.refined && before.is_none() {
            tracing::warn!(
                "{} holds nothing but what was refined: of how many features the explainer had nothing to say is not known",
                self.explanations.display()
            );
        }
        let of = [Some(&explanations), before.as_ref()];
        let labels = self.labels.as_deref().map(|path| open_current(path, LABELS, &of)).transpose()?;
        let mut unable = explanations.unable;
        unable.extend(before.into_iter().flat_map(|before| before.unable));
        let texts = Texts::new(explanations.texts);
        let cache = open_cache(&self.source.cache)?;
        require_base_tile(cache, &self.source.cache)?;
        let there = stored(cache)?;
        let explained = texts.among(there.clone(), &self.explanations)?;
        let key = |hook: &HookPoint, feature| FeatureKey { hook: hook.clone(), feature };
        let all = explained
            .iter()
            .flat_map(|(hook, features)| features.iter().map(move |&feature| key(hook, feature)))
            .collect();
        let selection = self.features.wanted()?.among(with_unable(there, &texts, &unable), world)?;
        Ok((Explained { cache, texts, all, labels }, selection))
    }
}

impl Explained {
    /// All features with a text that the cache has, in order, with what was said of each.
    pub(crate) fn said(&self) -> impl Iterator<Item = (&FeatureKey, &str)> {
        self.all.iter().map(|key| (key, self.texts.get(key).unwrap_or_default()))
    }

    /// What sort of concept a feature was said to be.
    pub(crate) fn label(&self, key: &FeatureKey) -> Option<String> {
        let labels = self.labels.as_ref()?;
        labels.texts.get(key).cloned()
    }
}

/// Of the features there are, hook point by hook point, those with a text and those of which the explainer had nothing to say.
pub(crate) fn with_unable(
    there: Vec<(&'static HookPoint, Vec<FeatureId>)>,
    texts: &Texts,
    unable: &BTreeSet<FeatureKey>,
) -> impl Iterator<Item = (&'static HookPoint, Vec<FeatureId>)> {
    there.into_iter().map(move |(hook, mut features)| {
        features.retain(|&feature| {
            let key = FeatureKey { hook: hook.clone(), feature };
            texts.contains(&key) || unable.contains(&key)
        });
        (hook, features)
    })
}

/// What was said of features.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) explanations: Explanations,
    /// The explanations that lie beside it, where it was, or may have been, made of some.
    pub(crate) before: Option<Explanations>,
}

impl Said {
    /// Reads what a stage wrote. What it made of explanations that are no longer there is left out.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub(crate) fn open(path: &Path, stage: &str) -> Result<Self> {
        let is_made = stage != EXPLANATIONS || path.is_file();
        let before = if is_made { before(path)? } else { None };
        Ok(Self { explanations: open_current(path, stage, &[before.as_ref()])?, before })
    }
}

/// The explanations that a folder, or the folder of a file, holds beside what was made of them; `None` where there are none.
///
/// # Errors
/// When they cannot be read.
fn before(path: &Path) -> Result<Option<Explanations>> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    // A bare file name has an empty parent.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    match Explanations::open(folder, EXPLANATIONS) {
        Ok(before) => Ok(Some(before)),
        Err(ExplainKitError::NoExplanations { .. } | ExplainKitError::NoTexts { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a stage made of any of these texts as they are now.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn open_current(path: &Path, stage: &str, of: &[Option<&Explanations>]) -> Result<Explanations> {
    let known = || of.iter().copied().flatten();
    let is_current = |key: &FeatureKey, about: &str| {
        known().next().is_none()
            || known().any(|said| said.texts.get(key).is_some_and(|text| short_hash(text) == about))
    };
    Ok(Explanations::open_current(path, stage, &is_current)?)
}
