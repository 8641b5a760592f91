//! What a run leaves on the disk: checkpoints to go on from, the best autoencoders so far, and at the end the output folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use mm_data::{BadRecordCounter, BadRecords};
use model_kit::{LeftOut, SampleBatches};
use sae_core::Sae;
use sae_eval::{Evaluation, Subject};
use sae_trainer::Trainer;
use sae_types::HookPoint;
use serde_json::json;
use stage_kit::{Existing, Interrupted, LOCK_FILE, OutputFolder, RunManifest};

use crate::metrics::{METRICS, Metrics, TENSORBOARD};
use crate::rows::positions;
use crate::stage::Stage;
use crate::state::RunState;
use crate::training::Training;

/// What was trained and by which settings.
pub(crate) const CONFIG: &str = "config.json";
/// The autoencoders with the smallest FVU on held-out samples, below the output folder.
const BEST: &str = "best";
/// Autoencoders on their way to an evaluation, where no process has all of one.
const EVALUATED: &str = "evaluated";
/// What the folders begin with in which autoencoders are written, before they get their place.
const HALF_SAVED: &str = ".saving-";
/// The samples that were left out.
const BAD_RECORDS: &str = "bad_records.jsonl";

/// How long a file that another machine has just made may stay out of sight on a network file system.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

impl Stage<'_> {
    /// Refuses to start where a process does not see the folder that the leader has locked: what it wrote would be on its own disk.
    pub(crate) fn check_shared(&self) -> Result<()> {
        if self.team.size() == 1 {
            return Ok(());
        }
        // It names the leader's process and machine.
        let lock = self.checkpoint_folder.join(LOCK_FILE);
        let held = if self.team.leads() {
            std::fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?
        } else {
            String::new()
        };
        let held = self.team.from_leader(&held)?;
        let start = Instant::now();
        let mut found = std::fs::read_to_string(&lock);
        while !found.as_ref().is_ok_and(|text| *text == held) && start.elapsed() < SEEN_WITHIN {
            std::thread::sleep(PAUSE);
            found = std::fs::read_to_string(&lock);
        }
        let seen = match found {
            Ok(text) if text == held => Ok(()),
            Ok(_) => Err(anyhow!("it is locked by another process than rank 0")),
            Err(error) => Err(error.into()),
        };
        self.team.together(seen.with_context(|| not_shared(&self.checkpoint_folder)))
    }

    /// After an error: says what a run can go on from, or removes a folder that holds nothing of the kind.
    pub(crate) fn leave(self, error: &anyhow::Error) {
        let Some(checkpoints) = self.checkpoints else { return };
        match checkpoints.latest() {
            Ok(Some(step)) if !error.is::<Interrupted>() => tracing::warn!(
                "the last checkpoint is that of optimizer step {}; go on with --resume",
                step.step
            ),
            // What cannot be removed either must not hide the error.
            Ok(None) => drop(checkpoints.remove()),
            _ => {}
        }
    }

    /// Writes a checkpoint that a run can go on from, with autoencoders that can be used. Each process writes what it alone has.
    pub(crate) fn save(
        &self,
        state: &mut RunState,
        trainings: &[Training],
        batches: &SampleBatches,
        metrics: Option<&mut Metrics>,
        steps: u64,
    ) -> Result<()> {
        check_replicas(trainings)?;
        state.left_out = self.left_out(batches, &state.left_out)?;
        for training in trainings {
            let Training { planned, best, .. } = training;
            state.best.extend(best.map(|best| (planned.name.clone(), best.to_string())));
        }
        state.calls = self.of_owners(trainings, |training| training.calls)?;
        let (Some(checkpoints), Some(metrics)) = (&self.checkpoints, metrics) else {
            // The calls of the leader below, one for one, so that it gets to tell its error.
            let folder: Option<PathBuf> = self.team.from_leader(&None)?;
            let saved = folder.map_or(Ok(()), |folder| {
                self.team.together(Ok(()))?;
                self.team.together(self.save_trainers(&folder, trainings, true))
            });
            return self.team.together(saved);
        };
        state.metrics_bytes = metrics.flush()?;
        let mut told = false;
        let written = checkpoints.write::<anyhow::Error>(steps, |folder| {
            told = true;
            self.team.from_leader(&Some(folder.to_owned()))?;
            self.team.together(state.write(folder))?;
            self.team.together(self.save_trainers(folder, trainings, true))
        });
        if !told {
            self.team.from_leader(&None::<PathBuf>)?;
        }
        self.team.together(written.map(drop))
    }

    /// This process's part of the autoencoders, and with `states` of what training goes on from, below `folder`.
    fn save_trainers(&self, folder: &Path, trainings: &[Training], states: bool) -> Result<()> {
        let save = |Training { planned, owner, trainer, .. }: &Training| -> Result<()> {
            if let Some(trainer) = trainer
                && self.team.saves(*owner)
            {
                trainer.save_sae(&folder.join(&planned.name))?;
                if states {
                    trainer.save_state(&trainer_file(folder, &planned.name))?;
                }
            }
            Ok(())
        };
        let saved = trainings.iter().try_for_each(save);
        if self.team.leads() { saved } else { saved.with_context(|| not_shared(folder)) }
    }

    /// The samples that all processes left out; those `before` are known to each of them.
    fn left_out(&self, batches: &SampleBatches, before: &LeftOut) -> Result<LeftOut> {
        let mut all = before.clone();
        for own in self.team.collect(batches.left_out())? {
            for record in own.records {
                if !all.records.contains(&record) {
                    all.records.push(record);
                }
            }
            all.numbers.extend(own.numbers);
        }
        // In an order that does not depend on who met which.
        all.records.sort_by(|a, b| (&a.path, a.row, &a.reason).cmp(&(&b.path, b.row, &b.reason)));
        Ok(all)
    }

    /// A number of each autoencoder, as the process says that works on it.
    fn of_owners(
        &self,
        trainings: &[Training],
        of: impl Fn(&Training) -> u64,
    ) -> Result<BTreeMap<String, u64>> {
        let own = trainings.iter().filter(|training| training.trainer.is_some());
        let own: BTreeMap<String, u64> =
            own.map(|training| (training.planned.name.clone(), of(training))).collect();
        Ok(self.team.collect(own)?.into_iter().flatten().collect())
    }

    /// Measures all autoencoders on the held-out samples and keeps the best of each so far.
    pub(crate) fn evaluate_and_keep(
        &self,
        trainings: &mut [Training],
        mut metrics: Option<&mut Metrics>,
        steps: u64,
    ) -> Result<BTreeMap<String, Evaluation>> {
        let evaluations = self.evaluate(trainings)?;
        for Training { planned, owner, trainer, best, .. } in trainings {
            let Some(evaluation) = evaluations.get(&planned.name) else { continue };
            if let Some(metrics) = &mut metrics {
                metrics.evaluation(&planned.name, steps, &serde_json::to_value(evaluation)?)?;
            }
            let better = evaluation.fvu.filter(|fvu| best.is_none_or(|best| *fvu < best));
            if better.is_some() {
                *best = better;
                if self.args.run.eval_every > 0
                    && let Some(trainer) = trainer
                    && self.team.saves(*owner)
                {
                    trainer.save_sae(&self.checkpoint_folder.join(BEST).join(&planned.name))?;
                }
            }
        }
        Ok(evaluations)
    }

    /// Evaluations by name, on all processes. Each autoencoder is measured by one of them.
    fn evaluate(&self, trainings: &[Training]) -> Result<BTreeMap<String, Evaluation>> {
        let team = self.team;
        let passing = self.checkpoint_folder.join(EVALUATED);
        let mut saes = Vec::new();
        for (index, Training { planned, owner, trainer, .. }) in trainings.iter().enumerate() {
            let Some(trainer) = trainer else { continue };
            let measures = team.works_on(Some(owner.unwrap_or(index % team.size())));
            if trainer.shares_latents() {
                // It may be too wide for one process, and need not be put together to be measured on nothing.
                if self.held_out.is_empty() {
                    continue;
                }
                let folder = passing.join(&planned.name);
                trainer.save_sae(&folder)?;
                if measures {
                    saes.push((planned, Sae::load(&folder).with_context(|| not_shared(&folder))?));
                }
            } else if measures {
                saes.push((planned, trainer.to_sae()?));
            }
        }
        let subjects: Vec<Subject<'_>> = saes
            .iter()
            .map(|(planned, sae)| {
                let (name, hook) = (planned.name.clone(), planned.hook.clone());
                match &planned.input {
                    None => Subject::autoencoder(name, hook, sae),
                    Some(input) => Subject::transcoder(name, input.clone(), hook, sae),
                }
            })
            .collect();
        let (args, model) = (self.args, &self.model);
        // As many samples at once as a process trains on.
        let whole = self.share.batch.div_ceil(team.size());
        let size = args.data.forward_batch_size.map_or(whole, |size| size.get().min(whole));
        // After every batch all meet, so that nobody waits longer than a batch takes.
        let passes = self.held_out.len().div_ceil(size);
        let mut met = 0;
        let mut meeting = Ok(());
        let mut meet = || {
            met += 1;
            if meeting.is_ok() {
                meeting = team.barrier();
            }
            meeting.is_ok()
        };
        let mut evaluations = Vec::new();
        if subjects.is_empty() {
            let _ = (0..passes).all(|_| meet());
        } else {
            let batches = self.batches(self.held_out.clone().into_iter(), size, LeftOut::default());
            let total = self.held_out.len() as u64;
            let counted = |inputs: &lmm_prep::Inputs| positions(&args.data, model, inputs).0;
            evaluations = model_kit::evaluate(model, subjects, batches, total, counted, &mut meet)?;
        }
        meeting?;
        drop(saes);
        let all = team.collect(evaluations)?;
        if team.leads() && passing.exists() {
            std::fs::remove_dir_all(&passing)
                .with_context(|| format!("cannot remove {}", passing.display()))?;
        }
        Ok(all.into_iter().flatten().map(|evaluation| (evaluation.name.clone(), evaluation)).collect())
    }

    /// Writes the output folder, and names it when all of it is there.
    pub(crate) fn finish(
        &self,
        mut run: RunManifest,
        trainings: &[Training],
        batches: &SampleBatches,
        evaluations: &BTreeMap<String, Evaluation>,
    ) -> Result<()> {
        let (args, team) = (self.args, self.team);
        check_replicas(trainings)?;
        let tokens =
            self.of_owners(trainings, |training| training.trainer.as_ref().map_or(0, Trainer::tokens))?;
        let left_out = self.left_out(batches, &LeftOut::default())?;
        let output = if team.leads() {
            Some(OutputFolder::create(&args.run.save_dir, Existing::from_overwrite(args.run.overwrite))?)
        } else {
            None
        };
        let folder = output.as_ref().map_or_else(PathBuf::new, |output| output.path().to_owned());
        let folder = team.from_leader(&folder)?;
        team.together(self.save_trainers(&folder, trainings, false))?;
        let Some(output) = output else { return team.together(Ok(())) };
        for (name, tokens) in tokens {
            run.count(&format!("{name} tokens"), tokens);
        }
        run.count("bad records", left_out.records.len() as u64);
        if let Some(ranks) = team.ranks() {
            let collectives::Traffic { calls, sent_bytes, received_bytes, seconds } = ranks.traffic();
            run.count("processes", team.size() as u64);
            run.count("collective calls", calls);
            run.count("collective bytes sent", sent_bytes);
            run.count("collective bytes received", received_bytes);
            run.count("collective milliseconds", (1000.0 * seconds) as u64);
        }
        let written =
            self.write_rest(&output, evaluations, trainings, left_out).and_then(|()| Ok(output.commit(run)?));
        team.together(written)
    }

    /// What stands in the output folder beside the autoencoders.
    fn write_rest(
        &self,
        output: &OutputFolder,
        evaluations: &BTreeMap<String, Evaluation>,
        trainings: &[Training],
        left_out: LeftOut,
    ) -> Result<()> {
        let args = self.args;
        write(output, "evaluation.json", &format!("{}\n", serde_json::to_string_pretty(evaluations)?))?;
        let hooks: Vec<&HookPoint> = trainings.iter().map(|training| &training.planned.hook).collect();
        let config = json!({
            "model": args.model, "dataset": args.sources(), "split": args.data.split,
            "ctx_len": args.data.tokens.ctx_len, "hookpoints": hooks, "settings": self.settings,
        });
        write(output, CONFIG, &format!("{}\n", serde_json::to_string_pretty(&config)?))?;
        if !left_out.records.is_empty() {
            let policy = BadRecords::up_to(args.data.max_bad);
            BadRecordCounter::after(policy, left_out.records).write_list(&output.path().join(BAD_RECORDS))?;
        }
        if let Some(report) = self.model.network.quantisation() {
            let report = json!({
                "mean_relative_error": report.mean_error(), "bytes_before": report.bytes_before(),
                "bytes_after": report.bytes_after(), "matrices": report.matrices,
            });
            write(output, "quantisation.json", &format!("{}\n", serde_json::to_string_pretty(&report)?))?;
        }
        for name in [METRICS, TENSORBOARD, BEST] {
            // Copied, not moved: whoever is killed now goes on from the checkpoint, which needs them.
            copy(&self.checkpoint_folder.join(name), &output.path().join(name))?;
        }
        Ok(())
    }
}

/// What is saved is one process's: that of all the others is to be the same.
fn check_replicas(trainings: &[Training]) -> Result<()> {
    for Training { planned, trainer, .. } in trainings {
        if let Some(trainer) = trainer {
            trainer.check_replicas().with_context(|| format!("before saving {}", planned.name))?;
        }
    }
    Ok(())
}

pub(crate) fn trainer_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).join("trainer.safetensors")
}

/// What another process's folder may be wrong about.
fn not_shared(folder: &Path) -> String {
    format!("{}: --save-dir must be on a file system that all processes see", folder.display())
}

fn write(output: &OutputFolder, name: &str, text: &str) -> Result<()> {
    let path = output.path().join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Copies a file or folder, if it is there, but for what a killed process left half written.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    if from.is_dir() {
        std::fs::create_dir(to).with_context(context)?;
        for entry in std::fs::read_dir(from).with_context(context)? {
            let name = entry.with_context(context)?.file_name();
            if name.to_string_lossy().starts_with(HALF_SAVED) {
                continue;
            }
            copy(&from.join(&name), &to.join(&name))?;
        }
    } else if from.exists() {
        std::fs::copy(from, to).with_context(context)?;
    }
    Ok(())
}
