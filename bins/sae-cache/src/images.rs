//! `sae-cache images`: every image of a data set through the model and its autoencoders.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use act_cache::{
    ActivationDtype, BaseTile, CacheDescription, CacheWriter, DatasetSource, HookDescription, SaeSource,
    SampleCodes, SampleRecord, TokenLayoutDescription, WriterOptions,
};
use anyhow::{Context, Result, bail, ensure};
use lmm_prep::Inputs;
use mm_data::hub::{self, RepoKind};
use mm_data::{BadRecordCounter, BadRecords, DataError, Dataset, Field, OpenOptions};
use model_kit::{IMAGE_PROMPT, OpenModel, TokenArgs, TorchArgs};
use sae_core::Sae;
use sae_torch::TorchSae;
use sae_types::{Filters, HookPoint, SampleId};
use stage_kit::{
    CommonArgs, Existing, OutputFolder, Progress, RunManifest, UsageError, hash_bytes, hash_file, prefetch,
};
use tch::Kind;

/// How many batches of prepared images wait for the model.
const BATCHES_AHEAD: usize = 2;
/// Where the cache grows within the output folder before it is whole.
const STAGING: &str = ".cache";

#[derive(Debug, clap::Args)]
pub(crate) struct ImagesArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    model: String,
    /// Data set with an image per record: parquet, an image folder, JSON, or a Hub id
    dataset: String,
    /// Split of the data set
    #[arg(long)]
    split: Option<String>,
    /// Sparse autoencoders: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long)]
    sae: String,
    /// JSON file of the only features to store, {"model.layers.24": [0, 1, 2]}; default: all of every hook point
    #[arg(long)]
    filters: Option<PathBuf>,
    /// Folder to write
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it is there
    #[arg(long)]
    overwrite: bool,
    /// Files per hook point, each with an equal range of latents
    #[arg(long, default_value_t = NonZeroUsize::new(5).expect("5 is not 0"))]
    n_splits: NonZeroUsize,
    /// Images per forward pass
    #[arg(long, default_value_t = NonZeroUsize::new(8).expect("8 is not 0"))]
    batch_size: NonZeroUsize,
    /// Stop after this many images
    #[arg(long)]
    max_examples: Option<NonZeroUsize>,
    /// Leave out up to this many unreadable images instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    max_bad: u64,
    /// How activations are stored: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    activation_dtype: ActivationDtype,
    /// MiB of codes held in memory before they are sorted and spilled to disk
    #[arg(long, default_value_t = 1024)]
    memory: usize,
}

/// An autoencoder or transcoder whose codes are stored.
struct CachedSae {
    sae: TorchSae,
    source: SaeSource,
    /// Where it reads: its own hook point, or the input of that module.
    reads: HookPoint,
}

/// An image ready for the model.
struct Prepared {
    record: SampleRecord,
    inputs: Inputs,
}

pub(crate) fn run(args: &ImagesArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    if common.world()?.size > 1 {
        return Err(UsageError::new("sae-cache images runs as one process: leave --world-size at 1").into());
    }
    let mut run = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    run.seed = Some(common.seed);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let filters = args.filters.as_deref().map(read_filters).transpose()?;
    let fields = vec![Field::Images];
    let dataset = hub::open_dataset(
        &args.dataset,
        &OpenOptions { split: args.split.clone(), fields, ..OpenOptions::default() },
    )?;
    let model = OpenModel::open(&args.model, torch)?;
    let saes = load_saes(args, &model, filters.as_ref())?;
    run.input("model", &model.folder.display(), hash_file(&model.folder.join("config.json"))?);
    run.input("dataset", &args.dataset, dataset.fingerprint());
    for (hook, CachedSae { source, .. }) in &saes {
        run.input(&format!("sae {hook}"), &source.path, source.sha256.clone());
    }

    let count = args.max_examples.map_or(usize::MAX, NonZeroUsize::get).min(dataset.len());
    let options = WriterOptions {
        n_splits: args.n_splits.get(),
        dtype: args.activation_dtype,
        memory_budget: args.memory << 20,
    };
    let staging = output.path().join(STAGING);
    let mut writer = None;
    let progress = Progress::new("caching", "images", Some(count as u64));
    let mut bad = BadRecordCounter::new(BadRecords::up_to(args.max_bad));
    let description = describe(args, &dataset, filters, &saes);
    let mut batch = Vec::with_capacity(args.batch_size.get());
    let ahead = NonZeroUsize::new(BATCHES_AHEAD * args.batch_size.get()).unwrap_or(NonZeroUsize::MIN);
    let processor = model.processor.clone();
    let prepared = prefetch(0..count, ahead, move |index| prepare(&dataset, &processor, index));
    for (index, prepared) in prepared.enumerate() {
        if let Some(prepared) = bad.admit(prepared)? {
            if writer.is_none() {
                let mut description = description.clone();
                description.token_layout.base = base_tile(&prepared.inputs);
                writer = Some(CacheWriter::create(&staging, description, options)?);
            }
            batch.push(prepared);
        }
        if batch.len() == args.batch_size.get() || index + 1 == count {
            if let Some(writer) = &mut writer {
                store(&model, &saes, &batch, writer)?;
            }
            progress.inc((index + 1) as u64 - progress.position());
            batch.clear();
        }
    }
    progress.finish();
    let writer = writer.context("no image could be read")?;
    let manifest = writer.finish()?;
    for entry in std::fs::read_dir(&staging).context("listing the cache")? {
        let entry = entry.context("listing the cache")?;
        std::fs::rename(entry.path(), output.path().join(entry.file_name()))
            .context("moving the cache into place")?;
    }
    std::fs::remove_dir(&staging).context("removing the staging folder")?;

    run.count("images", manifest.counts.samples);
    run.count("bad records", bad.bad());
    run.count("tokens", manifest.counts.tokens);
    run.count("activations", manifest.counts.activations);
    tracing::info!(
        images = manifest.counts.samples,
        activations = manifest.counts.activations,
        "cached in {}",
        args.save_dir.display()
    );
    Ok(output.commit(run)?)
}

fn read_filters(path: &Path) -> Result<Filters> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read filters {}", path.display()))?;
    let filters: Filters =
        serde_json::from_str(&text).with_context(|| format!("{} is no filters file", path.display()))?;
    ensure!(!filters.is_empty(), "{} names no hook point", path.display());
    if let Some(hook) = filters.hooks().find(|hook| filters.features(hook).is_none_or(<[_]>::is_empty)) {
        bail!("{} names no feature of {hook}", path.display());
    }
    Ok(filters)
}

/// Every autoencoder below `--sae` that the filters, if any, ask for, checked against the model.
fn load_saes(
    args: &ImagesArgs,
    model: &OpenModel,
    filters: Option<&Filters>,
) -> Result<BTreeMap<HookPoint, CachedSae>> {
    let root = hub::resolve(&args.sae, RepoKind::Model, &["*cfg.json", "*sae.safetensors"])?;
    let mut found = Sae::find(&root)?;
    if let Some(filters) = filters {
        for hook in filters.hooks() {
            ensure!(
                found.contains_key(hook),
                "filters name {hook}, but {} has no SAE for it",
                root.display()
            );
        }
        found.retain(|hook, _| filters.features(hook).is_some());
    }
    let mut saes = BTreeMap::new();
    for (hook, folder) in found {
        let sae = Sae::load(&folder)?;
        let width = model.network.width(&hook)?;
        ensure!(
            sae.d_in() as i64 == width,
            "{} reads vectors of {}, but {hook} of {} gives {width}",
            folder.display(),
            sae.d_in(),
            model.folder.display()
        );
        if let Some(filters) = filters {
            filters.check_width(&hook, sae.num_latents())?;
        }
        let path = folder.join("sae.safetensors");
        let source = SaeSource { path: folder.display().to_string(), sha256: hash_file(&path)? };
        let reads = if sae.config().transcode { model.network.input_point(&hook)? } else { hook.clone() };
        let sae = TorchSae::from_sae(&sae, model.network.device(), Kind::Float)?;
        saes.insert(hook, CachedSae { sae, source, reads });
    }
    Ok(saes)
}

fn describe(
    args: &ImagesArgs,
    dataset: &Dataset,
    filters: Option<Filters>,
    saes: &BTreeMap<HookPoint, CachedSae>,
) -> CacheDescription {
    CacheDescription {
        model: args.model.clone(),
        dataset: DatasetSource {
            name: args.dataset.clone(),
            split: dataset.split().map(str::to_owned),
            fingerprint: dataset.fingerprint().to_owned(),
            n_samples: dataset.len() as u64,
        },
        token_layout: TokenLayoutDescription { prompt: Some(IMAGE_PROMPT.to_owned()), base: None, first: 1 },
        filters,
        hooks: saes
            .iter()
            .map(|(hook, CachedSae { sae, source, .. })| {
                let (width, k) = (sae.num_latents(), sae.k());
                (hook.clone(), HookDescription { sae: source.clone(), width, k, reads: None })
            })
            .collect(),
    }
}

fn base_tile(inputs: &Inputs) -> Option<BaseTile> {
    let span = inputs.layout.images.first()?;
    Some(BaseTile { start: span.start as u32, rows: span.base.0 as u32, cols: span.base.1 as u32 })
}

/// Reads and preprocesses the first image of a record.
fn prepare(dataset: &Dataset, processor: &lmm_prep::Processor, index: usize) -> Result<Prepared, DataError> {
    let sample = dataset.get(index)?;
    let unusable = |cause| dataset.unusable(index, cause);
    let image = sample.images.first().ok_or_else(|| unusable(NoImage))?;
    let pixels =
        lmm_prep::decode_image_upright(&image.bytes).map_err(|cause| dataset.unusable(index, cause))?;
    let (width, height) = pixels.dimensions();
    let inputs =
        processor.prepare(IMAGE_PROMPT, &[pixels]).map_err(|cause| dataset.unusable(index, cause))?;
    let high = inputs.layout.images.first().map(|span| [span.high.0 as u32, span.high.1 as u32]);
    let record = SampleRecord {
        sample: SampleId(index as u32),
        id: sample.id,
        n_tokens: inputs.input_ids.len() as u32,
        width,
        height,
        image_sha256: Some(hash_bytes(&image.bytes)),
        high,
        base_start: None,
        image_tokens: Vec::new(),
    };
    Ok(Prepared { record, inputs })
}

/// A record without an image in a run that is about images.
#[derive(Debug)]
struct NoImage;

impl std::fmt::Display for NoImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the record has no image")
    }
}

impl std::error::Error for NoImage {}

/// One forward pass, and the codes of every autoencoder to the writer.
fn store(
    model: &OpenModel,
    saes: &BTreeMap<HookPoint, CachedSae>,
    batch: &[Prepared],
    writer: &mut CacheWriter,
) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let prompts: Vec<&Inputs> = batch.iter().map(|prepared| &prepared.inputs).collect();
    let positions: Vec<Vec<u32>> =
        prompts.iter().map(|inputs| TokenArgs::default().positions(&model.processor, inputs)).collect();
    let points: Vec<HookPoint> = saes.values().map(|sae| sae.reads.clone()).collect();
    let states = model.states(&model.batch(&prompts)?, &positions, &points)?;
    let mut first = 0;
    for (prepared, tokens) in batch.iter().zip(&positions) {
        let count = tokens.len() as i64;
        let codes = saes
            .iter()
            .map(|(hook, CachedSae { sae, reads, .. })| {
                let rows = states[reads].narrow(0, first, count);
                let codes = sae.encode(&rows).to_codes(sae.num_latents());
                codes.with_context(|| format!("encoding sample {} at {hook}", prepared.record.sample))
            })
            .collect::<Result<Vec<_>>>()?;
        first += count;
        let codes: Vec<SampleCodes<'_>> =
            saes.keys().zip(&codes).map(|(hook, codes)| SampleCodes { hook, tokens, codes }).collect();
        writer.push(&prepared.record, &codes)?;
    }
    Ok(())
}
