//! What is asked of which model with which autoencoders: the flags that `run` and `check` share.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use attribution::{AttributionError, Combine, Place};
use model_kit::{ModelFolder, OpenModel, PrecisionArgs, SaeFolders, TorchArgs};
use sae_core::Sae;
use sae_torch::TorchSae;
use sae_types::{FeatureId, Filters, HookPoint};
use stage_kit::{CommonArgs, RunManifest, UsageError, hash_file, hash_files};
use tch::Kind;

use crate::data::{self, Prepared, Reading};

/// Points of the integrated gradients unless told otherwise.
pub(crate) const STEPS: NonZeroUsize = NonZeroUsize::new(10).expect("10 is not 0");

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

/// What is asked of what, all that can be known before the model's weights are read.
#[derive(Debug)]
pub(crate) struct Asking {
    folder: ModelFolder,
    saes: SaeFolders,
    pub(crate) questions: Vec<Prepared>,
}

/// A model with its autoencoders and the questions.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) model: OpenModel,
    pub(crate) places: Vec<Place>,
    pub(crate) questions: Vec<Prepared>,
}

impl AskingArgs {
    /// Finds everything, checks that it fits, and notes it.
    pub(crate) fn prepare(
        &self,
        reading: Reading,
        shortlist: &Shortlist,
        common: &CommonArgs,
        run: &mut RunManifest,
    ) -> Result<Asking> {
        if common.world()?.size > 1 {
            return Err(UsageError::new("sae-attribute runs as one process: leave --world-size at 1").into());
        }
        let entries = data::read(&self.data)?;
        run.input("data", &self.data.display(), hash_file(&self.data)?);
        let wanted = shortlist.hooks(&self.hook)?;
        let saes = SaeFolders::find(&self.sae)?.only(&self.hook)?.only(wanted)?;
        let folder = ModelFolder::find(&self.model)?;
        run.input("model", &folder.folder.display(), hash_file(&folder.folder.join("config.json"))?);
        saes.note(run)?;
        let network = folder.hollow()?;
        for (hook, fitting) in saes.load(&network)? {
            if network.is_vision(&hook)? {
                return Err(AttributionError::VisionPoint { point: hook }.into());
            }
            shortlist.check_width(&hook, fitting.sae.num_latents())?;
        }
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
        let images = questions.iter().flat_map(|question| &question.images);
        run.input("images of data", &root.display(), hash_files(images)?);
        Ok(Asking { folder, saes, questions })
    }
}

impl Asking {
    /// Reads the weights.
    pub(crate) fn open(self, args: &AskingArgs, torch: TorchArgs) -> Result<Session> {
        let Self { folder, saes, questions } = self;
        let model = folder.load(torch, args.precision.weights())?;
        if model.network.kind() != Kind::Float {
            tracing::warn!(
                "the model computes in {}: an effect is the difference of two scores whose states are rounded to that, so that small \
                 effects are noise; --dtype f32 gives them",
                torch.dtype
            );
        }
        let mut places = Vec::with_capacity(saes.folders().len());
        for (hook, folder) in saes.folders() {
            let sae = TorchSae::from_sae(&Sae::load(folder)?, model.network.device(), Kind::Float)?;
            places.push(Place::new(&model.network, hook.clone(), sae)?);
        }
        Ok(Session { model, places, questions })
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
            return Ok(Shortlist::Filters(Filters::read(path, |bytes| serde_json::from_slice(bytes))?));
        }
        Ok(match &self.features {
            Some(features) => Shortlist::Features(features.iter().copied().map(FeatureId).collect()),
            None => Shortlist::None,
        })
    }
}

impl Shortlist {
    /// The hook points to look at, of those that `--hook` names; none where all are to be.
    fn hooks<'h>(&'h self, named: &'h [HookPoint]) -> Result<Vec<&'h HookPoint>, UsageError> {
        let Self::Filters(filters) = self else { return Ok(named.iter().collect()) };
        let wanted: Vec<&HookPoint> =
            filters.hooks().filter(|hook| named.is_empty() || named.contains(hook)).collect();
        if wanted.is_empty() {
            let there: Vec<_> = filters.hooks().map(HookPoint::as_str).collect();
            return Err(UsageError::new(format!(
                "--filters names no feature of any --hook: it names features of {}",
                there.join(", ")
            )));
        }
        match wanted.iter().find(|hook| filters.features(hook).is_none_or(<[_]>::is_empty)) {
            Some(hook) => Err(UsageError::new(format!("--filters names no feature of {hook}"))),
            None => Ok(wanted),
        }
    }

    /// Refuses features that an autoencoder of `width` latents does not have.
    fn check_width(&self, hook: &HookPoint, width: usize) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Filters(filters) => Ok(filters.check_width(hook, width)?),
            Self::Features(features) => match features.iter().find(|feature| feature.index() >= width) {
                Some(feature) => bail!(UsageError::new(format!(
                    "--features: {feature} is beyond the autoencoder at {hook}, which has latents 0 to {}",
                    width.saturating_sub(1)
                ))),
                None => Ok(()),
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_and_hooks_are_both_heeded() {
        let read = |text: &str| Shortlist::Filters(serde_json::from_str(text).unwrap());
        let [one, two, three] = [1, 2, 3].map(HookPoint::layer);
        let both = read(r#"{"model.layers.1": [4], "model.layers.2": [0, 9]}"#);
        assert_eq!(both.hooks(&[]).unwrap(), [&one, &two]);
        assert_eq!(both.hooks(&[three.clone(), two.clone()]).unwrap(), [&two]);
        let error = both.hooks(std::slice::from_ref(&three)).unwrap_err().to_string();
        assert!(error.contains("features of model.layers.1, model.layers.2"), "{error}");
        let empty = read(r#"{"model.layers.1": [], "model.layers.2": [0]}"#);
        assert!(empty.hooks(&[]).unwrap_err().to_string().contains("no feature of model.layers.1"));
        assert_eq!(empty.hooks(std::slice::from_ref(&two)).unwrap(), [&two]);
        assert!(both.check_width(&two, 10).is_ok() && both.check_width(&two, 9).is_err());
        let features = Shortlist::Features(vec![FeatureId(3)]);
        assert!(features.check_width(&one, 4).is_ok() && features.check_width(&one, 3).is_err());
        assert_eq!(features.hooks(std::slice::from_ref(&one)).unwrap(), [&one]);
    }
}
