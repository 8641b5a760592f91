//! The flags that `images` and `text` share.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use act_cache::foreign::{DelphiOptions, MsaeOptions, export_delphi, export_msae};
use act_cache::{ActivationDtype, Cache, CacheError, CacheJob};
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use model_kit::PrecisionArgs;
use stage_kit::UsageError;

/// In which files a cache is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// This project's, sorted by feature
    #[default]
    Native,
    /// multimodal-sae's, in SAVE_DIR/latents
    Msae,
    /// delphi's, in SAVE_DIR/latents
    Delphi,
}

/// Where delphi's runs have their cache, and so where msae's and delphi's files go. delphi lists all entries of that folder.
const LATENTS: &str = "latents";

impl Format {
    /// The condition of a job that names it.
    pub(crate) const CONDITION: &str = "--format";

    /// The format that all workers of a job agreed on.
    pub(crate) fn of(job: &CacheJob) -> Result<Self> {
        let name = job.conditions.get(Self::CONDITION).map_or("native", String::as_str);
        Self::from_str(name, false).map_err(|problem| anyhow!("the parts' {}: {problem}", Self::CONDITION))
    }

    /// Refuses what cannot be written, before any work is done.
    pub(crate) fn check(self, keep_tokens: bool) -> Result<(), UsageError> {
        if self == Self::Delphi && !keep_tokens {
            return Err(UsageError::new("delphi's files hold the token ids: add --keep-tokens"));
        }
        Ok(())
    }

    /// The name in flags.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Writes the native cache in `native` to `folder` in this format, whose own place that is if it is native.
    pub(crate) fn export(self, native: &Path, folder: &Path, memory_budget: usize) -> Result<(), CacheError> {
        let latents = folder.join(LATENTS);
        match self {
            Self::Native => Ok(()),
            Self::Msae => {
                let options = MsaeOptions { memory_budget, ..MsaeOptions::default() };
                export_msae(&Cache::open(native)?, &latents, &options).map(|_| ())
            }
            Self::Delphi => {
                let options = DelphiOptions { memory_budget, ..DelphiOptions::default() };
                export_delphi(&Cache::open(native)?, &latents, &options).map(|_| ())
            }
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct StageArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    pub(crate) model: String,
    /// Data set: parquet, an image folder, JSON, .bin tokens, or a Hub id
    pub(crate) dataset: String,
    /// Split of the data set
    #[arg(long)]
    pub(crate) split: Option<String>,
    /// Folder that image paths in JSON are relative to; default: the JSON file's own
    #[arg(long)]
    pub(crate) image_root: Option<PathBuf>,
    /// Stop after this many samples of the data set
    #[arg(long)]
    pub(crate) max_examples: Option<NonZeroUsize>,
    /// Leave out up to this many unreadable records instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    pub(crate) max_bad: u64,
    /// Sparse autoencoders: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long)]
    pub(crate) sae: String,
    /// JSON file of the only features to store, {"model.layers.24": [0, 1, 2]}; default: all of every hook point
    #[arg(long)]
    pub(crate) filters: Option<PathBuf>,
    /// Samples per forward pass, and between two points that a run can go on from
    #[arg(long, default_value_t = NonZeroUsize::new(8).expect("8 is not 0"))]
    pub(crate) batch_size: NonZeroUsize,
    /// Batches computed at the same time on a CPU, each with an equal share of the threads (OMP_NUM_THREADS, else one per core);
    /// default: one per thread for models of less than 2 GiB, else 1
    #[arg(long)]
    pub(crate) lanes: Option<NonZeroUsize>,
    /// Folder to write. What is not finished lies beside it, in SAVE_DIR.parts
    #[arg(long)]
    pub(crate) save_dir: PathBuf,
    /// Replace the folder if it is there; of one process without --resume, also what a run that did not end left in SAVE_DIR.parts
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Go on with what is in SAVE_DIR.parts, if anything is, with the same flags
    #[arg(long)]
    pub(crate) resume: bool,
    /// Seconds between two checkpoints; there is also one whenever --memory is full
    #[arg(long, default_value_t = 60)]
    checkpoint_every: u64,
    /// MiB of codes held in memory before they are sorted and written to disk
    #[arg(long, default_value_t = 1024)]
    memory: usize,
    /// Files per hook point, each with an equal range of latents
    #[arg(long, default_value_t = NonZeroUsize::new(5).expect("5 is not 0"))]
    pub(crate) n_splits: NonZeroUsize,
    /// How activations are stored: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    pub(crate) activation_dtype: ActivationDtype,
    /// In which files the cache is written
    #[arg(long, value_enum, default_value_t = Format::Native)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
}

impl StageArgs {
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory.saturating_mul(1 << 20)
    }

    pub(crate) fn checkpoint_every(&self) -> Duration {
        Duration::from_secs(self.checkpoint_every)
    }
}
