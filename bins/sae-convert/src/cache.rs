//! `sae-convert cache`: activation caches between the native format, msae's and delphi's.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use act_cache::foreign::{
    DelphiOptions, ForeignCache, ImportOptions, LastLatents, Layout, MissingTokens, MsaeOptions, compare,
    export_delphi, export_msae, import,
};
use act_cache::{ActivationDtype, BaseTile, Cache, DatasetSource, SaeSource, Severity};
use anyhow::Context;
use clap::ValueEnum;
use sae_core::Sae;
use serde::Serialize;
use stage_kit::{Existing, OutputFolder, RunManifest, UsageError, hash_bytes, hash_file};

pub(crate) const EXAMPLE: &str = "\
Files of msae and delphi go to TARGET/latents, and come from there or from the folder itself. Every result is
checked: both caches are read again, entry by entry.

Examples:
  sae-convert cache cache_dir native --to native --base-tile 24x24 --sae lmms-lab-sae --model llava-hf/llama3-llava-next-8b-hf
  sae-convert cache native results/run --to delphi --ctx-len 32";

/// Where delphi's runs have their cache. It lists all entries of that folder, so run.json stands above.
const LATENTS: &str = "latents";

/// A format of caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// This project's
    Native,
    /// multimodal-sae's
    Msae,
    /// EleutherAI delphi's
    Delphi,
}

/// Flags of `sae-convert cache`.
#[expect(clippy::struct_excessive_bools, reason = "one per flag")]
#[derive(clap::Args)]
pub(crate) struct CacheArgs {
    /// The cache
    source: PathBuf,
    /// The folder to make
    target: PathBuf,
    /// Which format to write
    #[arg(long, value_enum)]
    to: Format,
    /// Which format the source has; default: found out
    #[arg(long, value_enum)]
    from: Option<Format>,
    /// Files per hook point, from native; default: as many as the source has
    #[arg(long)]
    n_splits: Option<usize>,
    /// How activations are stored (f32, f16 or bf16; delphi: always f16); default: as in the source
    #[arg(long)]
    dtype: Option<ActivationDtype>,
    /// Memory for tables and sorted entries
    #[arg(long, value_name = "MIB", default_value_t = NonZeroUsize::new(1024).expect("1024 is not 0"))]
    memory: NonZeroUsize,
    /// To native: patches of the base tile of every sample's image, ROWSxCOLS; default: samples have no images
    #[arg(long, value_parser = parse_grid)]
    base_tile: Option<[u32; 2]>,
    /// To native: position of the base tile's first token; default: --first
    #[arg(long, requires = "base_tile")]
    base_start: Option<u32>,
    /// To native: position of the source's token 0; default: 1 for msae, which leaves BOS out, 0 for delphi
    #[arg(long)]
    first: Option<u32>,
    /// To native: tokens of every sample, of a cache that does not say; default: up to its last activation
    #[arg(long)]
    n_tokens: Option<u32>,
    /// To native: number of latents, if the last file's name is not the end
    #[arg(long)]
    width: Option<usize>,
    /// To native: the source has the last latent of every split, though none of them is ever active
    #[arg(long)]
    last_latents_kept: bool,
    /// To native: the autoencoder, a folder or Hub name; a folder tells k, width and hash
    #[arg(long)]
    sae: Option<String>,
    /// To native: latents per token, if --sae does not tell
    #[arg(long)]
    k: Option<usize>,
    /// To native: name of the model; default: what delphi's config.json says
    #[arg(long)]
    model: Option<String>,
    /// To native: name of the data set; default: what delphi's config.json says
    #[arg(long)]
    dataset_name: Option<String>,
    /// To native: split of the data set
    #[arg(long)]
    dataset_split: Option<String>,
    /// Of delphi: rows of token ids are padded to a multiple of this, one of delphi's example_ctx_len
    #[arg(long, default_value_t = NonZeroUsize::new(32).expect("32 is not 0"))]
    ctx_len: NonZeroUsize,
    /// Of delphi: the token id for padding; default: 0 when writing, none when reading, where it is cut off samples' ends
    #[arg(long)]
    pad_id: Option<u32>,
    /// To delphi: write padding where the cache keeps no token ids, for what needs activations only
    #[arg(long)]
    without_tokens: bool,
    /// Replace the folder if it exists
    #[arg(long)]
    overwrite: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    from: String,
    to: String,
    hooks: Vec<String>,
    /// Activations written.
    activations: u64,
    /// Activations left out because they are zero, or round to it.
    zeros: u64,
    /// Features that the source lost, over all hook points.
    lost: usize,
    /// Rows and length of delphi's token ids, and rows that are no sample of the source.
    rows: usize,
    row_length: usize,
    empty_rows: usize,
    /// Activations and token ids found in both, entry by entry.
    checked_activations: u64,
    checked_tokens: u64,
    largest_difference: f32,
}

fn parse_grid(text: &str) -> Result<[u32; 2], String> {
    let parsed = text.split_once('x').and_then(|(rows, cols)| Some([rows.parse().ok()?, cols.parse().ok()?]));
    parsed
        .filter(|[rows, cols]| *rows > 0 && *cols > 0)
        .ok_or_else(|| "expected ROWSxCOLS, such as 24x24".to_owned())
}

pub(crate) fn convert(args: &CacheArgs) -> anyhow::Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    let native = match args.from {
        Some(format) => format == Format::Native,
        None => args.source.join("manifest.json").is_file(),
    };
    if native == (args.to == Format::Native) {
        let both = "one side must be native: convert a cache of msae or delphi to native first";
        return Err(UsageError::new(both).into());
    }
    let output = OutputFolder::create(&args.target, Existing::from_overwrite(args.overwrite))?;
    let report = if native {
        to_foreign(args, &output, &mut manifest)?
    } else {
        to_native(args, &output, &mut manifest)?
    };
    manifest.count("activations", report.activations);
    manifest.count("zeros left out", report.zeros);
    output.commit(manifest)?;
    print(args, &report)
}

fn memory(args: &CacheArgs) -> usize {
    args.memory.get().saturating_mul(1 << 20)
}

fn to_native(args: &CacheArgs, output: &OutputFolder, manifest: &mut RunManifest) -> anyhow::Result<Report> {
    let layout = args.from.and_then(|format| match format {
        Format::Msae => Some(Layout::Msae),
        Format::Delphi => Some(Layout::Delphi),
        Format::Native => None,
    });
    let foreign = ForeignCache::open(&args.source, layout).map_err(|error| match error {
        act_cache::CacheError::UnknownLayout { .. } => {
            anyhow::Error::new(error).context("--from msae or --from delphi is needed")
        }
        error => error.into(),
    })?;
    for finding in foreign.findings() {
        match finding.severity {
            Severity::Note => tracing::info!("{finding}"),
            Severity::Warning | Severity::Error => tracing::warn!("{finding}"),
        }
    }
    let first = args.first.unwrap_or(foreign.layout().first());
    let sae = args.sae.as_deref().map(source_of_sae).transpose()?;
    let (sae, k, width) = sae.unwrap_or_default();
    let base =
        args.base_tile.map(|[rows, cols]| BaseTile { start: args.base_start.unwrap_or(first), rows, cols });
    let options = ImportOptions {
        model: args.model.clone().unwrap_or_default(),
        dataset: DatasetSource {
            name: args.dataset_name.clone().unwrap_or_default(),
            split: args.dataset_split.clone(),
            ..DatasetSource::default()
        },
        sae,
        k: args.k.or(k).unwrap_or(0),
        width: args.width.or(width),
        first: Some(first),
        base,
        n_tokens: args.n_tokens,
        pad: args.pad_id,
        last_latents: if args.last_latents_kept { LastLatents::Kept } else { LastLatents::Detect },
        dtype: args.dtype,
        memory_budget: memory(args),
    };
    let imported = import(&foreign, output.path(), &options)?;
    let cache = Cache::open(output.path())?;
    let comparison = compare(&foreign, &cache, first).context("the check of the new cache failed")?;
    manifest.input("cache", &args.source.display(), listing(&args.source)?);
    let hooks = imported.manifest.hooks.iter();
    Ok(Report {
        from: foreign.layout().to_string(),
        to: "native".to_owned(),
        lost: hooks.clone().map(|(_, entry)| entry.lost.len()).sum(),
        hooks: hooks.map(|(name, _)| name.to_string()).collect(),
        activations: imported.manifest.counts.activations,
        zeros: imported.zeros,
        rows: 0,
        row_length: 0,
        empty_rows: 0,
        checked_activations: comparison.activations,
        checked_tokens: comparison.tokens,
        largest_difference: comparison.largest_difference,
    })
}

fn to_foreign(args: &CacheArgs, output: &OutputFolder, manifest: &mut RunManifest) -> anyhow::Result<Report> {
    let cache = Cache::open(&args.source)?;
    let target = output.path().join(LATENTS);
    let memory_budget = memory(args);
    let (exported, layout, first) = if args.to == Format::Msae {
        let options = MsaeOptions { n_splits: args.n_splits, dtype: args.dtype, memory_budget };
        (export_msae(&cache, &target, &options)?, Layout::Msae, cache.manifest().token_layout.first)
    } else {
        if args.dtype.is_some_and(|dtype| dtype != ActivationDtype::F16) {
            return Err(UsageError::new("delphi stores activations as f16: leave --dtype out").into());
        }
        let options = DelphiOptions {
            n_splits: args.n_splits,
            ctx_len: args.ctx_len.get(),
            pad: args.pad_id.unwrap_or(0),
            missing_tokens: if args.without_tokens { MissingTokens::Pad } else { MissingTokens::Refuse },
            memory_budget,
        };
        let exported = export_delphi(&cache, &target, &options).map_err(|error| match error {
            act_cache::CacheError::NoTokens => {
                anyhow::Error::new(error).context("--without-tokens writes padding")
            }
            error => error.into(),
        })?;
        (exported, Layout::Delphi, 0)
    };
    let foreign = ForeignCache::open(&target, Some(layout))?;
    let comparison = compare(&foreign, &cache, first).context("the check of the new cache failed")?;
    manifest.input("cache", &args.source.display(), hash_file(&args.source.join("manifest.json"))?);
    Ok(Report {
        from: "native".to_owned(),
        to: layout.to_string(),
        hooks: cache.hooks().map(ToString::to_string).collect(),
        activations: exported.activations,
        zeros: exported.zeros,
        lost: cache.manifest().hooks.values().map(|entry| entry.lost.len()).sum(),
        rows: exported.rows,
        row_length: exported.row_length,
        empty_rows: exported.empty_rows,
        checked_activations: comparison.activations,
        checked_tokens: comparison.tokens,
        largest_difference: comparison.largest_difference,
    })
}

/// Name and hash of the autoencoder, and its k and width, where it is a folder with one.
fn source_of_sae(name: &str) -> anyhow::Result<(SaeSource, Option<usize>, Option<usize>)> {
    let path = name.to_owned();
    let folder = Path::new(name);
    if !folder.is_dir() {
        return Ok((SaeSource { path, ..SaeSource::default() }, None, None));
    }
    let found = Sae::find(folder)?;
    let mut folders = found.values();
    let (Some(one), None) = (folders.next(), folders.next()) else {
        tracing::warn!("{name} holds several autoencoders: k, width and hash are not taken from it");
        return Ok((SaeSource { path, ..SaeSource::default() }, None, None));
    };
    let sae = Sae::load(one)?;
    let sha256 = hash_file(&one.join("sae.safetensors"))?;
    Ok((SaeSource { path, sha256 }, Some(sae.k()), Some(sae.num_latents())))
}

/// A fingerprint of a folder: the names and lengths of all its files.
fn listing(folder: &Path) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at).with_context(|| format!("cannot read {}", at.display()))? {
            let entry = entry?;
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(folder).unwrap_or(&entry.path()).display().to_string();
                lines.push(format!("{name} {}\n", entry.metadata()?.len()));
            }
        }
    }
    lines.sort();
    Ok(hash_bytes(lines.concat().as_bytes()))
}

fn print(args: &CacheArgs, report: &Report) -> anyhow::Result<()> {
    let mut out = stage_kit::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(report)?)?;
        return Ok(());
    }
    let Report { from, to, hooks, activations, zeros, lost, .. } = report;
    writeln!(
        out,
        "{}: {activations} activations of {} from {from} to {to}",
        args.target.display(),
        hooks.join(", ")
    )?;
    if *zeros > 0 {
        writeln!(out, "  {zeros} activations that are zero were left out")?;
    }
    if *lost > 0 {
        writeln!(out, "  {lost} features were lost before")?;
    }
    if report.rows > 0 {
        writeln!(
            out,
            "  token ids: {} rows of {}, {} of them no sample",
            report.rows, report.row_length, report.empty_rows
        )?;
    }
    writeln!(
        out,
        "  checked: {} activations and {} token ids found in both, largest difference {:.1e}",
        report.checked_activations, report.checked_tokens, report.largest_difference
    )?;
    Ok(())
}
