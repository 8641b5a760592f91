//! The training stage: samples through the model, hidden states to the trainers, autoencoders to disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use mm_data::{BadRecords, Concat};
use model_kit::{LeftOut, ModelFolder, OpenModel, SampleBatches, TorchArgs};
use sae_core::WeightDtype;
use sae_eval::{Evaluation, Subject};
use sae_trainer::Trainer;
use sae_types::HookPoint;
use serde_json::{Value, json};
use stage_kit::{
    Checkpoints, CommonArgs, Existing, Interrupt, Interrupted, OutputFolder, Progress, RunManifest,
    UsageError, hash_file,
};

use crate::args::StageArgs;
use crate::metrics::{METRICS, Metrics, TENSORBOARD};
use crate::order::Order;
use crate::plan::{Planned, plan};
use crate::rows::{counted, positions};
use crate::state::{RunState, Settings, check_settings};
use crate::{data, preflight};

/// The autoencoders with the smallest FVU on held-out samples, below the output folder.
const BEST: &str = "best";
/// What was trained and by which settings.
const CONFIG: &str = "config.json";
/// The samples that were left out.
const BAD_RECORDS: &str = "bad_records.jsonl";

/// One autoencoder in training.
struct Training {
    planned: Planned,
    trainer: Trainer,
    /// Calls of its trainer.
    calls: u64,
    /// The smallest FVU on held-out samples.
    best: Option<f64>,
}

/// All that a run works on.
struct Stage<'a> {
    args: &'a StageArgs,
    dataset: Arc<Concat>,
    model: OpenModel,
    order: Order,
    held_out: Vec<u32>,
    points: Vec<HookPoint>,
    settings: Settings,
    checkpoints: Checkpoints,
}

pub(crate) fn run(args: &StageArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    if common.world()?.size > 1 {
        return Err(UsageError::new("sae-train runs as one process: leave --world-size at 1").into());
    }
    let mut run = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    run.seed = Some(common.seed);
    let finished = args.run.resume && args.run.save_dir.join("run.json").exists();
    if !finished {
        OutputFolder::check(&args.run.save_dir, Existing::from_overwrite(args.run.overwrite))?;
    }
    let device = match torch.device.open() {
        Ok(device) => Some(device),
        // A dry run may be for another machine.
        Err(_) if args.run.dry_run => None,
        Err(error) => return Err(error).with_context(|| format!("cannot use --device {}", torch.device)),
    };
    let found = ModelFolder::find(&args.model)?;
    let network = found.hollow()?;
    let checkpoint_folder = checkpoint_folder(&args.run.save_dir)?;
    let dataset = Arc::new(data::open(args, common.seed)?);
    let (settings, inputs) = settings(args, torch, common, &found, &dataset)?;
    for (role, source, sha256) in inputs {
        run.input(role, &source, sha256);
    }
    if finished {
        return already_finished(args, &settings, &checkpoint_folder);
    }

    let data = &args.data;
    let (order, held_out) =
        Order::new(dataset.len(), args.run.eval_examples, data.max_examples, data.epochs, common.seed);
    ensure!(
        order.len() > 0,
        "{} has {} samples, all of them held out: lower --eval-examples",
        args.sources(),
        dataset.len()
    );
    let passes = order.len().div_ceil(data.batch_size.get());
    let steps = passes.div_ceil(args.step.grad_acc_steps.get()) as u64;
    let planned = plan(args, &network, common.seed, steps)?;
    let points: BTreeSet<&HookPoint> = planned.iter().flat_map(Planned::points).collect();
    let points: Vec<HookPoint> = points.into_iter().cloned().collect();

    let longest = preflight::longest(&dataset, &found.processor, order.from(0));
    let needs = preflight::estimate(args, network.config(), torch, device, &planned, steps, longest)?;
    if args.run.dry_run {
        write!(stage_kit::stdout(), "{needs}")?;
        return needs.fits();
    }
    if !args.run.no_preflight {
        needs.fits()?;
    }
    let model = found.load(torch, args.run.precision.weights())?;
    let checkpoints = open_checkpoints(args, &checkpoint_folder)?;
    let stage = Stage { args, dataset, model, order, held_out, points, settings, checkpoints };
    let evaluations = match stage.train(planned, run) {
        Ok(evaluations) => evaluations,
        Err(error) => {
            stage.leave(&error);
            return Err(error);
        }
    };
    if !args.run.keep_checkpoint {
        stage.checkpoints.remove()?;
    }
    // Last: a reader of stdout that went away ends the run here, and must not cost the autoencoders.
    for (name, evaluation) in &evaluations {
        writeln!(stage_kit::stdout(), "{}", json!({"name": name, "held_out": evaluation}))?;
    }
    Ok(())
}

/// A run that ended, perhaps just before it could remove its checkpoint.
fn already_finished(args: &StageArgs, settings: &Settings, checkpoint_folder: &Path) -> Result<()> {
    let path = args.run.save_dir.join(CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    let was = serde_json::from_value(config["settings"].take())
        .with_context(|| format!("{} has no settings of a run", path.display()))?;
    check_settings(&was, settings)?;
    if checkpoint_folder.exists() && !args.run.keep_checkpoint {
        Checkpoints::open(checkpoint_folder, 1)?.remove()?;
    }
    tracing::info!("{} is finished already", args.run.save_dir.display());
    Ok(())
}

/// The folder of the run's checkpoints; those of another run that did not end are neither mixed in nor lost by mistake.
fn open_checkpoints(args: &StageArgs, folder: &Path) -> Result<Checkpoints> {
    let checkpoints = Checkpoints::open(folder, 1)?;
    if args.run.resume || checkpoints.latest()?.is_none() {
        return Ok(checkpoints);
    }
    if args.run.overwrite {
        checkpoints.remove()?;
        return Ok(Checkpoints::open(folder, 1)?);
    }
    Err(UsageError::new(format!(
        "{} holds a checkpoint of a run that did not end: go on with --resume, or start anew with --overwrite",
        folder.display()
    ))
    .into())
}

/// `SAVE_DIR.checkpoint`.
fn checkpoint_folder(save_dir: &Path) -> Result<PathBuf> {
    let mut name = save_dir.file_name().context("--save-dir ends in no name")?.to_owned();
    name.push(".checkpoint");
    Ok(save_dir.with_file_name(name))
}

type Inputs = Vec<(&'static str, String, String)>;

/// What the result depends on, by the names of the flags, and what is read.
fn settings(
    args: &StageArgs,
    torch: TorchArgs,
    common: &CommonArgs,
    model: &ModelFolder,
    dataset: &Concat,
) -> Result<(Settings, Inputs)> {
    let model_hash = hash_file(&model.folder.join("config.json"))?;
    let inputs = vec![
        ("model", model.folder.display().to_string(), model_hash.clone()),
        ("dataset", args.sources(), dataset.fingerprint().to_owned()),
    ];
    let mut settings = args.settings()?;
    settings.insert("MODEL's config.json".into(), model_hash);
    settings.insert("DATASET's fingerprint".into(), dataset.fingerprint().to_owned());
    settings.insert("--seed".into(), common.seed.to_string());
    settings.insert("--device".into(), torch.device.to_string());
    settings.insert("--dtype".into(), torch.dtype.to_string());
    Ok((settings, inputs))
}

impl Stage<'_> {
    fn train(&self, planned: Vec<Planned>, mut run: RunManifest) -> Result<BTreeMap<String, Evaluation>> {
        let args = self.args;
        let interrupt = Interrupt::defer();
        let device = self.model.network.device();
        let mut state = self.start_state()?;
        let mut trainings = planned
            .into_iter()
            .map(|planned| {
                let config = &planned.config;
                tracing::info!(
                    name = %planned.name, d_in = config.d_in, num_latents = config.num_latents, k = config.k,
                    steps = config.total_steps, "training"
                );
                let mut trainer = planned.trainer(device)?;
                if let Some(folder) = self.resumed()? {
                    trainer.load_state(&trainer_file(&folder, &planned.name))?;
                }
                let calls = state.calls.get(&planned.name).copied().unwrap_or(0);
                let best = state.best.get(&planned.name).and_then(|fvu| fvu.parse().ok());
                Ok(Training { planned, trainer, calls, best })
            })
            .collect::<Result<Vec<_>>>()?;
        let tokens = trainings.last().map_or(0, |training| training.trainer.tokens());
        let mut metrics =
            Metrics::open(self.checkpoints.folder(), state.metrics_bytes, steps_of(&trainings), tokens)?;
        let mut batches = self.batches(self.order.from(state.samples), state.left_out.clone());
        let progress = Progress::new("training", "samples", Some(self.order.len() as u64));
        progress.skip(state.samples as u64);

        while let Some(batch) = batches.next_batch()? {
            state.samples += batch.read;
            let before = steps_of(&trainings);
            let mut last = None;
            if let Some(counted) = counted(&args.data, &self.model, &batch.samples, &self.points)? {
                for training in &mut trainings {
                    let Training { planned, trainer, calls, .. } = training;
                    let first = *calls == 0;
                    let Some(report) = counted.train(&args.data, planned, trainer, first)? else { continue };
                    *calls += 1;
                    metrics.step(&planned.name, &report)?;
                    last = Some((planned.name.as_str(), report));
                }
            }
            if let Some((name, report)) = last {
                let per_second = metrics.speed(report.optimizer_steps, report.tokens)?;
                progress.note(format_args!(
                    "{name} fvu {:.4} l0 {:.1} dead {:.1} %, {per_second:.0} tokens/s",
                    report.fvu,
                    report.l0,
                    100.0 * report.dead_share
                ));
            }
            progress.inc(batch.read as u64);
            let steps = steps_of(&trainings);
            let due = |every: u64| every > 0 && steps > before && steps.is_multiple_of(every);
            if due(args.run.eval_every) {
                self.evaluate_and_keep(&mut trainings, &mut metrics, steps)?;
            }
            if let Some(signal) = interrupt.signal() {
                drop(progress);
                self.save(&mut state, &trainings, &batches, &mut metrics, steps)?;
                tracing::warn!("stopped at optimizer step {steps}; go on with --resume");
                return Err(Interrupted(signal).into());
            }
            if due(args.run.save_every) {
                self.save(&mut state, &trainings, &batches, &mut metrics, steps)?;
            }
        }
        progress.finish();
        drop(interrupt);
        if let Some(training) = trainings.iter().find(|training| training.calls == 0) {
            bail!(
                "no token of any sample counts, so {} was not trained: look at --roles, --image-weight, --text-weight, \
                 --ctx-len and --max-norm-multiple",
                training.planned.name
            );
        }

        let steps = steps_of(&trainings);
        let evaluations = self.evaluate_and_keep(&mut trainings, &mut metrics, steps)?;
        metrics.flush()?;
        drop(metrics);
        let output = OutputFolder::create(&args.run.save_dir, Existing::from_overwrite(args.run.overwrite))?;
        for Training { planned, trainer, .. } in &trainings {
            run.count(&format!("{} tokens", planned.name), trainer.tokens());
            trainer.to_sae()?.save(&output.path().join(&planned.name), WeightDtype::F32)?;
        }
        self.write_rest(&output, &evaluations, &trainings)?;
        run.count("samples", self.order.len() as u64);
        run.count("bad records", batches.bad().bad());
        run.count("optimizer steps", steps);
        if batches.bad().bad() > 0 {
            batches.bad().write_list(&output.path().join(BAD_RECORDS))?;
        }
        if let Some(report) = self.model.network.quantisation() {
            let report = json!({
                "mean_relative_error": report.mean_error(), "bytes_before": report.bytes_before(),
                "bytes_after": report.bytes_after(), "matrices": report.matrices,
            });
            write(&output, "quantisation.json", &format!("{}\n", serde_json::to_string_pretty(&report)?))?;
        }
        output.commit(run)?;
        Ok(evaluations)
    }

    /// After an error: says what a run can go on from, or removes a folder that holds nothing of the kind.
    fn leave(self, error: &anyhow::Error) {
        match self.checkpoints.latest() {
            Ok(Some(step)) if !error.is::<Interrupted>() => tracing::warn!(
                "the last checkpoint is that of optimizer step {}; go on with --resume",
                step.step
            ),
            // What cannot be removed either must not hide the error.
            Ok(None) => drop(self.checkpoints.remove()),
            _ => {}
        }
    }

    /// The checkpoint to go on from.
    fn resumed(&self) -> Result<Option<PathBuf>> {
        Ok(if self.args.run.resume { self.checkpoints.latest()?.map(|step| step.path) } else { None })
    }

    /// How far the run is when it starts.
    fn start_state(&self) -> Result<RunState> {
        if let Some(folder) = self.resumed()? {
            let state = RunState::read(&folder)?;
            check_settings(&state.settings, &self.settings)?;
            tracing::info!("going on from {} with sample {}", folder.display(), state.samples);
            return Ok(state);
        }
        Ok(RunState {
            settings: self.settings.clone(),
            samples: 0,
            metrics_bytes: 0,
            left_out: LeftOut::default(),
            calls: BTreeMap::new(),
            best: BTreeMap::new(),
        })
    }

    fn batches(&self, order: impl Iterator<Item = u32> + Send + 'static, left_out: LeftOut) -> SampleBatches {
        let data = &self.args.data;
        let policy = BadRecords::up_to(data.max_bad);
        SampleBatches::new(&self.dataset, &self.model.processor, order, data.batch_size, policy, left_out)
    }

    /// Writes a checkpoint that a run can go on from, with autoencoders that can be used.
    fn save(
        &self,
        state: &mut RunState,
        trainings: &[Training],
        batches: &SampleBatches,
        metrics: &mut Metrics,
        steps: u64,
    ) -> Result<()> {
        state.metrics_bytes = metrics.flush()?;
        state.left_out = batches.left_out();
        for Training { planned, calls, best, .. } in trainings {
            state.calls.insert(planned.name.clone(), *calls);
            state.best.extend(best.map(|best| (planned.name.clone(), best.to_string())));
        }
        self.checkpoints.write::<anyhow::Error>(steps, |folder| {
            state.write(folder)?;
            for Training { planned, trainer, .. } in trainings {
                trainer.to_sae()?.save(&folder.join(&planned.name), WeightDtype::F32)?;
                trainer.save_state(&trainer_file(folder, &planned.name))?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Measures all autoencoders on the held-out samples and keeps the best of each so far.
    fn evaluate_and_keep(
        &self,
        trainings: &mut [Training],
        metrics: &mut Metrics,
        steps: u64,
    ) -> Result<BTreeMap<String, Evaluation>> {
        let evaluations = self.evaluate(trainings)?;
        for Training { planned, trainer, best, .. } in trainings {
            let Some(evaluation) = evaluations.get(&planned.name) else { continue };
            metrics.evaluation(&planned.name, steps, &serde_json::to_value(evaluation)?)?;
            let better = evaluation.fvu.filter(|fvu| best.is_none_or(|best| *fvu < best));
            if better.is_some() {
                *best = better;
                if self.args.run.eval_every > 0 {
                    let folder = self.checkpoints.folder().join(BEST).join(&planned.name);
                    trainer.to_sae()?.save(&folder, WeightDtype::F32)?;
                }
            }
        }
        Ok(evaluations)
    }

    fn evaluate(&self, trainings: &[Training]) -> Result<BTreeMap<String, Evaluation>> {
        let saes = trainings
            .iter()
            .map(|training| Ok((&training.planned, training.trainer.to_sae()?)))
            .collect::<Result<Vec<_>>>()?;
        let subjects = saes.iter().map(|(planned, sae)| {
            let (name, hook) = (planned.name.clone(), planned.hook.clone());
            match &planned.input {
                None => Subject::autoencoder(name, hook, sae),
                Some(input) => Subject::transcoder(name, input.clone(), hook, sae),
            }
        });
        let (args, model) = (self.args, &self.model);
        let batches = self.batches(self.held_out.clone().into_iter(), LeftOut::default());
        let total = self.held_out.len() as u64;
        let evaluations = model_kit::evaluate(model, subjects.collect(), batches, total, |inputs| {
            positions(&args.data, model, inputs).0
        })?;
        Ok(evaluations.into_iter().map(|evaluation| (evaluation.name.clone(), evaluation)).collect())
    }

    /// What stands in the output folder beside the autoencoders.
    fn write_rest(
        &self,
        output: &OutputFolder,
        evaluations: &BTreeMap<String, Evaluation>,
        trainings: &[Training],
    ) -> Result<()> {
        let args = self.args;
        write(output, "evaluation.json", &format!("{}\n", serde_json::to_string_pretty(evaluations)?))?;
        let hooks: Vec<&HookPoint> = trainings.iter().map(|training| &training.planned.hook).collect();
        let config = json!({
            "model": args.model, "dataset": args.sources(), "split": args.data.split,
            "ctx_len": args.data.tokens.ctx_len, "hookpoints": hooks, "settings": self.settings,
        });
        write(output, CONFIG, &format!("{}\n", serde_json::to_string_pretty(&config)?))?;
        for name in [METRICS, TENSORBOARD, BEST] {
            // Copied, not moved: whoever is killed now goes on from the checkpoint, which needs them.
            copy(&self.checkpoints.folder().join(name), &output.path().join(name))?;
        }
        Ok(())
    }
}

/// Optimizer steps taken.
fn steps_of(trainings: &[Training]) -> u64 {
    trainings.iter().map(|training| training.trainer.optimizer_steps()).max().unwrap_or(0)
}

fn trainer_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).join("trainer.safetensors")
}

fn write(output: &OutputFolder, name: &str, text: &str) -> Result<()> {
    let path = output.path().join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Copies a file or folder, if it is there.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    if from.is_dir() {
        std::fs::create_dir(to).with_context(context)?;
        for entry in std::fs::read_dir(from).with_context(context)? {
            let name = entry.with_context(context)?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
    } else if from.exists() {
        std::fs::copy(from, to).with_context(context)?;
    }
    Ok(())
}
