//! One self-contained HTML page of a cache's most specific features.

mod measure;
mod page;
mod truth;

use std::path::PathBuf;
use std::process::ExitCode;

use act_cache::Cache;
use anyhow::{Context, Result};
use clap::Parser;
use mm_data::{Field, OpenOptions, hub};
use sae_types::HookPoint;
use stage_kit::CommonArgs;

/// Draw one HTML page: a cache's most specific features, their top images, and what they agree with
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Folder that sae-cache wrote
    #[arg(long)]
    cache: PathBuf,
    /// The data set it was made from, with masks of what each image shows
    #[arg(long)]
    dataset: String,
    /// Split of the data set
    #[arg(long)]
    split: Option<String>,
    /// Which of the cache's hook points; default: the first
    #[arg(long)]
    hook: Option<HookPoint>,
    /// Features to show
    #[arg(long, default_value_t = 60)]
    features: usize,
    /// Features to show of one concept at most
    #[arg(long, default_value_t = 4)]
    per_concept: usize,
    /// Images per feature
    #[arg(long, default_value_t = 6)]
    examples: usize,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = Args::parse();
        args.common.init_logging();
        run(&args)
    })
}

fn run(args: &Args) -> Result<()> {
    let cache = Cache::open(&args.cache)?;
    let first = || cache.hooks().next().cloned().context("the cache has no hook point");
    let hook = args.hook.clone().map_or_else(first, Ok)?;
    let fields = vec![Field::Images, Field::Masks];
    let options = OpenOptions { split: args.split.clone(), fields, ..OpenOptions::default() };
    let dataset = hub::open_dataset(&args.dataset, &options)?;
    let source = &cache.manifest().dataset;
    anyhow::ensure!(
        dataset.fingerprint() == source.fingerprint,
        "{} is not the data set the cache was made from, {}: their fingerprints differ",
        args.dataset,
        source.name
    );
    let measured =
        measure::measure(&cache.hook(&hook)?, &dataset, args.features, args.per_concept, args.examples)?;
    let head = page::Head {
        model: cache.manifest().model.clone(),
        sae: cache.manifest().hooks[&hook].sae.path.clone(),
        hook: hook.to_string(),
        samples: cache.samples().len(),
        alive: measured.alive,
        width: cache.hook(&hook)?.width(),
        per_concept: args.per_concept,
        agreement: measured.agreement,
        shuffled: measured.shuffled,
    };
    let html = page::render(&head, &measured.cards)?;
    let part = args.out.with_extension("html.part");
    let written = std::fs::write(&part, html).and_then(|()| std::fs::rename(&part, &args.out));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot write {}", args.out.display()))?;
    tracing::info!(features = measured.cards.len(), "wrote {}", args.out.display());
    Ok(())
}
