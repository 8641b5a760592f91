//! `sae-convert sae`: autoencoders between sparsify's files and SAELens'.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use sae_core::saelens::{self, Metadata, Version};
use sae_core::{HookPoint, Sae, WeightDtype};
use serde::Serialize;
use stage_kit::{Existing, OutputFolder, RunManifest, UsageError, hash_file};

use crate::check::{self, Check};

pub(crate) const EXAMPLE: &str = "\
The source is one autoencoder (cfg.json beside sae.safetensors or sae_weights.safetensors), or a folder of several,
each in its own folder, which keep their names. Every result is checked: both files are read again and encode the
same random vectors; SAELens' by SAELens' own formulas, in f64.

Example:
  sae-convert sae checkpoints/model.layers.24 saelens/layer-24 --to saelens --model llava-hf/llama3-llava-next-8b-hf";

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// cfg.json and sae.safetensors, as sparsify and msae have them
    Sparsify,
    /// cfg.json and sae_weights.safetensors, as SAELens 6 has them
    Saelens,
    /// The same for SAELens before version 6
    SaelensPreV6,
}

/// How to store weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

/// Flags of `sae-convert sae`.
#[derive(clap::Args)]
pub(crate) struct SaeArgs {
    /// The autoencoder, or the folder of several
    source: PathBuf,
    /// The folder to make
    target: PathBuf,
    /// Which files to write
    #[arg(long, value_enum)]
    to: Target,
    /// How weights are stored
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Latents per row on average, for SAELens' jumprelu files, most of which do not say it
    #[arg(long)]
    k: Option<usize>,
    /// Name of the model, for SAELens; default: what the source says
    #[arg(long)]
    model: Option<String>,
    /// Name of the training set, for SAELens; default: what the source says
    #[arg(long)]
    dataset_name: Option<String>,
    /// Where the autoencoder reads, for SAELens; default: what the source says, or its folder's name
    #[arg(long)]
    hook_name: Option<String>,
    /// Where a transcoder's output belongs, for SAELens; default: what the source says
    #[arg(long)]
    hook_name_out: Option<String>,
    /// Replace the folder if it exists
    #[arg(long)]
    overwrite: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What became of one autoencoder.
#[derive(Serialize)]
struct Report {
    name: String,
    kind: String,
    d_in: usize,
    num_latents: usize,
    k: usize,
    /// Keys of SAELens whose effect went into the weights.
    folded: Vec<&'static str>,
    /// What the target cannot say.
    dropped: Vec<String>,
    check: Check,
}

pub(crate) fn convert(args: &SaeArgs, seed: u64) -> anyhow::Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(seed);
    let sources = sources(&args.source)?;
    if sources.len() > 1 && (args.hook_name.is_some() || args.hook_name_out.is_some()) {
        return Err(UsageError::new(
            "--hook-name and --hook-name-out are for one autoencoder, not for a folder of several",
        )
        .into());
    }
    let output = OutputFolder::create(&args.target, Existing::from_overwrite(args.overwrite))?;
    let mut reports = Vec::new();
    for (name, folder) in &sources {
        let target = output.path().join(name);
        let report = one(args, name, folder, &target, seed)
            .with_context(|| format!("cannot convert {}", folder.display()))?;
        let weights = if saelens::is_saelens(folder) { "sae_weights.safetensors" } else { "sae.safetensors" };
        manifest.input("sae", &folder.display(), hash_file(&folder.join(weights))?);
        reports.push(report);
    }
    manifest.count("autoencoders", reports.len() as u64);
    output.commit(manifest)?;
    print(args, &reports)
}

/// The autoencoders below `root` by the folder they go to; a single one goes to the target itself.
fn sources(root: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let is_sae = |folder: &Path| saelens::is_saelens(folder) || folder.join("sae.safetensors").is_file();
    if is_sae(root) {
        return Ok(vec![(String::new(), root.to_owned())]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
        let path = entry?.path();
        if is_sae(&path)
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            found.push((name.to_owned(), path.clone()));
        }
    }
    found.sort();
    anyhow::ensure!(
        !found.is_empty(),
        "{} holds no autoencoder: expected cfg.json beside sae.safetensors (sparsify, msae) or sae_weights.safetensors (SAELens), in it or in its folders",
        root.display()
    );
    Ok(found)
}

fn one(args: &SaeArgs, name: &str, folder: &Path, target: &Path, seed: u64) -> anyhow::Result<Report> {
    let dtype = match args.dtype {
        Dtype::F32 => WeightDtype::F32,
        Dtype::F16 => WeightDtype::F16,
        Dtype::Bf16 => WeightDtype::Bf16,
    };
    let (sae, mut metadata, folded) = if saelens::is_saelens(folder) {
        let loaded = saelens::load(folder, args.k)?;
        (loaded.sae, loaded.metadata, loaded.folded)
    } else {
        (Sae::load(folder)?, Metadata::default(), Vec::new())
    };
    let given = |flag: &Option<String>, old: Option<String>| flag.clone().or(old);
    metadata.model_name = given(&args.model, metadata.model_name);
    metadata.dataset_path = given(&args.dataset_name, metadata.dataset_path);
    metadata.hook_name = given(&args.hook_name, metadata.hook_name).or_else(|| hook_of(name, folder));
    metadata.hook_name_out = given(&args.hook_name_out, metadata.hook_name_out);
    let dropped = match args.to {
        Target::Sparsify => {
            sae.save(target, dtype)?;
            metadata_dropped(&metadata)
        }
        Target::Saelens => saelens::save(&sae, target, Version::V6, &metadata, dtype)?,
        Target::SaelensPreV6 => saelens::save(&sae, target, Version::PreV6, &metadata, dtype)?,
    };
    let check = check::compare(folder, target, &sae, dtype, seed)?;
    let config = sae.config();
    let mut kind = match config.activation {
        sae_core::Activation::BatchTopK { .. } => "BatchTopK".to_owned(),
        _ => "TopK".to_owned(),
    };
    if config.transcode {
        kind.push_str(" transcoder");
    }
    if config.skip_connection {
        kind.push_str(" with skip connection");
    }
    let (d_in, num_latents, k) = (sae.d_in(), sae.num_latents(), sae.k());
    Ok(Report { name: name.to_owned(), kind, d_in, num_latents, k, folded, dropped, check })
}

/// The hook point an autoencoder's folder is named after.
fn hook_of(name: &str, folder: &Path) -> Option<String> {
    let whole = std::path::absolute(folder).ok()?;
    let own = if name.is_empty() { whole.file_name()?.to_str()? } else { name };
    HookPoint::new(own).ok().map(String::from)
}

/// What SAELens' files say and sparsify's do not.
fn metadata_dropped(metadata: &Metadata) -> Vec<String> {
    let Metadata { model_name, hook_name, hook_name_out, dataset_path, context_size, prepend_bos } = metadata;
    let said = [
        ("model_name", model_name.clone()),
        ("hook_name", hook_name.clone()),
        ("hook_name_out", hook_name_out.clone()),
        ("dataset_path", dataset_path.clone()),
        ("context_size", context_size.map(|size| size.to_string())),
        ("prepend_bos", prepend_bos.map(|prepend| prepend.to_string())),
    ];
    said.into_iter().filter_map(|(key, value)| Some(format!("{key}: {}", value?))).collect()
}

fn print(args: &SaeArgs, reports: &[Report]) -> anyhow::Result<()> {
    let mut out = stage_kit::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(reports)?)?;
        return Ok(());
    }
    for report in reports {
        let Report { name, kind, d_in, num_latents, k, folded, dropped, check } = report;
        let name = if name.is_empty() { args.target.display().to_string() } else { name.clone() };
        writeln!(out, "{name}: {kind}, d_in {d_in}, {num_latents} latents, k {k}")?;
        if !folded.is_empty() {
            writeln!(out, "  folded into the weights: {}", folded.join(", "))?;
        }
        if !dropped.is_empty() {
            writeln!(out, "  not said by these files: {}", dropped.join(", "))?;
        }
        writeln!(
            out,
            "  checked with {} vectors: {} with equal latents, {} differ at a tie; largest differences {:.1e} in activations, {:.1e} in reconstructions",
            check.rows, check.equal_sets, check.ties, check.activations, check.reconstructions
        )?;
    }
    Ok(())
}
