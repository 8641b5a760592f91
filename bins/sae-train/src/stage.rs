//! The training stage: samples through the model, hidden states to a trainer per hook point, autoencoders to disk.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lmm_prep::{Inputs, Processor};
use mm_data::{BadRecordCounter, BadRecords, DataError, Dataset, Field, OpenOptions, hub, shuffled_order};
use model_kit::{OpenModel, TorchArgs, sample_inputs};
use ndarray::ArrayView2;
use sae_core::WeightDtype;
use sae_core::metrics::{Firing, Reconstruction};
use sae_trainer::{Schedule, Trainer, TrainerConfig};
use sae_types::HookPoint;
use serde_json::{Map, Value, json};
use stage_kit::{CommonArgs, Existing, OutputFolder, Progress, RunManifest, UsageError, hash_file, prefetch};
use tch::{Device, Kind, Tensor};

/// How many batches of prepared samples wait for the model.
const BATCHES_AHEAD: usize = 2;

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LrSchedule {
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

#[derive(Debug, clap::Args)]
pub(crate) struct StageArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    model: String,
    /// Data set: parquet, an image folder, JSON, or a Hub id. Conversations are read in the model's chat template
    dataset: String,
    /// Split of the data set
    #[arg(long)]
    split: Option<String>,
    /// Decoder layers whose output to train on; one autoencoder each
    #[arg(long, value_delimiter = ',', num_args = 1.., required_unless_present = "hookpoints")]
    layers: Vec<usize>,
    /// Hook points to train on, beside --layers: model.layers.24.mlp
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    hookpoints: Vec<HookPoint>,
    /// Latents of each autoencoder; default: the width of the vectors times --expansion-factor
    #[arg(long)]
    num_latents: Option<usize>,
    /// Latents per dimension, without --num-latents
    #[arg(long, default_value_t = 32)]
    expansion_factor: usize,
    /// Latents a token keeps
    #[arg(long, default_value_t = 32)]
    k: usize,
    /// Also train the reconstruction from 4k latents, at an eighth of the weight
    #[arg(long)]
    multi_topk: bool,
    /// Weight of the loss that revives dead latents; 0 turns it off, 0.03125 is usual
    #[arg(long, default_value_t = 0.0)]
    auxk_alpha: f64,
    /// Samples per forward pass
    #[arg(long, default_value_t = NonZeroUsize::new(8).expect("8 is not 0"))]
    batch_size: NonZeroUsize,
    /// Forward passes per optimizer step
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    grad_acc_steps: NonZeroUsize,
    /// Times the data set is read
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    epochs: NonZeroUsize,
    /// Learning rate; default: 2e-4 / sqrt(latents / 2^14)
    #[arg(long)]
    lr: Option<f64>,
    /// Optimizer steps over which the learning rate rises; at most a tenth of all of them
    #[arg(long, default_value_t = 1000)]
    lr_warmup_steps: u64,
    /// How the learning rate falls afterwards
    #[arg(long, value_enum, default_value_t = LrSchedule::Linear)]
    lr_schedule: LrSchedule,
    /// A latent that did not fire for this many tokens is dead
    #[arg(long, default_value_t = 10_000_000)]
    dead_feature_threshold: u64,
    /// Train on at most this many tokens of a sample; default: all
    #[arg(long)]
    ctx_len: Option<NonZeroUsize>,
    /// Train on at most this many samples
    #[arg(long)]
    max_examples: Option<NonZeroUsize>,
    /// Samples held out of training and measured at the end
    #[arg(long, default_value_t = 64)]
    eval_examples: usize,
    /// Leave out up to this many unreadable samples instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    max_bad: u64,
    /// Folder to write: HOOKPOINT/{cfg.json,sae.safetensors}, metrics.jsonl, run.json
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it is there
    #[arg(long)]
    overwrite: bool,
}

/// One autoencoder in training.
struct Training {
    hook: HookPoint,
    trainer: Trainer,
    started: bool,
}

pub(crate) fn run(args: &StageArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    if common.world()?.size > 1 {
        return Err(UsageError::new("sae-train runs as one process: leave --world-size at 1").into());
    }
    let mut run = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    run.seed = Some(common.seed);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let fields = vec![Field::Images, Field::Conversations];
    let options = OpenOptions { split: args.split.clone(), fields, ..OpenOptions::default() };
    let dataset = Arc::new(hub::open_dataset(&args.dataset, &options)?);
    let model = OpenModel::open(&args.model, torch)?;
    run.input("model", &model.folder.display(), hash_file(&model.folder.join("config.json"))?);
    run.input("dataset", &args.dataset, dataset.fingerprint());

    let mut order = shuffled_order(dataset.len(), common.seed);
    let held_out = order.split_off(order.len().saturating_sub(args.eval_examples));
    order.truncate(args.max_examples.map_or(usize::MAX, NonZeroUsize::get));
    ensure!(
        !order.is_empty(),
        "{} has {} samples, all of them held out: lower --eval-examples",
        args.dataset,
        dataset.len()
    );
    let samples = order.len() * args.epochs.get();
    let passes = samples.div_ceil(args.batch_size.get());
    let steps = passes.div_ceil(args.grad_acc_steps.get()) as u64;
    let mut trainings = start(args, &model, common.seed, steps)?;
    let hooks: Vec<HookPoint> = trainings.iter().map(|training| training.hook.clone()).collect();

    let metrics_path = output.path().join("metrics.jsonl");
    let create = || format!("cannot write {}", metrics_path.display());
    let mut metrics = BufWriter::new(File::create(&metrics_path).with_context(create)?);
    let mut bad = Bad::new(BadRecords::up_to(args.max_bad));
    let progress = Progress::new("training", "samples", Some(samples as u64));
    let epochs = args.epochs.get();
    let order = (0..epochs).flat_map(move |_| order.clone());
    for batch in batches(args, &dataset, &model.processor, order) {
        let read = batch.len() as u64;
        let inputs = bad.admit(batch)?;
        for (hook, rows) in states(args, &model, &inputs, &hooks)? {
            let training =
                trainings.iter_mut().find(|training| training.hook == hook).context("a hook of ours")?;
            if !training.started {
                training.trainer.init_bias(&rows)?;
                training.started = true;
            }
            let report = training.trainer.step(&rows).with_context(|| format!("training at {hook}"))?;
            let line = json!({
                "hookpoint": hook, "optimizer_steps": report.optimizer_steps, "tokens": report.tokens,
                "loss": report.loss, "fvu": report.fvu, "multi_topk_fvu": report.multi_topk_fvu, "auxk": report.auxk,
                "l0": report.l0, "dead_share": report.dead_share, "lr": report.lr, "grad_norm": report.grad_norm,
            });
            writeln!(metrics, "{line}").with_context(create)?;
            progress.note(format_args!(
                "{hook} fvu {:.4} dead {:.1} %",
                report.fvu,
                100.0 * report.dead_share
            ));
        }
        progress.inc(read);
    }
    progress.finish();
    metrics.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(create)?;

    let evaluation = evaluate(args, &dataset, &model, &trainings, held_out)?;
    write(&output, "evaluation.json", &serde_json::to_string_pretty(&evaluation)?)?;
    for Training { hook, trainer, .. } in trainings {
        run.count(&format!("{hook} tokens"), trainer.state().tokens);
        trainer.into_sae()?.save(&output.path().join(hook.as_str()), WeightDtype::F32)?;
    }
    let config = json!({
        "model": args.model, "dataset": args.dataset, "split": dataset.split(), "ctx_len": args.ctx_len,
        "hookpoints": hooks, "batch_size": args.batch_size, "grad_acc_steps": args.grad_acc_steps, "epochs": args.epochs,
    });
    write(&output, "config.json", &serde_json::to_string_pretty(&config)?)?;
    run.count("samples", samples as u64);
    run.count("bad records", bad.counter.bad());
    run.count("optimizer steps", steps);
    output.commit(run)?;
    // Last: a reader of stdout that went away ends the run here, and must not cost the autoencoders.
    for (hook, held_out) in evaluation {
        writeln!(stage_kit::stdout(), "{}", json!({"hookpoint": hook, "held_out": held_out}))?;
    }
    Ok(())
}

fn write(output: &OutputFolder, name: &str, text: &str) -> Result<()> {
    let path = output.path().join(name);
    std::fs::write(&path, format!("{text}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// A trainer per hook point.
fn start(args: &StageArgs, model: &OpenModel, seed: u64, steps: u64) -> Result<Vec<Training>> {
    let mut hooks: Vec<HookPoint> = args.layers.iter().map(|&layer| HookPoint::layer(layer)).collect();
    hooks.extend(args.hookpoints.iter().cloned());
    hooks.sort_unstable();
    hooks.dedup();
    hooks
        .into_iter()
        .map(|hook| {
            let d_in = model.network.width(&hook)? as usize;
            let num_latents = args.num_latents.unwrap_or(d_in * args.expansion_factor);
            let mut config = TrainerConfig::new(d_in, num_latents, args.k, steps);
            config.lr = args.lr;
            config.warmup_steps = args.lr_warmup_steps.min(steps / 10);
            config.schedule = args.lr_schedule.into();
            config.grad_acc_steps =
                u32::try_from(args.grad_acc_steps.get()).context("--grad-acc-steps is too large")?;
            config.auxk_alpha = args.auxk_alpha;
            config.multi_topk = args.multi_topk;
            config.dead_feature_threshold = args.dead_feature_threshold;
            config.seed = seed;
            let trainer = Trainer::new(config, model.network.device())?;
            tracing::info!(%hook, d_in, num_latents, k = args.k, steps, "training");
            Ok(Training { hook, trainer, started: false })
        })
        .collect()
}

/// A sample by its number in the data set, as the model is to read it.
type Prepared = (u32, Result<Inputs, DataError>);

/// Prepared samples in the order given, `--batch-size` at a time.
fn batches<I: Iterator<Item = u32> + Send + 'static>(
    args: &StageArgs,
    dataset: &Arc<Dataset>,
    processor: &Arc<Processor>,
    order: I,
) -> impl Iterator<Item = Vec<Prepared>> + use<I> {
    let size = args.batch_size.get();
    let ahead = NonZeroUsize::new(BATCHES_AHEAD * size).unwrap_or(NonZeroUsize::MIN);
    let (dataset, processor) = (Arc::clone(dataset), Arc::clone(processor));
    let prepare = move |index: usize| {
        let sample = dataset.get(index)?;
        sample_inputs(&processor, &sample).map_err(|cause| dataset.unusable(index, cause))
    };
    let mut prepared = prefetch(order, ahead, move |number| (number, prepare(number as usize)));
    std::iter::from_fn(move || {
        let batch: Vec<_> = prepared.by_ref().take(size).collect();
        (!batch.is_empty()).then_some(batch)
    })
}

/// The bad records of a run. One that every epoch meets again counts once.
struct Bad {
    counter: BadRecordCounter,
    met: BTreeSet<u32>,
}

impl Bad {
    fn new(policy: BadRecords) -> Self {
        Self { counter: BadRecordCounter::new(policy), met: BTreeSet::new() }
    }

    fn admit(&mut self, batch: Vec<Prepared>) -> Result<Vec<Inputs>, DataError> {
        let Self { counter, met } = self;
        let new = batch.into_iter().filter(|(index, inputs)| inputs.is_ok() || met.insert(*index));
        new.filter_map(|(_, inputs)| counter.admit(inputs).transpose()).collect()
    }
}

/// The hidden states of a batch at each hook point, `[tokens of all samples, width]`.
fn states(
    args: &StageArgs,
    model: &OpenModel,
    inputs: &[Inputs],
    hooks: &[HookPoint],
) -> Result<Vec<(HookPoint, Tensor)>> {
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    let inputs: Vec<&Inputs> = inputs.iter().collect();
    let limit = args.ctx_len.map_or(i64::MAX, |limit| limit.get() as i64);
    let joined = model.rows(&inputs, hooks)?.into_iter().map(|(hook, rows)| {
        let rows: Vec<Tensor> =
            rows.iter().map(|rows| rows.narrow(0, 0, rows.size()[0].min(limit))).collect();
        (hook, Tensor::cat(&rows, 0))
    });
    Ok(joined.collect())
}

/// Measures the autoencoders on samples they were not trained on, by hook point.
fn evaluate(
    args: &StageArgs,
    dataset: &Arc<Dataset>,
    model: &OpenModel,
    trainings: &[Training],
    held_out: Vec<u32>,
) -> Result<Map<String, Value>> {
    let hooks: Vec<HookPoint> = trainings.iter().map(|training| training.hook.clone()).collect();
    let mut measured: Vec<(Reconstruction, Firing)> = trainings
        .iter()
        .map(|training| (Reconstruction::new(), Firing::new(training.trainer.sae().num_latents())))
        .collect();
    let mut bad = Bad::new(BadRecords::up_to(args.max_bad));
    let progress = Progress::new("evaluating", "samples", Some(held_out.len() as u64));
    for batch in batches(args, dataset, &model.processor, held_out.into_iter()) {
        let read = batch.len() as u64;
        let inputs = bad.admit(batch)?;
        for (hook, rows) in states(args, model, &inputs, &hooks)? {
            let at = hooks.iter().position(|known| *known == hook).context("a hook of ours")?;
            let sae = trainings[at].trainer.sae();
            let codes = sae.encode(&rows);
            measured[at].1.push(&codes.to_codes(sae.num_latents())?);
            let (x, reconstruction) = (to_vec(&rows)?, to_vec(&sae.decode(&codes))?);
            let shape = (x.len() / sae.d_in(), sae.d_in());
            measured[at].0.push(
                ArrayView2::from_shape(shape, &x).context("rows of one width")?,
                ArrayView2::from_shape(shape, &reconstruction).context("rows of one width")?,
            );
        }
        progress.inc(read);
    }
    progress.finish();
    let mut report = Map::new();
    for (hook, (reconstruction, firing)) in hooks.iter().zip(&measured) {
        let line = json!({
            "tokens": reconstruction.rows(), "fvu": reconstruction.fvu(), "l0": firing.l0(),
            "dead_share": firing.dead_share(), "dense_share": firing.dense_share(0.1),
        });
        report.insert(hook.to_string(), line);
    }
    Ok(report)
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    Vec::try_from(tensor.to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]))
        .context("reading a tensor back")
}
