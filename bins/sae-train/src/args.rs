//! The flags of `sae-train`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use mm_data::{SourceSpec, TokenDtype};
use model_kit::{PrecisionArgs, TokenArgs};
use sae_trainer::{BiasInit, Exchange, Optimizer, Schedule, Selection};
use serde::Serialize;
use serde_json::Value;

use crate::state::Settings;

/// How the learning rate falls after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LrSchedule {
    /// In a straight line to 0
    Linear,
    /// Along half a cosine to 0
    Cosine,
}

impl From<LrSchedule> for Schedule {
    fn from(schedule: LrSchedule) -> Self {
        match schedule {
            LrSchedule::Linear => Self::Linear,
            LrSchedule::Cosine => Self::Cosine,
        }
    }
}

/// Which latents a token keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Activation {
    /// The k largest of each token
    Topk,
    /// The k largest per token on average over a batch; one threshold afterwards
    BatchTopk,
}

impl From<Activation> for Selection {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Topk => Self::TopK,
            Activation::BatchTopk => Self::BatchTopK,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OptimizerName {
    /// Adam, moments in f32: 8 bytes a parameter
    Adam,
    /// Adam, moments in 8 bits: 2 bytes a parameter
    Adam8bit,
    /// The sign of the momentum: 4 bytes a parameter
    Signum,
}

impl From<OptimizerName> for Optimizer {
    fn from(name: OptimizerName) -> Self {
        match name {
            OptimizerName::Adam => Self::Adam,
            OptimizerName::Adam8bit => Self::Adam8bit,
            OptimizerName::Signum => Self::Signum,
        }
    }
}

/// How .bin files store a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DtypeName {
    /// Two bytes
    U16,
    /// Four bytes
    U32,
}

impl From<DtypeName> for TokenDtype {
    fn from(name: DtypeName) -> Self {
        match name {
            DtypeName::U16 => Self::U16,
            DtypeName::U32 => Self::U32,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BiasInitName {
    /// The geometric median of the first batch
    Median,
    /// The mean of the first batch
    Mean,
    /// 0
    Zero,
}

impl From<BiasInitName> for BiasInit {
    fn from(name: BiasInitName) -> Self {
        match name {
            BiasInitName::Median => Self::GeometricMedian,
            BiasInitName::Mean => Self::Mean,
            BiasInitName::Zero => Self::Zero,
        }
    }
}

/// What each of several processes has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distribute {
    /// Every autoencoder whole; the samples are shared out
    Data,
    /// Some of the autoencoders, and the vectors of all samples for them
    Modules,
    /// Some of the latents of every autoencoder, which may be wider than one memory
    Latents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExchangeName {
    /// What is fewer bytes
    Auto,
    /// Vectors and their codes: the same bits for any number of processes
    Codes,
    /// Sums of gradients, which depend on the number of processes by rounding
    Gradients,
}

impl From<ExchangeName> for Exchange {
    fn from(name: ExchangeName) -> Self {
        match name {
            ExchangeName::Auto => Self::Auto,
            ExchangeName::Codes => Self::Codes,
            ExchangeName::Gradients => Self::Gradients,
        }
    }
}

/// What carries the bytes between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CollectiveName {
    /// MPI on the CPU, NCCL on GPUs
    Auto,
    /// Open MPI or another, under mpirun or srun
    Mpi,
    /// NVIDIA's NCCL, a GPU for each process
    Nccl,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StageArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    pub(crate) model: String,
    /// Data sets, `PATH_OR_HUB_ID[:SPLIT][@SHARE]`: parquet, image folders, JSON, .bin tokens. Conversations are read in the
    /// model's chat template
    #[arg(required = true, value_name = "DATASET")]
    pub(crate) datasets: Vec<SourceSpec>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) hooks: HookArgs,
    #[command(flatten)]
    pub(crate) sae: SaeArgs,
    #[command(flatten)]
    pub(crate) step: StepArgs,
    #[command(flatten)]
    pub(crate) team: TeamArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Data")]
pub(crate) struct DataArgs {
    /// Split of the data sets that name none
    #[arg(long)]
    pub(crate) split: Option<String>,
    /// What image paths in JSON are relative to; default: the JSON file's folder
    #[arg(long)]
    pub(crate) image_root: Option<PathBuf>,
    /// Number type of .bin tokens, where no .bin.json beside them says it; default: u16
    #[arg(long, value_enum)]
    pub(crate) token_dtype: Option<DtypeName>,
    /// Samples whose tokens make one batch, of all processes together
    #[arg(long, default_value_t = NonZeroUsize::new(8).expect("8 is not 0"))]
    pub(crate) batch_size: NonZeroUsize,
    /// Samples per forward pass of the model; default: a process's share of --batch-size. 1 gives the same bits for any number of
    /// processes
    #[arg(long)]
    #[serde(skip)]
    pub(crate) forward_batch_size: Option<NonZeroUsize>,
    /// Times the data set is read, each time in another order
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    pub(crate) epochs: NonZeroUsize,
    /// Train on at most this many samples
    #[arg(long)]
    pub(crate) max_examples: Option<NonZeroUsize>,
    /// Leave out up to this many unreadable samples instead of stopping at the first; they are listed in bad_records.jsonl
    #[arg(long, default_value_t = 0)]
    #[serde(skip)]
    pub(crate) max_bad: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) tokens: TokenArgs,
    /// What an image token counts in the loss; 0 leaves image tokens out
    #[arg(long, default_value_t = 1.0, value_parser = weight)]
    pub(crate) image_weight: f32,
    /// What a text token counts in the loss; 0 leaves text tokens out
    #[arg(long, default_value_t = 1.0, value_parser = weight)]
    pub(crate) text_weight: f32,
    /// Leave out tokens whose vector is more than this many times as long as the median of its batch (attention sinks)
    #[arg(long, value_parser = multiple)]
    pub(crate) max_norm_multiple: Option<f64>,
}

#[derive(Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Where in the model")]
pub(crate) struct HookArgs {
    /// Decoder layers whose output to train on
    #[arg(long, value_delimiter = ',', num_args = 1.., required_unless_present_any = ["hookpoints", "layer_stride"])]
    pub(crate) layers: Vec<usize>,
    /// Hook points, shell patterns allowed: model.layers.24.mlp, 'model.layers.*.mlp'
    #[arg(long, value_delimiter = ',', num_args = 1.., value_parser = pattern)]
    pub(crate) hookpoints: Vec<String>,
    /// Take every Nth of the hook points; without --layers and --hookpoints, of all decoder layers
    #[arg(long)]
    pub(crate) layer_stride: Option<NonZeroUsize>,
    /// Train transcoders: read a module's input, predict its output
    #[arg(long)]
    pub(crate) transcode: bool,
}

#[derive(Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(
    next_help_heading = "Autoencoder (several values of a flag train one autoencoder each, on the same forward passes)"
)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(crate) struct SaeArgs {
    /// Latents; default: the width of the vectors times --expansion-factor
    #[arg(long, value_delimiter = ',', num_args = 1.., conflicts_with = "expansion_factor")]
    pub(crate) num_latents: Vec<usize>,
    /// Latents per dimension
    #[arg(long, value_delimiter = ',', num_args = 1.., default_value = "32")]
    pub(crate) expansion_factor: Vec<usize>,
    /// Latents a token keeps
    #[arg(long, value_delimiter = ',', num_args = 1.., default_value = "32")]
    pub(crate) k: Vec<usize>,
    /// Which latents those are
    #[arg(long, value_delimiter = ',', num_args = 1.., value_enum, default_value = "topk")]
    pub(crate) activation: Vec<Activation>,
    /// Nested dictionaries (Matryoshka): also reconstruct from the first of the latents, given as shares: 0.125,0.25,0.5
    #[arg(long, value_delimiter = ',', num_args = 1.., value_parser = share)]
    pub(crate) matryoshka: Vec<f64>,
    /// Also train the reconstruction from 4k latents, at an eighth of the weight
    #[arg(long)]
    pub(crate) multi_topk: bool,
    /// Weight of the loss that revives dead latents; 0 turns it off, 0.03125 is usual
    #[arg(long, default_value_t = 0.0)]
    pub(crate) auxk_alpha: f64,
    /// A latent that did not fire for this many tokens is dead
    #[arg(long, default_value_t = 10_000_000)]
    pub(crate) dead_feature_threshold: u64,
    /// Add a linear map of the input to the output
    #[arg(long)]
    pub(crate) skip_connection: bool,
    /// Seeds of the initial weights; default: --seed
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    pub(crate) init_seeds: Vec<u64>,
    /// Start from these autoencoders, a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id, instead of random ones
    #[arg(long, conflicts_with_all = ["num_latents", "init_seeds"])]
    pub(crate) finetune: Option<String>,
    /// What the decoder's bias starts as
    #[arg(long, value_enum, default_value_t = BiasInitName::Median)]
    pub(crate) bias_init: BiasInitName,
    /// Subtract the first batch's mean from the vectors; folded into the biases that are saved
    #[arg(long)]
    pub(crate) centre: bool,
    /// Scale the vectors to a mean length of sqrt(width); folded into the biases that are saved
    #[arg(long)]
    pub(crate) scale_norm: bool,
}

#[derive(Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Optimizer step")]
pub(crate) struct StepArgs {
    /// Forward passes per optimizer step
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    pub(crate) grad_acc_steps: NonZeroUsize,
    /// Pieces in which the tokens of a forward pass go through the autoencoder: less memory, the same gradients
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    pub(crate) micro_acc_steps: NonZeroUsize,
    /// Optimizer
    #[arg(long, value_enum, default_value_t = OptimizerName::Adam)]
    pub(crate) optimizer: OptimizerName,
    /// Peak learning rate; default: 2e-4 / sqrt(latents / 2^14), for signum 5e-3 / sqrt(latents / 2^14)
    #[arg(long)]
    pub(crate) lr: Option<f64>,
    /// Optimizer steps over which the learning rate rises; at most a tenth of all of them
    #[arg(long, default_value_t = 1000)]
    pub(crate) lr_warmup_steps: u64,
    /// How the learning rate falls afterwards
    #[arg(long, value_enum, default_value_t = LrSchedule::Linear)]
    pub(crate) lr_schedule: LrSchedule,
    /// Largest norm of all gradients of a step together; inf turns clipping off
    #[arg(long, default_value_t = 1.0)]
    pub(crate) max_grad_norm: f64,
}

#[derive(Debug, clap::Args)]
#[command(
    next_help_heading = "Several processes, started by mpirun, srun, torchrun or as a Kubernetes indexed job"
)]
pub(crate) struct TeamArgs {
    /// What each process has
    #[arg(long, value_enum, default_value_t = Distribute::Data)]
    pub(crate) distribute: Distribute,
    /// What the processes of --distribute data tell each other in a step
    #[arg(long, value_enum, default_value_t = ExchangeName::Auto)]
    pub(crate) exchange: ExchangeName,
    /// What carries it
    #[arg(long, value_enum, default_value_t = CollectiveName::Auto)]
    pub(crate) collective: CollectiveName,
    /// Seconds to wait for a process that does not answer before the run stops
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) collective_timeout: u64,
}

#[derive(Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Run")]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(crate) struct RunArgs {
    /// Folder to write: HOOKPOINT/{cfg.json,sae.safetensors}, evaluation.json, metrics.jsonl, tensorboard/, run.json
    #[arg(long)]
    #[serde(skip)]
    pub(crate) save_dir: PathBuf,
    /// Replace the folder if it is there
    #[arg(long, conflicts_with = "resume")]
    #[serde(skip)]
    pub(crate) overwrite: bool,
    /// Optimizer steps between two checkpoints in SAVE_DIR.checkpoint; SIGINT and SIGTERM write one too. 0: none
    #[arg(long, default_value_t = 1000)]
    #[serde(skip)]
    pub(crate) save_every: u64,
    /// Go on from the last checkpoint, if there is one, with the same flags
    #[arg(long)]
    #[serde(skip)]
    pub(crate) resume: bool,
    /// Keep the last checkpoint when the run is done
    #[arg(long)]
    #[serde(skip)]
    pub(crate) keep_checkpoint: bool,
    /// Samples held out of training and measured at the end
    #[arg(long, default_value_t = 64)]
    pub(crate) eval_examples: usize,
    /// Optimizer steps between two evaluations on the samples held out; the best autoencoder is kept in best/. 0: at the end
    #[arg(long, default_value_t = 0)]
    pub(crate) eval_every: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) precision: PrecisionArgs,
    /// Start even where the run is predicted not to fit into memory or onto the disk
    #[arg(long)]
    #[serde(skip)]
    pub(crate) no_preflight: bool,
    /// Say what would be trained and what it needs, and stop
    #[arg(long)]
    #[serde(skip)]
    pub(crate) dry_run: bool,
}

impl StageArgs {
    /// The data sets as one would type them.
    pub(crate) fn sources(&self) -> String {
        self.datasets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// What the result depends on, by the names of the flags; flags that were left out and have no default are absent.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let groups = [
            serde_json::to_value(&self.data),
            serde_json::to_value(&self.hooks),
            serde_json::to_value(&self.sae),
            serde_json::to_value(&self.step),
            serde_json::to_value(&self.run),
        ];
        let mut settings = Settings::new();
        for group in groups {
            let Value::Object(flags) = group.context("writing the flags as JSON")? else { continue };
            let given = flags.into_iter().filter(|(_, value)| !value.is_null());
            settings.extend(given.map(|(name, value)| (format!("--{name}"), value.to_string())));
        }
        Ok(settings)
    }
}

fn pattern(text: &str) -> Result<String, String> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"._*?[]!-".contains(&byte);
    if !text.is_empty() && text.bytes().all(sound) {
        Ok(text.to_owned())
    } else {
        Err("expected a module path such as model.layers.24, or a pattern such as 'model.layers.*.mlp'"
            .into())
    }
}

fn weight(text: &str) -> Result<f32, String> {
    let weight: f32 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if weight >= 0.0 && weight.is_finite() { Ok(weight) } else { Err("expected 0 or more".into()) }
}

fn multiple(text: &str) -> Result<f64, String> {
    let multiple: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if multiple > 1.0 && multiple.is_finite() { Ok(multiple) } else { Err("expected more than 1".into()) }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if share > 0.0 && share < 1.0 { Ok(share) } else { Err("expected a share between 0 and 1".into()) }
}
