//! `sae-cache inspect`: what a cache holds and what is wrong with it, as a table or as JSON.

mod foreign;
mod report;
mod table;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use act_cache::{Cache, DatasetSample, DatasetSource, Finding, Severity};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use mm_data::{Field, OpenOptions, TokenOptions, hub};
use model_kit::IMAGE_PROMPT;
use sae_types::{FeatureId, Filters, HookPoint, SampleId, TokenIndex};
use stage_kit::{CommonArgs, UsageError, hash_bytes};

use crate::text;
use report::Report;

/// Features in the table where no flag says otherwise.
const DEFAULT_TOP: usize = 20;
/// Samples per feature where no flag says otherwise.
const DEFAULT_SAMPLES: usize = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Cache: a folder that sae-cache wrote, or one of msae's or delphi's
    dir: PathBuf,
    /// Only this hook point; default: all
    #[arg(long)]
    hook: Option<HookPoint>,
    /// What the features are sorted by, highest first
    #[arg(long, value_enum, default_value_t = Sort::Density)]
    sort: Sort,
    /// Lowest first
    #[arg(long)]
    ascending: bool,
    /// List this many features; default: 20, with --json all that are active
    #[arg(long)]
    top: Option<usize>,
    /// Leave out features that are active in fewer samples
    #[arg(long, default_value_t = 1)]
    min_samples: u64,
    /// Leave out features that are active on a larger share of the tokens
    #[arg(long, default_value_t = 1.0)]
    max_density: f64,
    /// List these features, 1,5,7 or 0..100 without 100, each with its samples
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    features: Vec<FeatureRange>,
    /// Samples per feature; default: 5 with --features, else none
    #[arg(long)]
    samples: Option<usize>,
    /// Which samples of a feature, every image once; default: base-mean, in a cache without images max
    #[arg(long, value_enum)]
    by: Option<By>,
    /// How often each two of the features listed are active on one token, or in one sample
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "token", value_name = "ON")]
    co_occurrence: Option<On>,
    /// What is active in this sample
    #[arg(long, value_name = "ID")]
    sample: Option<u32>,
    /// What is active on this token of the sample
    #[arg(long, requires = "sample")]
    token: Option<u32>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Read every byte: hashes, order, values
    #[arg(long)]
    verify: bool,
    /// Compare with the data set the cache was made of, image by image: its folder or Hub id
    #[arg(long)]
    dataset: Option<String>,
    /// Split of the data set; default: the one in the cache's manifest
    #[arg(long, requires = "dataset")]
    split: Option<String>,
    /// Folder that image paths in JSON are relative to; default: the JSON file's own
    #[arg(long, requires = "dataset")]
    image_root: Option<PathBuf>,
    /// Write the features that the flags choose as a filters file, {"model.layers.24": [0, 1, 2]}; without --top all of them
    #[arg(long, value_name = "FILE")]
    filters_out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Share of the tokens it is active on
    Density,
    /// Mean activation, zeros not counted
    Mean,
    /// Largest activation
    Max,
    /// How far it spreads over the base tile: 0 one patch, 1 all of it
    Spread,
    /// 0 for a feature of images, 1 for one of text
    TextRatio,
    /// In how many samples it is active
    Samples,
    /// How many activations it has
    Activations,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// Highest mean over the base tile, zeros counted
    BaseMean,
    /// Largest activation on the base tile
    BaseMax,
    /// Largest activation on any token
    Max,
    /// Drawn by --seed from those it is active in
    Random,
    /// One drawn by --seed from each of as many equal parts of the ranking as there are samples
    Quantiles,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// On one token
    Token,
    /// In one sample
    Sample,
}

/// `7`, or `0..100` without 100.
#[derive(Clone, Debug)]
struct FeatureRange(std::ops::Range<u32>);

impl std::str::FromStr for FeatureRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let range = match text.split_once("..") {
            Some((start, end)) => number(start).zip(number(end)).map(|(start, end)| start..end),
            None => number(text).and_then(|one| Some(one..one.checked_add(1)?)),
        };
        let range = range.filter(|range| !range.is_empty());
        range.map(Self).ok_or_else(|| format!("{text:?} is no feature: expected 7, or 0..100 without 100"))
    }
}

pub(crate) fn run(args: &InspectArgs, common: &CommonArgs) -> Result<()> {
    if common.world()?.size > 1 {
        return Err(UsageError::new("sae-cache inspect runs as one process: leave --world-size at 1").into());
    }
    if !args.dir.join("manifest.json").exists() {
        return foreign::inspect(&args.dir, args.json);
    }
    let cache = Cache::open(&args.dir)?;
    if args.hook.is_none() && !args.features.is_empty() && cache.hooks().count() > 1 {
        let hooks: Vec<&str> = cache.hooks().map(HookPoint::as_str).collect();
        let problem =
            format!("--features are those of one hook point: add --hook, one of {}", hooks.join(", "));
        return Err(UsageError::new(problem).into());
    }
    let mut findings = cache.findings();
    if args.verify {
        for damage in cache.damage() {
            let finding = Finding::damage(&args.dir, &damage);
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    if let Some(name) = &args.dataset {
        findings.extend(drift(&cache, name, args)?);
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();

    let report = Report::of(&cache, args, common.seed, findings)?;
    if let Some(path) = &args.filters_out {
        write_filters(path, &report)?;
    }
    let mut stdout = std::io::BufWriter::new(stage_kit::stdout());
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &report)?;
        writeln!(stdout)?;
    } else {
        table::write(&mut stdout, &report, args)?;
    }
    stdout.flush()?;
    judge(&args.dir, errors)
}

/// Fails when findings are errors.
fn judge(dir: &Path, errors: usize) -> Result<()> {
    match errors {
        0 => Ok(()),
        1 => bail!("{}: 1 finding is an error", dir.display()),
        _ => bail!("{}: {errors} findings are errors", dir.display()),
    }
}

/// What differs between the cache's data set and `name`.
fn drift(cache: &Cache, name: &str, args: &InspectArgs) -> Result<Vec<Finding>> {
    let options = |ctx_len| OpenOptions {
        split: args.split.clone().or_else(|| cache.manifest().dataset.split.clone()),
        fields: vec![Field::Images, Field::Conversations, Field::Text, Field::Caption],
        image_root: args.image_root.clone(),
        tokens: TokenOptions { ctx_len, dtype: None },
    };
    let mut dataset = hub::open_dataset(name, &options(None))?;
    if dataset.get(0).is_ok_and(|sample| sample.tokens.is_some()) {
        // Token files are cut as they were for the cache.
        let longest = cache.samples().iter().map(|record| record.n_tokens as usize).max();
        dataset = hub::open_dataset(name, &options(longest.and_then(NonZeroUsize::new)))?;
    }
    let images_alone = cache.manifest().token_layout.prompt.as_deref() == Some(IMAGE_PROMPT);
    let now = DatasetSource {
        name: name.to_owned(),
        split: dataset.split().map(str::to_owned),
        fingerprint: dataset.fingerprint().to_owned(),
        n_samples: dataset.len() as u64,
    };
    Ok(cache.drift(&now, |sample| {
        let record = dataset.get(sample.index())?;
        let image_sha256 = record.images.first().map(|image| hash_bytes(&image.bytes));
        let id = if images_alone { record.id } else { text::id(&dataset, sample.index(), record.id) };
        Ok::<_, mm_data::DataError>(DatasetSample { id, image_sha256 })
    }))
}

fn write_filters(path: &Path, report: &Report) -> Result<()> {
    let mut chosen = report.chosen();
    chosen.retain(|_, features| !features.is_empty());
    ensure!(!chosen.is_empty(), "the flags choose no feature, so there are no filters to write");
    let filters: Filters = chosen.into();
    let mut text = serde_json::to_string(&filters)?;
    text.push('\n');
    let part = path.with_extension("json.part");
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

impl InspectArgs {
    /// The features asked for by number, which may be beyond those there are.
    fn numbers(&self) -> impl Iterator<Item = FeatureId> {
        self.features.iter().flat_map(|range| range.0.clone()).map(FeatureId)
    }

    /// How many features are chosen.
    fn limit(&self) -> usize {
        let all = self.json || self.filters_out.is_some() || !self.features.is_empty();
        self.top.unwrap_or(if all { usize::MAX } else { DEFAULT_TOP })
    }

    fn samples_per_feature(&self) -> usize {
        self.samples.unwrap_or(if self.features.is_empty() { 0 } else { DEFAULT_SAMPLES })
    }

    fn asked_sample(&self) -> Option<SampleId> {
        self.sample.map(SampleId)
    }

    fn asked_token(&self) -> Option<TokenIndex> {
        self.token.map(TokenIndex)
    }
}
