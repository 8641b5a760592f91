//! [`Plan`]: everything that has to be known and right before the model's weights are read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use act_cache::{BaseTile, CacheDescription, CacheJob, DatasetSource, TokenLayoutDescription};
use anyhow::{Context, Result, ensure};
use lmm_prep::Processor;
use mm_data::Dataset;
use model_kit::{IMAGE_PROMPT, ModelFolder, TorchArgs};
use sae_types::HookPoint;
use stage_kit::{RunManifest, World, hash_bytes};

use crate::args::{Format, StageArgs};
use crate::saes::{self, CachedSae};

/// Of a file of weights so many pieces of so many bytes are hashed: one that differs in a few numbers goes unseen.
const WEIGHT_PIECES: u64 = 16;
const WEIGHT_PIECE: u64 = 64 << 10;

/// What is cached of a data set.
#[derive(Debug)]
pub(crate) struct Content {
    /// What a sample is called, in the plural.
    pub(crate) unit: &'static str,
    /// The prompt all samples share.
    pub(crate) prompt: Option<&'static str>,
    pub(crate) keep_tokens: bool,
    /// Whether every sample that begins with BOS has its first position left out.
    pub(crate) drop_bos: bool,
    /// Flags that decide what is stored, by name.
    pub(crate) conditions: BTreeMap<String, String>,
}

/// What reads samples.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) dataset: Dataset,
    pub(crate) processor: Arc<Processor>,
    /// Where the base tile of an image lies when nothing but the image is shown.
    pub(crate) base: Option<BaseTile>,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) model: ModelFolder,
    pub(crate) reader: Arc<Reader>,
    pub(crate) saes: BTreeMap<HookPoint, CachedSae>,
    pub(crate) job: CacheJob,
    /// How many samples from the start of the data set.
    samples: usize,
    batch_size: usize,
}

impl Plan {
    pub(crate) fn new(
        args: &StageArgs,
        torch: TorchArgs,
        content: &Content,
        dataset: Dataset,
    ) -> Result<Self> {
        let filters = args.filters.as_deref().map(saes::read_filters).transpose()?;
        let model = ModelFolder::find(&args.model)?;
        let saes = saes::load(&args.sae, filters.as_ref(), &model.hollow()?)?;
        let (base, begins_with_bos) = base_tile(&model.processor)?;
        let is_tokens = dataset.get(0).is_ok_and(|sample| sample.tokens.is_some());
        let begins_with_bos = if is_tokens { starts_with_bos(&dataset, &model) } else { begins_with_bos };
        let base = base.filter(|_| !is_tokens);
        let description = CacheDescription {
            model: args.model.clone(),
            dataset: DatasetSource {
                name: args.dataset.clone(),
                split: dataset.split().map(str::to_owned),
                fingerprint: dataset.fingerprint().to_owned(),
                n_samples: dataset.len() as u64,
            },
            token_layout: TokenLayoutDescription {
                prompt: content.prompt.map(str::to_owned),
                base,
                first: u32::from(content.drop_bos && begins_with_bos),
            },
            filters,
            hooks: saes.iter().map(|(hook, sae)| (hook.clone(), sae.describe(hook))).collect(),
        };
        let samples = args.max_examples.map_or(usize::MAX, std::num::NonZeroUsize::get).min(dataset.len());
        ensure!(u32::try_from(samples).is_ok(), "{samples} samples are more than a cache can number");
        let mut conditions = content.conditions.clone();
        conditions.extend(
            saes.iter().map(|(hook, sae)| (format!("cfg.json of {hook}"), sae.config_sha256.clone())),
        );
        let device = torch.device.to_string();
        let image_root = args.image_root.as_ref();
        conditions.extend(
            [
                ("program", concat!(env!("CARGO_BIN_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned()),
                ("MODEL's files", model_hash(&model.folder)?),
                ("--max-examples", args.max_examples.map_or("not set".to_owned(), |limit| limit.to_string())),
                ("--image-root", image_root.map_or("not set".to_owned(), |root| root.display().to_string())),
                ("--batch-size", args.batch_size.to_string()),
                ("--device", device.split(':').next().unwrap_or_default().to_owned()),
                ("--dtype", torch.dtype.to_string()),
                ("--load-in-8bit", args.precision.load_in_8bit.to_string()),
                (Format::CONDITION, args.format.name()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let job = CacheJob {
            description,
            n_splits: args.n_splits.get(),
            dtype: args.activation_dtype,
            keep_tokens: content.keep_tokens,
            conditions,
        };
        let reader = Reader { dataset, processor: Arc::clone(&model.processor), base };
        Ok(Self { model, reader: Arc::new(reader), saes, job, samples, batch_size: args.batch_size.get() })
    }

    /// The batches of one worker, by number. They are the same whoever computes them, and so are their sums: a batch is the
    /// unit of work, and what a run goes on from.
    pub(crate) fn share(&self, world: World) -> Range<usize> {
        let batches = self.samples.div_ceil(self.batch_size);
        let boundary = |rank: usize| (batches as u128 * rank as u128 / world.size as u128) as usize;
        boundary(world.rank)..boundary(world.rank + 1)
    }

    /// The samples of a range of batches.
    pub(crate) fn samples_of(&self, batches: &Range<usize>) -> Range<usize> {
        let boundary = |batch: usize| (batch * self.batch_size).min(self.samples);
        boundary(batches.start)..boundary(batches.end)
    }

    /// The batch that begins with a sample.
    pub(crate) fn batch_from(&self, sample: usize) -> usize {
        sample.div_ceil(self.batch_size)
    }
}

/// Notes what a cache is made of.
pub(crate) fn note_inputs(run: &mut RunManifest, job: &CacheJob) {
    let CacheDescription { model, dataset, hooks, .. } = &job.description;
    run.input("model", model, job.conditions.get("MODEL's files").cloned().unwrap_or_default());
    run.input("dataset", &dataset.name, dataset.fingerprint.clone());
    for (hook, about) in hooks {
        run.input(&format!("sae {hook}"), &about.sae.path, about.sae.sha256.clone());
    }
}

/// The base tile of an image shown with no words, and whether such a prompt begins with BOS. It must not depend on which
/// sample a worker meets first.
fn base_tile(processor: &Processor) -> Result<(Option<BaseTile>, bool)> {
    let ids = processor.tokenizer().encode(IMAGE_PROMPT, true)?;
    let config = processor.config();
    let side = u32::try_from(config.vision_config.patches_per_side())?;
    let start = ids.iter().position(|&id| id == config.image_token_index);
    let base = start.map(|start| BaseTile { start: start as u32, rows: side, cols: side });
    let bos = processor.tokenizer().special_id("bos_token");
    Ok((base, bos.is_some() && ids.first().copied() == bos))
}

/// Whether pieces of a token file begin with BOS, judged by the first two.
fn starts_with_bos(dataset: &Dataset, model: &ModelFolder) -> bool {
    let bos = model.processor.tokenizer().special_id("bos_token");
    let first = |index| dataset.get(index).ok()?.tokens?.first().copied();
    bos.is_some() && (0..dataset.len().min(2)).all(|index| first(index) == bos)
}

/// The files besides weights that decide what a model computes and how its inputs are made.
const MODEL_FILES: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
];

/// A hash of the model's configuration and tokenizer, and of pieces of its weights.
fn model_hash(folder: &Path) -> Result<String> {
    let context = || format!("cannot read the model folder {}", folder.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(context)? {
        names.push(entry.with_context(context)?.file_name());
    }
    names.sort();
    let mut text = String::new();
    for name in names {
        let path = folder.join(&name);
        let context = || format!("cannot read {}", path.display());
        let name = name.to_string_lossy().into_owned();
        let hash = if MODEL_FILES.contains(&name.as_str()) {
            hash_bytes(&std::fs::read(&path).with_context(context)?)
        } else if name.ends_with(".safetensors") {
            weights_hash(&path).with_context(context)?
        } else {
            continue;
        };
        let _ = writeln!(text, "{hash}  {name}");
    }
    Ok(hash_bytes(text.as_bytes()))
}

fn weights_hash(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = size.to_le_bytes().to_vec();
    for piece in 0..WEIGHT_PIECES {
        let last = size.saturating_sub(WEIGHT_PIECE);
        file.seek(SeekFrom::Start((last as u128 * piece as u128 / (WEIGHT_PIECES - 1) as u128) as u64))?;
        file.by_ref().take(WEIGHT_PIECE).read_to_end(&mut bytes)?;
    }
    Ok(hash_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_the_weights_shows() {
        let folder = tempfile::tempdir().unwrap();
        let write = |bytes: &[u8]| std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for (size, changed) in [(100, None), (101, None), (3 << 20, None), (3 << 20, Some((3 << 20) - 1))] {
            let mut bytes = vec![7; size];
            if let Some(at) = changed {
                bytes[at] = 8_u8;
            }
            write(&bytes);
            assert_eq!(model_hash(folder.path()).unwrap(), model_hash(folder.path()).unwrap());
            assert!(seen.insert(model_hash(folder.path()).unwrap()), "{size} {changed:?}");
        }
        std::fs::write(folder.path().join("config.json"), "{ }").unwrap();
        assert!(seen.insert(model_hash(folder.path()).unwrap()));
    }
}
