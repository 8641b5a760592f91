//! `sae-cache merge`, which the last worker does of its own accord.

use std::path::{Path, PathBuf};

use act_cache::{CacheJob, Shard, discard_parts, lock_for_merge, missing_parts, part_notes};
use anyhow::{Context, Result, bail, ensure};
use mm_data::{BadRecordCounter, BadRecords};
use model_kit::IMAGE_PROMPT;
use stage_kit::{CommonArgs, Existing, OutputFolder, RunManifest};

use crate::args::{Format, StageArgs};
use crate::plan::note_inputs;
use crate::stage::{is_cache, left_out};

/// The samples that were left out, in the finished folder.
const BAD_RECORDS: &str = "bad_records.jsonl";
/// Where a cache that is exported lies until it is, in the output folder.
const NATIVE: &str = ".native";

#[derive(Debug, clap::Args)]
pub(crate) struct MergeArgs {
    /// The workers' --save-dir; the parts lie beside it, in SAVE_DIR.parts
    save_dir: PathBuf,
    /// Replace the folder if it is there
    #[arg(long)]
    overwrite: bool,
    /// MiB for sorting, where the workers' --format is not native
    #[arg(long, default_value_t = 1024)]
    memory: usize,
}

/// Where parts are merged to, and how.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    save_dir: &'a Path,
    pub(crate) existing: Existing,
    /// How many records may have been left out in all parts together, if it matters.
    max_bad: Option<u64>,
    /// Bytes for sorting entries into another format.
    memory: usize,
}

impl<'a> Target<'a> {
    pub(crate) fn new(args: &'a StageArgs) -> Self {
        let existing = Existing::from_overwrite(args.overwrite);
        let memory = args.memory_bytes();
        Self { save_dir: &args.save_dir, existing, max_bad: Some(args.max_bad), memory }
    }
}

/// `SAVE_DIR.parts`.
pub(crate) fn parts_folder(save_dir: &Path) -> Result<PathBuf> {
    let mut name = save_dir.file_name().context("SAVE_DIR ends in no name")?.to_owned();
    name.push(".parts");
    Ok(save_dir.with_file_name(name))
}

pub(crate) fn run(args: &MergeArgs, common: &CommonArgs) -> Result<()> {
    let mut run = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    run.seed = Some(common.seed);
    let parts = parts_folder(&args.save_dir)?;
    if !parts.exists() {
        if is_cache(&args.save_dir) {
            tracing::info!("{} is merged already", args.save_dir.display());
            return Ok(());
        }
        bail!(
            "there is no {}: run sae-cache with --save-dir {} first",
            parts.display(),
            args.save_dir.display()
        );
    }
    if let Some(Shard { index, count }) = missing_parts(&parts)?.first() {
        bail!("part {} of {count} is not complete: run rank {index} again with --resume", index + 1);
    }
    note_inputs(&mut run, &CacheJob::read(&parts)?);
    let existing = Existing::from_overwrite(args.overwrite);
    let memory = args.memory.saturating_mul(1 << 20);
    merge(&Target { save_dir: &args.save_dir, existing, max_bad: None, memory }, run)
}

/// Joins the parts, all of which are complete, to the cache in its place, and removes them.
pub(crate) fn merge(target: &Target<'_>, mut run: RunManifest) -> Result<()> {
    let Target { save_dir, existing, max_bad, memory } = *target;
    let parts = parts_folder(save_dir)?;
    let lock = if parts.exists() { lock_for_merge(&parts) } else { Ok(None) };
    // Whoever had the lock may have merged and removed the parts in the meantime.
    if !parts.exists() && is_cache(save_dir) {
        tracing::info!("another worker has merged {}", save_dir.display());
        return Ok(());
    }
    let Some(_lock) = lock? else {
        tracing::info!("another worker is merging {}", save_dir.display());
        return Ok(());
    };
    let job = CacheJob::read(&parts)?;
    if existing == Existing::Refuse && is_cache(save_dir) && job.compare(save_dir).is_ok() {
        // Merged, and then killed before the parts were gone.
        discard_parts(&parts)?;
        tracing::info!("{} is merged already", save_dir.display());
        return Ok(());
    }
    let left_out = left_out(&part_notes(&parts)?)?;
    if let Some(max) = max_bad {
        ensure!(
            left_out.len() as u64 <= max,
            "{} records were left out by all workers together, more than --max-bad {max}: `sae-cache merge {}` joins the \
             parts nonetheless",
            left_out.len(),
            save_dir.display()
        );
    }
    tracing::info!("merging the parts to {}", save_dir.display());
    let output = OutputFolder::create(save_dir, existing)?;
    let format = Format::of(&job)?;
    let native = if format == Format::Native { output.path().to_owned() } else { output.path().join(NATIVE) };
    std::fs::create_dir_all(&native).with_context(|| format!("cannot make {}", native.display()))?;
    let manifest = act_cache::merge(&parts, &native)?;
    ensure!(manifest.counts.samples > 0, "no record of {} could be read", manifest.dataset.name);
    if manifest.hooks.values().all(|hook| hook.tokens == 0) {
        tracing::warn!("no token of any sample was encoded: look at --tokens, --roles and --ctx-len");
    }
    if format != Format::Native {
        format.export(&native, output.path(), memory)?;
        std::fs::remove_dir_all(&native).with_context(|| format!("cannot remove {}", native.display()))?;
    }
    job.write(output.path())?;
    let bad = BadRecordCounter::after(BadRecords::Stop, left_out);
    if bad.bad() > 0 {
        bad.write_list(&output.path().join(BAD_RECORDS))?;
    }
    let images = manifest.token_layout.prompt.as_deref() == Some(IMAGE_PROMPT);
    run.count(if images { "images" } else { "samples" }, manifest.counts.samples);
    run.count("bad records", bad.bad());
    run.count("tokens", manifest.counts.tokens);
    run.count("activations", manifest.counts.activations);
    output.commit(run)?;
    discard_parts(&parts)?;
    tracing::info!(
        samples = manifest.counts.samples,
        activations = manifest.counts.activations,
        "cached in {}",
        save_dir.display()
    );
    Ok(())
}
