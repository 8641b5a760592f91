//! What is asked of which model with which autoencoders: the flags that `run` and `check` share.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use attribution::{Combine, Place};
use mm_data::hub::{self, RepoKind};
use model_kit::{ModelFolder, OpenModel, PrecisionArgs, TorchArgs};
use sae_core::Sae;
use sae_torch::TorchSae;
use sae_types::{FeatureId, Filters, HookPoint};
use stage_kit::{CommonArgs, RunManifest, UsageError, hash_file};
use tch::Kind;

use crate::data::{self, Prepared, Reading};

/// How several logits become one.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Combined {
    /// Their mean
    #[default]
    Mean,
    /// Their sum
    Sum,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AskingArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    pub(crate) model: String,
    /// Sparse autoencoders: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long)]
    pub(crate) sae: String,
    /// Only these hook points, for several repeat the flag; default: every one there is an autoencoder for
    #[arg(long, value_name = "HOOKPOINT")]
    hook: Vec<HookPoint>,
    /// JSON list of questions, {"prompt", "answer", "baseline", "image"}; all but the prompt may be lists
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Folder that image paths in the data are relative to; default: the data's own, then the working folder
    #[arg(long)]
    image_root: Option<PathBuf>,
    /// Put each prompt into the model's chat template, as what a user says
    #[arg(long)]
    pub(crate) chat: bool,
    /// How the logits of several answers, or of several baselines, become one
    #[arg(long, value_enum, default_value_t = Combined::Mean)]
    combine: Combined,
    /// Passes made at a time where a method needs many
    #[arg(long, default_value_t = NonZeroUsize::new(16).expect("16 is not 0"))]
    pub(crate) rows: NonZeroUsize,
    #[command(flatten)]
    precision: PrecisionArgs,
}

/// Which features a slow method looks at.
#[derive(Debug, clap::Args)]
pub(crate) struct ShortlistArgs {
    /// Only these features, of every hook point
    #[arg(long, value_delimiter = ',', value_name = "FEATURE", conflicts_with = "filters")]
    features: Option<Vec<u32>>,
    /// Only these features: JSON, {"model.layers.24": [0, 1, 2]}
    #[arg(long)]
    filters: Option<PathBuf>,
}

/// A model with its autoencoders and the questions.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) model: OpenModel,
    pub(crate) places: Vec<Place>,
    pub(crate) questions: Vec<Prepared>,
}

impl AskingArgs {
    /// Opens everything, and notes it.
    pub(crate) fn open(
        &self,
        reading: Reading,
        shortlist: Option<&Filters>,
        torch: TorchArgs,
        common: &CommonArgs,
        run: &mut RunManifest,
    ) -> Result<Session> {
        if common.world()?.size > 1 {
            return Err(UsageError::new("sae-attribute runs as one process: leave --world-size at 1").into());
        }
        let entries = data::read(&self.data)?;
        run.input("data", &self.data.display(), hash_file(&self.data)?);
        let folder = ModelFolder::find(&self.model)?;
        let own = self.data.parent().unwrap_or(Path::new("")).to_owned();
        let root = self.image_root.as_ref().unwrap_or(&own);
        let combine = match self.combine {
            Combined::Mean => Combine::Mean,
            Combined::Sum => Combine::Sum,
        };
        let prepare = |(number, entry): (usize, &data::Entry)| {
            let prepared = entry.prepare(&folder.processor, root, reading, combine);
            prepared.with_context(|| format!("question {number} of {}", self.data.display()))
        };
        let questions = entries.iter().enumerate().map(prepare).collect::<Result<Vec<_>>>()?;
        let model = folder.load(torch, self.precision.weights())?;
        run.input("model", &model.folder.display(), hash_file(&model.folder.join("config.json"))?);
        let places = self.places(&model, shortlist, run)?;
        Ok(Session { model, places, questions })
    }

    fn places(
        &self,
        model: &OpenModel,
        shortlist: Option<&Filters>,
        run: &mut RunManifest,
    ) -> Result<Vec<Place>> {
        let root = hub::resolve(&self.sae, RepoKind::Model, &["*cfg.json", "*sae.safetensors"])?;
        let mut found = Sae::find(&root)?;
        let wanted: Vec<&HookPoint> =
            self.hook.iter().chain(shortlist.into_iter().flat_map(Filters::hooks)).collect();
        if let Some(hook) = wanted.iter().find(|hook| !found.contains_key(*hook)) {
            let there: Vec<_> = found.keys().map(HookPoint::as_str).collect();
            bail!("{} has no autoencoder for {hook}, it has: {}", self.sae, there.join(", "));
        }
        found.retain(|hook, _| wanted.is_empty() || wanted.contains(&hook));
        let mut places = Vec::with_capacity(found.len());
        for (hook, folder) in found {
            let sae = Sae::load(&folder)?;
            if let Some(shortlist) = shortlist {
                shortlist.check_width(&hook, sae.num_latents())?;
            }
            run.input(&format!("sae {hook}"), &folder.display(), hash_file(&folder.join("sae.safetensors"))?);
            let sae = TorchSae::from_sae(&sae, model.network.device(), Kind::Float)?;
            places.push(Place::new(&model.network, hook, sae)?);
        }
        ensure!(!places.is_empty(), "{} holds no autoencoder", self.sae);
        Ok(places)
    }
}

/// The features asked for, if any were.
#[derive(Debug)]
pub(crate) enum Shortlist {
    /// All.
    None,
    /// The same of every hook point.
    Features(Vec<FeatureId>),
    /// Those of a file.
    Filters(Filters),
}

impl ShortlistArgs {
    pub(crate) fn read(&self) -> Result<Shortlist> {
        if let Some(path) = &self.filters {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read filters {}", path.display()))?;
            let filters: Filters = serde_json::from_str(&text)
                .with_context(|| format!("{} is no filters file", path.display()))?;
            ensure!(!filters.is_empty(), "{} names no hook point", path.display());
            return Ok(Shortlist::Filters(filters));
        }
        Ok(match &self.features {
            Some(features) => Shortlist::Features(features.iter().copied().map(FeatureId).collect()),
            None => Shortlist::None,
        })
    }
}

impl Shortlist {
    /// The filters, if that is what was given.
    pub(crate) fn filters(&self) -> Option<&Filters> {
        match self {
            Self::Filters(filters) => Some(filters),
            _ => None,
        }
    }

    /// The features of one hook point; `None` for all.
    pub(crate) fn of(&self, hook: &HookPoint) -> Option<&[FeatureId]> {
        match self {
            Self::None => None,
            Self::Features(features) => Some(features),
            Self::Filters(filters) => filters.features(hook),
        }
    }
}
