//! The flags of `detection` and `fuzz`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use act_cache::Cache;
use anyhow::{Context, Result, bail};
use explain::FeatureKey;
use explain_kit::{
    FeatureArgs, MaskArgs, PictureArgs, ReadingArgs, RunArgs, Selection, ServerArgs, hooks_of, note_cache,
    require_base_tile, share,
};
use lmm_prep::Tokenizer;
use mm_data::Field;
use mm_data::hub::{self, RepoKind};
use sae_types::SampleId;
use stage_kit::{RunManifest, UsageError, hash_file};

use crate::judge::exam::{Batch, Material, Score};
use crate::judge::images::Images;
use crate::judge::pick::{Picker, Side};
use crate::judge::text::Windows;

/// Excerpts per question, as delphi has it.
const EXCERPTS: usize = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct DetectionArgs {
    #[command(flatten)]
    pub(super) judge: JudgeArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    #[command(flatten)]
    pub(super) judge: JudgeArgs,
    #[command(flatten)]
    pub(super) mask: MaskArgs,
}

/// What both take.
#[derive(Debug, clap::Args)]
pub(crate) struct JudgeArgs {
    /// Cache: a folder that sae-cache images or text wrote
    #[arg(long)]
    pub(super) cache: PathBuf,
    /// Of images: the data set that the cache was made of: parquet, an image folder, JSON, or a Hub id
    #[arg(long)]
    dataset: Option<String>,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Of text: the model that the cache was made with, whose tokenizer is needed: a folder or a Hub id
    #[arg(long)]
    model: Option<String>,
    /// Show the text although the cache is of images
    #[arg(long)]
    text: bool,
    /// What to score: a folder of sae-explain, a ledger (.jsonl), or a file that multimodal-sae published (.json)
    #[arg(long)]
    pub(super) explanations: PathBuf,
    /// Also give means per label: the folder, ledger or file that sae-explain label wrote
    #[arg(long)]
    pub(super) labels: Option<PathBuf>,
    /// Folder to write
    #[arg(long)]
    pub(super) save_dir: PathBuf,
    /// Ask everything a second time, with explanations of other features: what is right then is no merit of an explanation. Doubles the cost
    #[arg(long)]
    pub(super) permuted: bool,
    /// Samples per feature in which it is on, none of which the explainer was shown
    #[arg(long, default_value_t = NonZeroUsize::new(10).expect("10 is not 0"), help_heading = "Examples")]
    positives: NonZeroUsize,
    /// Samples in which it is off. Half of them are hard: what often comes with the feature is on. Of fuzz the other half are positives with
    /// another part lit or marked
    #[arg(long, default_value_t = NonZeroUsize::new(10).expect("10 is not 0"), help_heading = "Examples")]
    negatives: NonZeroUsize,
    /// Take as many positives from each of so many parts of the ranking by activation
    #[arg(long, default_value_t = NonZeroUsize::new(10).expect("10 is not 0"), help_heading = "Examples")]
    quantiles: NonZeroUsize,
    /// Pass over features with fewer positives
    #[arg(long, default_value_t = 5, help_heading = "Examples")]
    min_activating: usize,
    /// Samples per question, which are answered with a list; default: 1 image, 5 pieces of text
    #[arg(long, help_heading = "Examples")]
    batch: Option<NonZeroUsize>,
    #[command(flatten)]
    picture: PictureArgs,
    /// Of text: tokens per piece
    #[arg(long, default_value_t = NonZeroUsize::new(32).expect("32 is not 0"), help_heading = "Examples")]
    context: NonZeroUsize,
    /// Of fuzz on text: mark tokens from this share of a piece's largest activation on
    #[arg(long, default_value_t = 0.3, value_parser = share, help_heading = "Examples")]
    threshold: f32,
    #[command(flatten)]
    pub(super) features: FeatureArgs,
    #[command(flatten)]
    pub(super) run: RunArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Which of the two, with the flags that only one has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Setting<'a> {
    Detection,
    Fuzz(&'a MaskArgs),
}

impl Setting<'_> {
    pub(super) fn score(self) -> Score {
        match self {
            Self::Detection => Score::Detection,
            Self::Fuzz(_) => Score::Fuzz,
        }
    }
}

impl JudgeArgs {
    /// What the judge is shown: images, unless the cache is of text or that is asked for.
    pub(super) fn side(&self, cache: &Cache) -> Result<Side> {
        let manifest = cache.manifest();
        if manifest.token_layout.base.is_some() && !self.text {
            return Ok(Side::Image);
        }
        if manifest.tokens.is_some() {
            return Ok(Side::Text);
        }
        let path = self.cache.display();
        if self.text {
            bail!("{path} keeps no token ids: make it with `sae-cache text`, or with --keep-tokens");
        }
        bail!(
            "{path} is neither of images (it names no base tile) nor of text (it keeps no token ids): make it with `sae-cache images`, \
             `sae-cache text`, or with --keep-tokens"
        );
    }

    pub(super) fn batch(&self, side: Side) -> Batch {
        match (self.batch.map(NonZeroUsize::get), side) {
            (None | Some(1), Side::Image) => Batch::Single,
            (Some(n), _) => Batch::Of(n),
            (None, Side::Text) => Batch::Of(EXCERPTS),
        }
    }

    /// Opens what is shown, and notes it with all that decides what of it.
    #[expect(clippy::too_many_arguments, reason = "each is another stage's")]
    pub(super) fn material(
        &self,
        cache: &'static Cache,
        side: Side,
        setting: Setting<'_>,
        selection: &Selection,
        seen: BTreeMap<FeatureKey, Vec<SampleId>>,
        seed: u64,
        manifest: &mut RunManifest,
    ) -> Result<Material> {
        let picker = Picker {
            side,
            seen,
            positives: self.positives.get(),
            negatives: self.negatives.get(),
            quantiles: self.quantiles.get(),
            min_activating: self.min_activating,
            seed,
        };
        let mut note = |flag: &str, value: String| drop(manifest.settings.insert(flag.to_owned(), value));
        note("--positives", self.positives.to_string());
        note("--negatives", self.negatives.to_string());
        note("--quantiles", self.quantiles.to_string());
        note("--min-activating", self.min_activating.to_string());
        note("--batch", self.batch(side).size().to_string());
        note("--seed", seed.to_string());
        let hooks = hooks_of(cache, selection)?;
        match side {
            Side::Image => {
                require_base_tile(cache, &self.cache)?;
                let name = self.dataset.as_deref().ok_or_else(|| {
                    UsageError::new("--dataset: name the data set that the cache was made of: its images are shown to the judge")
                })?;
                let dataset = self.reading.open(&self.cache, cache, name, &[Field::Images], manifest)?;
                self.picture.note_settings(manifest);
                let masking = match setting {
                    Setting::Detection => explain::Masking::default(),
                    Setting::Fuzz(mask) => {
                        mask.note_settings(manifest);
                        mask.masking()
                    }
                };
                let pictures = self.picture.pictures(cache, dataset);
                let encoding = self.picture.encoding();
                let images = Images { hooks, pictures, encoding, masking, picker };
                Ok(Material::Images(Box::new(images)))
            }
            Side::Text => {
                let name = self.model.as_deref().ok_or_else(|| {
                    UsageError::new("--model: name the model that the cache was made with: its tokenizer is needed to show text")
                })?;
                let files = ["tokenizer*", "special_tokens_map.json", "config.json"];
                let model = hub::resolve(name, RepoKind::Model, &files)?;
                note("--context", self.context.to_string());
                if setting.score() == Score::Fuzz {
                    note("--threshold", self.threshold.to_string());
                }
                note("--model (SHA-256 of tokenizer.json)", hash_file(&model.join("tokenizer.json"))?);
                note_cache(&self.cache, manifest)?;
                let tokens = cache.tokens()?.context("the cache keeps no token ids")?;
                let tokenizer = Tokenizer::load(&model)?;
                let (context, threshold) = (self.context.get(), self.threshold);
                let windows = Windows { hooks, tokens, tokenizer, context, threshold, picker };
                Ok(Material::Text(Box::new(windows)))
            }
        }
    }
}
