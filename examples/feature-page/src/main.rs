//! One self-contained HTML page of a cache's most specific features.

mod measure;
mod naming;
mod page;
mod truth;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use act_cache::Cache;
use anyhow::{Context, Result};
use clap::Parser;
use mm_data::{Field, OpenOptions, hub};
use sae_types::{FeatureId, Filters, HookPoint};
use stage_kit::CommonArgs;

use crate::measure::Wanted;

/// Draw one HTML page: a cache's most specific features, their top images, what they agree with and what was said of them
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
    /// Explanations of the features, as sae-explain writes them (model_layers_2.json)
    #[arg(long)]
    explanations: Option<PathBuf>,
    /// Overlap with its best concept from which on a feature is specific, and its explanation is held against it
    #[arg(long, default_value_t = 0.3)]
    specific: f64,
    /// Also write how well the explanations name the concepts, and all specific features with theirs, as JSON, to this file
    #[arg(long, requires = "explanations")]
    report: Option<PathBuf>,
    /// Also write the specific features to this file, as --filters of other programs take them
    #[arg(long)]
    specific_filters: Option<PathBuf>,
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
    let explanations = args.explanations.as_ref().map(|path| explain::read_published(path)).transpose()?;
    let explanations: Option<BTreeMap<FeatureId, String>> = explanations.map(|published| {
        let of_hook = published.texts.into_iter().filter(|(key, _)| key.hook == hook);
        of_hook.map(|(key, text)| (key.feature, text)).collect()
    });
    anyhow::ensure!(
        explanations.as_ref().is_none_or(|texts| !texts.is_empty()),
        "the file of --explanations says nothing of any feature of {hook}: name the one of this hook point, or another --hook"
    );
    let wanted = Wanted {
        features: args.features,
        per_concept: args.per_concept,
        examples: args.examples,
        specific: args.specific,
        explanations: explanations.as_ref(),
    };
    let measured = measure::measure(&cache.hook(&hook)?, &dataset, &wanted)?;
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
        specific: args.specific,
        naming: measured.naming,
    };
    let html = page::render(&head, &measured.cards)?;
    write(&args.out, &html)?;
    if let (Some(path), Some(naming)) = (&args.report, &head.naming) {
        let mut report = naming.json();
        report["features"] = serde_json::to_value(&measured.specific)?;
        write(path, &format!("{report:#}\n"))?;
    }
    if let Some(path) = &args.specific_filters {
        let features: Vec<FeatureId> = measured.specific.iter().map(measure::Specific::feature).collect();
        let filters = Filters::from(BTreeMap::from([(hook, features)]));
        write(path, &format!("{}\n", serde_json::to_string(&filters)?))?;
    }
    tracing::info!(features = measured.cards.len(), "wrote {}", args.out.display());
    Ok(())
}

/// Writes a file beside its place and renames it.
fn write(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
