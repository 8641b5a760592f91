//! The stage itself: samples through the model and its autoencoders, one worker's share to its part of the cache.

use std::path::Path;
use std::sync::Arc;

use act_cache::{CacheJob, PartWriter, Shard, discard_parts};
use anyhow::{Context, Result};
use mm_data::{BadRecord, BadRecordCounter, BadRecords, DataError, Dataset};
use model_kit::TorchArgs;
use sae_types::SampleId;
use stage_kit::{CommonArgs, Interrupt, Interrupted, OutputFolder, Progress, RunManifest, UsageError, World};

use crate::args::StageArgs;
use crate::compute::{self, Computed, Prepared};
use crate::merge::{self, Target, parts_folder};
use crate::plan::{Content, Plan, Reader, note_inputs};
use crate::writing::{EncodedBatch, End, Note, Writing};

/// Caches a worker's share of `dataset`, whose samples `prepare` makes ready, and merges all parts if this was the last.
pub(crate) fn run(
    args: &StageArgs,
    torch: TorchArgs,
    common: &CommonArgs,
    content: &Content,
    dataset: Dataset,
    prepare: impl Fn(&Reader, usize) -> Result<Prepared, DataError> + Send + Sync + 'static,
) -> Result<()> {
    let mut run = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    run.seed = Some(common.seed);
    let world = common.world()?;
    run.world(world);
    args.format.check(content.keep_tokens)?;
    let target = Target::new(args);
    let parts = parts_folder(&args.save_dir)?;
    let is_there = || args.resume && is_cache(&args.save_dir);
    if !is_there() {
        OutputFolder::check(&args.save_dir, target.existing)?;
    }
    let plan = Arc::new(Plan::new(args, torch, content, dataset)?);
    // Asked anew: in the meantime another worker may have merged.
    if is_there() && !(args.overwrite && parts.exists()) {
        match plan.job.compare(&args.save_dir) {
            Ok(()) => {
                tracing::info!("{} is finished already", args.save_dir.display());
                return if parts.exists() { merge::merge(&target, run) } else { Ok(discard_parts(&parts)?) };
            }
            Err(other) if !args.overwrite => return Err(other.into()),
            Err(_) => {}
        }
    }
    let shard = Shard { index: world.rank, count: world.size };
    refuse_begun(args, &parts, shard)?;
    note_inputs(&mut run, &plan.job);
    fill_part(args, torch, &plan, world, &parts, content.unit, prepare)?;

    let missing = act_cache::missing_parts(&parts);
    match missing {
        Ok(missing) if !missing.is_empty() => {
            tracing::info!(
                "part {} of {} is complete; {} of the others are not yet, and the last to end merges them",
                world.rank + 1,
                world.size,
                missing.len()
            );
            Ok(())
        }
        // The parts may be gone: then another worker has merged them.
        Ok(_) | Err(_) => merge::merge(&target, run),
    }
}

/// Whether a finished cache lies in `folder`, with a copy of its job.
pub(crate) fn is_cache(folder: &Path) -> bool {
    folder.join("run.json").exists() && CacheJob::read(folder).is_ok()
}

/// A part of a run that did not end is neither mixed in nor lost by mistake.
fn refuse_begun(args: &StageArgs, parts: &Path, shard: Shard) -> Result<()> {
    if args.resume || !parts.exists() {
        return Ok(());
    }
    if args.overwrite && shard.count == 1 {
        return Ok(discard_parts(parts)?);
    }
    if !PartWriter::is_begun(parts, shard)? {
        return Ok(());
    }
    // Workers that start anew one after the other cannot tell old parts from those of their fellows.
    let anew = if shard.count == 1 { "start anew with --overwrite" } else { "remove it to start anew" };
    Err(UsageError::new(format!(
        "{} holds a part of a run that did not end: go on with --resume, or {anew}",
        parts.display()
    ))
    .into())
}

/// Computes what a worker's part does not hold yet.
fn fill_part(
    args: &StageArgs,
    torch: TorchArgs,
    plan: &Arc<Plan>,
    world: World,
    parts: &Path,
    unit: &'static str,
    prepare: impl Fn(&Reader, usize) -> Result<Prepared, DataError> + Send + Sync + 'static,
) -> Result<()> {
    let interrupt = Interrupt::defer();
    let shard = Shard { index: world.rank, count: world.size };
    let part = PartWriter::open(parts, &plan.job, shard, args.memory_bytes())?;
    if part.is_complete() {
        tracing::info!("part {} of {} is complete already", world.rank + 1, world.size);
        return Ok(());
    }
    let mut bad = BadRecordCounter::after(BadRecords::up_to(args.max_bad), left_out(part.notes())?);
    let batches = plan.share(world);
    let samples = plan.samples_of(&batches);
    let start = part.next().map_or(samples.start, |next| next.0 as usize);
    if part.next().is_some() {
        tracing::info!("going on from {} with sample {start}", parts.display());
    }
    let batches = plan.batch_from(start).max(batches.start)..batches.end;
    let writing = Writing::start(part, SampleId(start as u32), args.checkpoint_every());
    let work = || -> Result<Option<i32>> {
        if batches.is_empty() {
            return Ok(None);
        }
        let model = plan.model.clone().load(torch, args.precision.weights())?;
        let computed = compute::batches(args, plan, model, batches.clone(), prepare)?;
        let progress = Progress::new("caching", unit, Some(samples.len() as u64));
        progress.skip((start - samples.start) as u64);
        let mut activations = 0;
        for (batch, Computed { samples, bad: errors, codes }) in batches.zip(computed) {
            let (known, range) = (bad.left_out().len(), plan.samples_of(&(batch..batch + 1)));
            for error in errors {
                bad.admit::<()>(Err(error))?;
            }
            let codes = codes?;
            activations += codes.iter().map(|(_, codes)| codes.n_codes() as u64).sum::<u64>();
            let left_out = bad.left_out()[known..].to_vec();
            writing.push(EncodedBatch { samples, codes, left_out, next: SampleId(range.end as u32) })?;
            progress.note(format_args!("{activations} activations"));
            progress.inc(range.len() as u64);
            if let Some(signal) = interrupt.signal() {
                return Ok(Some(signal));
            }
        }
        progress.finish();
        Ok(None)
    };
    let worked = work();
    let end = worked.as_ref().ok().map(|signal| signal.map_or(End::Complete, |_| End::Stopped));
    let (saved, written) = writing.end(end);
    // The writing thread's own error comes first: it is why the loop had to end.
    match written.and(worked) {
        Ok(None) => Ok(()),
        Ok(Some(signal)) => {
            let saved = saved.map_or(start, |saved| saved.0 as usize);
            tracing::warn!("stopped at sample {saved}; go on with --resume");
            Err(Interrupted(signal).into())
        }
        Err(error) => {
            match saved {
                Some(saved) => {
                    tracing::warn!("all samples below {saved} are saved; go on with --resume");
                }
                // What cannot be removed either must not hide the error.
                None if world.size == 1 => drop(discard_parts(parts)),
                None => {}
            }
            Err(error)
        }
    }
}

/// The records that parts left out, by the notes of their checkpoints.
pub(crate) fn left_out(notes: &[serde_json::Value]) -> Result<Vec<BadRecord>> {
    let mut records = Vec::new();
    for note in notes {
        let note: Note = serde_json::from_value(note.clone()).context("the notes of a part")?;
        records.extend(note.left_out);
    }
    Ok(records)
}
