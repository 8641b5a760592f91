//! The loop of a run: samples through the model, hidden states to the trainers, until all have been read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use mm_data::BadRecords;
use model_kit::{LeftOut, SampleBatches};
use sae_eval::Evaluation;
use sae_trainer::Trainer;
use serde::{Deserialize, Serialize};
use stage_kit::{Interrupt, Interrupted, Progress, RunManifest};

use crate::args::Distribute;
use crate::metrics::{Metrics, Step};
use crate::plan::Planned;
use crate::rows::counted;
use crate::saving::trainer_file;
use crate::stage::Stage;
use crate::state::{RunState, check_settings};
use crate::team::Team;

/// One autoencoder in training.
pub(crate) struct Training {
    pub(crate) planned: Planned,
    /// The process that has it to itself.
    pub(crate) owner: Option<usize>,
    /// Where this process works on it.
    pub(crate) trainer: Option<Trainer>,
    /// Calls of its trainer.
    pub(crate) calls: u64,
    /// The smallest FVU on held-out samples.
    pub(crate) best: Option<f64>,
}

/// What the processes tell each other after every batch.
#[derive(Debug, Serialize, Deserialize)]
struct Tick {
    /// A signal to stop.
    signal: Option<i32>,
    /// Samples it left out that nobody has told of before, by their numbers.
    bad: BTreeSet<u32>,
    optimizer_steps: u64,
    /// Of the autoencoders whose files it writes, by number: what the trainer's call did.
    reports: Vec<(usize, Vec<u8>)>,
}

impl Stage<'_> {
    pub(crate) fn train(
        &self,
        planned: Vec<Planned>,
        mut run: RunManifest,
    ) -> Result<BTreeMap<String, Evaluation>> {
        let (args, team) = (self.args, self.team);
        let interrupt = Interrupt::defer();
        let mut state = self.start_state()?;
        let owners = team.owners(&planned);
        let mut trainings = self.trainings(planned, &owners, &state)?;
        let mut steps = most(team, &trainings, Trainer::optimizer_steps)?;
        let tokens = most(team, &trainings, Trainer::tokens)?;
        let mut metrics = match &self.checkpoints {
            Some(checkpoints) => {
                Some(Metrics::open(checkpoints.folder(), state.metrics_bytes, steps, tokens)?)
            }
            None => None,
        };
        // Each epoch meets a bad sample again, in another process.
        let mut bad = state.left_out.numbers.clone();
        let len = self.order.len();
        let order = self.share.choose(self.order.from(state.samples), state.samples, len);
        let mut batches = self.batches(order, self.share.of(self.share.batch).len(), state.left_out.clone());
        let progress = Progress::new("training", "samples", Some(len as u64));
        progress.skip(state.samples as u64);

        while state.samples < len {
            let read = self.share.batch.min(len - state.samples);
            // The last batch may have nothing for this process.
            let batch = if self.share.of(read).is_empty() { None } else { batches.next_batch()? };
            state.samples += read;
            let before = steps;
            let samples = batch.map(|batch| batch.samples).unwrap_or_default();
            let mut found = counted(&args.data, &self.model, &samples, &self.points)?;
            if args.team.distribute == Distribute::Modules
                && let Some(ranks) = team.ranks()
            {
                let planned: Vec<&Planned> = trainings.iter().map(|training| &training.planned).collect();
                found = found.to_owners(&planned, &owners, ranks)?;
            }
            let mut tick = Tick {
                signal: interrupt.signal(),
                bad: batches.left_out_numbers().difference(&bad).copied().collect(),
                optimizer_steps: 0,
                reports: Vec::new(),
            };
            for (index, training) in trainings.iter_mut().enumerate() {
                let Training { planned, owner, trainer: Some(trainer), calls, .. } = training else {
                    continue;
                };
                let first = *calls == 0;
                let ranks = team.sharing_a_batch();
                let Some(report) = found.train(&args.data, planned, trainer, first, ranks)? else { continue };
                *calls += 1;
                if team.leads() || owner.is_some() {
                    tick.reports.push((index, Step::from(&report).to_bytes()));
                }
                tick.optimizer_steps = tick.optimizer_steps.max(trainer.optimizer_steps());
            }
            let ticks = team.collect(tick)?;
            steps = ticks.iter().map(|tick| tick.optimizer_steps).max().unwrap_or(0).max(steps);
            bad.extend(ticks.iter().flat_map(|tick| &tick.bad));
            if bad.len() as u64 > args.data.max_bad {
                bail!(
                    "{} samples of all processes together could not be read, more than --max-bad {} allows",
                    bad.len(),
                    args.data.max_bad
                );
            }
            if let Some(metrics) = &mut metrics {
                write_down(metrics, &ticks, &trainings, &progress)?;
            }
            progress.inc(read as u64);
            let due = |every: u64| every > 0 && steps > before && steps.is_multiple_of(every);
            if due(args.run.eval_every) {
                self.evaluate_and_keep(&mut trainings, metrics.as_mut(), steps)?;
            }
            if let Some(signal) = ticks.iter().find_map(|tick| tick.signal) {
                drop(progress);
                self.save(&mut state, &trainings, &batches, metrics.as_mut(), steps)?;
                if team.leads() {
                    tracing::warn!("stopped at optimizer step {steps}; go on with --resume");
                }
                return Err(Interrupted(signal).into());
            }
            if due(args.run.save_every) {
                self.save(&mut state, &trainings, &batches, metrics.as_mut(), steps)?;
            }
        }
        progress.finish();
        drop(interrupt);
        if let Some(training) =
            trainings.iter().find(|training| training.trainer.is_some() && training.calls == 0)
        {
            bail!(
                "no token of any sample counts, so {} was not trained: look at --roles, --image-weight, --text-weight, \
                 --ctx-len and --max-norm-multiple",
                training.planned.name
            );
        }
        let evaluations = self.evaluate_and_keep(&mut trainings, metrics.as_mut(), steps)?;
        if let Some(mut metrics) = metrics {
            metrics.flush()?;
        }
        run.count("samples", len as u64);
        run.count("optimizer steps", steps);
        self.finish(run, &trainings, &batches, &evaluations)?;
        Ok(evaluations)
    }

    /// The trainers, as they start or where a checkpoint left them.
    fn trainings(
        &self,
        planned: Vec<Planned>,
        owners: &[Option<usize>],
        state: &RunState,
    ) -> Result<Vec<Training>> {
        let device = self.model.network.device();
        let start = |(planned, &owner): (Planned, &Option<usize>)| {
            let config = &planned.config;
            tracing::info!(
                name = %planned.name, d_in = config.d_in, num_latents = config.num_latents, k = config.k,
                steps = config.total_steps, "training"
            );
            let mut trainer = None;
            if self.team.works_on(owner) {
                let mut started = planned.trainer(device, self.team.distribution())?;
                if let Some(folder) = &self.resumed {
                    started.load_state(&trainer_file(folder, &planned.name))?;
                }
                trainer = Some(started);
            }
            let calls = state.calls.get(&planned.name).copied().unwrap_or(0);
            let best = state.best.get(&planned.name).and_then(|fvu| fvu.parse().ok());
            Ok(Training { planned, owner, trainer, calls, best })
        };
        planned.into_iter().zip(owners).map(start).collect()
    }

    /// How far the run is when it starts.
    fn start_state(&self) -> Result<RunState> {
        if let Some(folder) = &self.resumed {
            let state = RunState::read(folder)?;
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

    /// Samples in `order`, `size` at a time.
    pub(crate) fn batches(
        &self,
        order: impl Iterator<Item = u32> + Send + 'static,
        size: usize,
        left_out: LeftOut,
    ) -> SampleBatches {
        let size = std::num::NonZeroUsize::new(size).unwrap_or(std::num::NonZeroUsize::MIN);
        let policy = BadRecords::up_to(self.args.data.max_bad);
        SampleBatches::new(&self.dataset, &self.model.processor, order, size, policy, left_out)
    }
}

/// The largest of a number that the trainers of all processes have.
fn most(team: &Team, trainings: &[Training], of: fn(&Trainer) -> u64) -> Result<u64> {
    let own = trainings.iter().filter_map(|training| training.trainer.as_ref()).map(of).max().unwrap_or(0);
    Ok(team.collect(own)?.into_iter().max().unwrap_or(0))
}

/// The reports of all processes, in the order of the autoencoders.
fn write_down(
    metrics: &mut Metrics,
    ticks: &[Tick],
    trainings: &[Training],
    progress: &Progress,
) -> Result<()> {
    let mut reports: Vec<(usize, Step)> = Vec::new();
    for (index, bytes) in ticks.iter().flat_map(|tick| &tick.reports) {
        reports.extend(Step::from_bytes(bytes).map(|step| (*index, step)));
    }
    reports.sort_by_key(|(index, _)| *index);
    for (index, step) in &reports {
        metrics.step(&trainings[*index].planned.name, *step)?;
    }
    if let Some((index, step)) = reports.last() {
        let per_second = metrics.speed(step.optimizer_steps(), step.tokens())?;
        progress.note(format_args!(
            "{} {}, {per_second:.0} tokens/s",
            trainings[*index].planned.name,
            step.words()
        ));
    }
    Ok(())
}
