//! [`import`]: a foreign cache becomes a native one, in bounded memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;
use sae_types::{FeatureId, HookPoint};

use super::cache::ForeignHook;
use super::samples::{self, Samples};
use super::split::ForeignSplit;
use super::{ForeignCache, Layout};
use crate::files::{check_free, hidden_sibling};
use crate::manifest::split_file;
use crate::runs::Entry;
use crate::split::TokenDtype;
use crate::split_writer::SplitWriter;
use crate::{
    ActivationDtype, BaseTile, CacheDescription, CacheError, DatasetSource, HookManifest, Manifest,
    SaeSource, SplitManifest, TokenLayoutDescription,
};

/// Whether msae lost the last latent of every split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastLatents {
    /// It did, unless one of them has an activation.
    #[default]
    Detect,
    /// It did not: the cache was written by a program that keeps them.
    Kept,
}

/// What a foreign cache does not say about itself, and how to import it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportOptions {
    /// Name or folder of the model; where empty, what delphi's config.json says.
    pub model: String,
    /// Where the samples come from; a name that is empty is what delphi's config.json says.
    pub dataset: DatasetSource,
    /// The sparse autoencoder of all hook points.
    pub sae: SaeSource,
    /// How many latents are on per token; 0 where it is not known.
    pub k: usize,
    /// How many latents each hook point has, if more than its last split's name says.
    pub width: Option<usize>,
    /// The position of each entry's token 0; [`Layout::first`] if `None`.
    pub first: Option<u32>,
    /// Where every sample has the base tile of its image. Samples have images exactly where this is given, which reach from
    /// the tile to the sample's end.
    pub base: Option<BaseTile>,
    /// The length of every sample of a cache without `tokens`; if `None` a sample ends with its last activation, or with
    /// its base tile.
    pub n_tokens: Option<u32>,
    /// The token id that delphi's `tokens` are padded with: taken off the ends of samples.
    pub pad: Option<u32>,
    /// Whether msae lost the last latent of every split.
    pub last_latents: LastLatents,
    /// How activations are stored: as in the source if `None`, or f32 if its splits differ.
    pub dtype: Option<ActivationDtype>,
    /// Bytes that tables and sorted entries may take. Entries that do not fit are read several times.
    pub memory_budget: usize,
}

impl Default for ImportOptions {
    /// Nothing known, 1 GiB.
    fn default() -> Self {
        Self {
            model: String::new(),
            dataset: DatasetSource::default(),
            sae: SaeSource::default(),
            k: 0,
            width: None,
            first: None,
            base: None,
            n_tokens: None,
            pad: None,
            last_latents: LastLatents::default(),
            dtype: None,
            memory_budget: 1 << 30,
        }
    }
}

/// What an import made.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The manifest of the new cache.
    pub manifest: Manifest,
    /// Activations left out because they are zero, or round to it.
    pub zeros: u64,
}

/// How the entries of a cache are read, and what becomes of them.
#[derive(Clone, Copy)]
struct Reading {
    layout: Layout,
    first: u32,
    dtype: ActivationDtype,
    /// Bytes for the entries of one split.
    budget: usize,
}

/// What one pass over a hook point found.
struct Census {
    /// Activations to store, by latent.
    counts: Vec<u64>,
    /// Whether one of its splits has an activation of its last latent.
    lasts: bool,
    zeros: u64,
    largest_token: u32,
}

/// Writes the activations of `foreign` as a native cache at `dir`, which must not exist or be empty. Every entry is checked.
///
/// # Errors
/// When an entry cannot be used or occurs twice, splits overlap, the tables of latents and samples do not fit the
/// memory allowed, or files cannot be written; nothing is left behind then.
pub fn import(foreign: &ForeignCache, dir: &Path, options: &ImportOptions) -> Result<Imported, CacheError> {
    let layout = foreign.layout();
    let first = options.first.unwrap_or(layout.first());
    let threads = rayon::current_num_threads().max(1);
    let dtype = options.dtype.unwrap_or_else(|| common_dtype(foreign));
    // Half of the budget is for tables of latents, a quarter for samples, a quarter for entries on all threads.
    let reading = Reading { layout, first, dtype, budget: options.memory_budget / 4 / threads };

    let mut samples = Samples::new(options.memory_budget / 4);
    let mut censuses = BTreeMap::new();
    let mut latents = 0usize;
    for (name, hook) in foreign.entries() {
        if hook.splits.is_empty() {
            return Err(CacheError::Field {
                path: foreign.dir().join(name.as_str()),
                field: "the list of files".to_owned(),
                expected: "files of all ranks together, <first latent>_<last latent>.safetensors".to_owned(),
                got: hook.rank_parts.join(", "),
            });
        }
        check_overlap(hook)?;
        let width = options.width.unwrap_or(0).max(hook.width());
        latents = latents.saturating_add(width);
        check_tables(foreign.dir(), "latents", latents, options.memory_budget / 2)?;
        censuses.insert(name, census(hook, width, reading, &mut samples, foreign.dir())?);
    }
    let grid = samples::grid(foreign);
    match grid {
        Some((split, grid)) => samples.take_grid(split, grid, options.pad)?,
        None => samples.take_told(options.n_tokens, samples::least(first, options))?,
    }

    check_free(dir)?;
    let temp = hidden_sibling(dir)?;
    let samples_sha256 = samples.write(temp.path(), options.base)?;
    let tokens = grid.map(|grid| samples::write_tokens(temp.path(), grid, &samples)).transpose()?;
    let mut counts = samples.counts();
    let largest = censuses.values().map(|census| census.largest_token).max().unwrap_or(0);
    let token_dtype = TokenDtype::for_largest(largest);
    let mut hooks = BTreeMap::new();
    let mut zeros = 0;
    for (name, census) in censuses {
        let hook = &foreign.entries()[name];
        let splits = write_splits(temp.path(), name, hook, &census, token_dtype, reading)?;
        counts.activations += census.counts.iter().sum::<u64>();
        zeros += census.zeros;
        let from = options.base.map_or(first, |base| base.start.max(first));
        let entry = HookManifest {
            sae: options.sae.clone(),
            width: census.counts.len(),
            k: options.k,
            reads: None,
            tokens: samples.sum(first),
            image_tokens: options.base.map_or(0, |_| samples.sum(from)),
            lost: lost(hook, &census, layout, options.last_latents),
            splits,
        };
        hooks.insert(name.clone(), entry);
    }
    let description = description(foreign, options, first, counts.samples);
    let manifest = Manifest::new(description, dtype, counts, samples_sha256, tokens, hooks);
    manifest.write(temp.path())?;
    std::fs::rename(temp.path(), dir).map_err(CacheError::io("move the finished cache to", dir))?;
    let _ = temp.keep();
    Ok(Imported { manifest, zeros })
}

/// The dtype of all splits, or f32, which holds all of them exactly.
fn common_dtype(foreign: &ForeignCache) -> ActivationDtype {
    let splits = foreign.entries().values().flat_map(|hook| &hook.splits);
    let mut dtypes = splits.map(ForeignSplit::activation_dtype);
    let one = dtypes.next().unwrap_or_default();
    if dtypes.all(|dtype| dtype == one) { one } else { ActivationDtype::F32 }
}

fn check_overlap(hook: &ForeignHook) -> Result<(), CacheError> {
    for pair in hook.splits.windows(2) {
        if pair[0].latents().end > pair[1].latents().start {
            return Err(CacheError::Overlap {
                path: pair[1].path().to_owned(),
                other: pair[0].path().to_owned(),
                latent: pair[1].latents().start,
            });
        }
    }
    Ok(())
}

/// A table takes 8 bytes per element.
fn check_tables(path: &Path, what: &'static str, n: usize, budget: usize) -> Result<(), CacheError> {
    let needs = n.saturating_mul(8);
    if needs > budget || n > u32::MAX as usize {
        return Err(CacheError::Budget { path: path.to_owned(), what, needs, budget });
    }
    Ok(())
}

/// Counts and checks the entries of a hook point.
fn census(
    hook: &ForeignHook,
    width: usize,
    reading: Reading,
    samples: &mut Samples,
    dir: &Path,
) -> Result<Census, CacheError> {
    let mut census = Census { counts: vec![0; width], lasts: false, zeros: 0, largest_token: 0 };
    for split in &hook.splits {
        for i in 0..split.len() {
            let entry = read(split, i, reading)?;
            // A zero shows that the sample is there as well as any other activation does.
            if !samples.note(entry.sample, entry.token) {
                let needs = (entry.sample as usize + 1) * 12;
                let budget = samples.lengths().len().max(1) * 12;
                return Err(CacheError::Budget { path: dir.to_owned(), what: "samples", needs, budget });
            }
            if entry.value == 0.0 {
                census.zeros += 1;
                continue;
            }
            census.counts[entry.latent as usize] += 1;
            census.largest_token = census.largest_token.max(entry.token);
        }
        census.lasts |= census.counts[split.latents().end - 1] > 0;
    }
    Ok(census)
}

/// Entry `i`, its value as it will be stored.
fn read(split: &ForeignSplit, i: usize, reading: Reading) -> Result<Entry, CacheError> {
    let mut entry = split
        .entry(i, reading.layout, reading.first)
        .map_err(|problem| CacheError::ForeignEntry { path: split.path().to_owned(), entry: i, problem })?;
    let stored = reading.dtype.round(entry.value);
    if !stored.is_finite() {
        return Err(CacheError::Overflow {
            sample: sae_types::SampleId(entry.sample),
            feature: FeatureId(entry.latent),
            value: entry.value,
            dtype: reading.dtype,
        });
    }
    entry.value = stored;
    Ok(entry)
}

/// The native splits: those of the source, and one for every gap between or after them.
fn write_splits(
    folder: &Path,
    name: &HookPoint,
    hook: &ForeignHook,
    census: &Census,
    token_dtype: TokenDtype,
    reading: Reading,
) -> Result<Vec<SplitManifest>, CacheError> {
    let own = folder.join(name.as_str());
    std::fs::create_dir(&own).map_err(CacheError::io("create", own))?;
    let mut parts: Vec<(Range<usize>, Option<&ForeignSplit>)> = Vec::new();
    let mut next = 0;
    for split in &hook.splits {
        let latents = split.latents();
        if latents.start > next {
            parts.push((next..latents.start, None));
        }
        next = latents.end;
        parts.push((latents, Some(split)));
    }
    if census.counts.len() > next {
        parts.push((next..census.counts.len(), None));
    }
    let write = |(latents, source): (Range<usize>, Option<&ForeignSplit>)| {
        let file = split_file(name, latents.start, latents.end);
        let counts = &census.counts[latents.clone()];
        let n = counts.iter().sum();
        let mut out =
            SplitWriter::create(&folder.join(&file), latents.clone(), n, token_dtype, reading.dtype)?;
        if let Some(source) = source {
            copy_split(source, counts, reading, &mut out)?;
        }
        let Range { start, end } = latents;
        Ok(SplitManifest { file, start, end, n, sha256: out.finish()? })
    };
    parts.into_par_iter().with_max_len(1).map(write).collect()
}

/// Groups of latents whose entries fit the budget, each read in one pass; a latent that alone does not fit, by groups of
/// samples.
fn copy_split(
    split: &ForeignSplit,
    counts: &[u64],
    reading: Reading,
    out: &mut SplitWriter,
) -> Result<(), CacheError> {
    let capacity = (reading.budget / size_of::<Entry>()).max(1) as u64;
    let origin = split.latents().start;
    for group in groups(counts, capacity) {
        let n: u64 = counts[group.clone()].iter().sum();
        if n == 0 {
            continue;
        }
        let latents = origin + group.start..origin + group.end;
        if n <= capacity {
            copy(split, latents, 0..u32::MAX, n, reading, out)?;
            continue;
        }
        let mut by_sample = Vec::new();
        for i in 0..split.len() {
            let entry = read(split, i, reading)?;
            if entry.latent as usize == latents.start && entry.value != 0.0 {
                let at = entry.sample as usize;
                if at >= by_sample.len() {
                    by_sample.resize(at + 1, 0);
                }
                by_sample[at] += 1;
            }
        }
        for window in groups(&by_sample, capacity) {
            let n = by_sample[window.clone()].iter().sum();
            copy(split, latents.clone(), window.start as u32..window.end as u32, n, reading, out)?;
        }
    }
    Ok(())
}

/// Consecutive ranges of `counts` that hold at most `capacity` together, or are one element.
pub(super) fn groups(counts: &[u64], capacity: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut sum) = (0, 0u64);
    for (i, &count) in counts.iter().enumerate() {
        if i > start && sum + count > capacity {
            groups.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += count;
    }
    if start < counts.len() {
        groups.push(start..counts.len());
    }
    groups
}

/// Copies the `n` entries of some latents in some samples, in order.
fn copy(
    split: &ForeignSplit,
    latents: Range<usize>,
    samples: Range<u32>,
    n: u64,
    reading: Reading,
    out: &mut SplitWriter,
) -> Result<(), CacheError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(n as usize);
    for i in 0..split.len() {
        let entry = read(split, i, reading)?;
        if latents.contains(&(entry.latent as usize)) && samples.contains(&entry.sample) && entry.value != 0.0
        {
            entries.push(entry);
        }
    }
    let key = |entry: &Entry| (entry.latent, entry.sample, entry.token);
    entries.par_sort_unstable_by_key(key);
    if let Some(twice) = entries.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
        let Entry { latent, sample, token, .. } = twice[0];
        let same =
            |i: &usize| read(split, *i, reading).is_ok_and(|entry| key(&entry) == (latent, sample, token));
        let entry = (0..split.len()).filter(same).nth(1).unwrap_or(0);
        let problem = format!("latent {latent}, sample {sample}, position {token} was there before");
        return Err(CacheError::ForeignEntry { path: split.path().to_owned(), entry, problem });
    }
    entries
        .iter()
        .try_for_each(|entry| out.push(entry.latent as usize, entry.sample, entry.token, entry.value))
}

/// Features whose activations the source lacks: those in no split, and msae's last of every split.
fn lost(hook: &ForeignHook, census: &Census, layout: Layout, last: LastLatents) -> Vec<FeatureId> {
    let mut lost = Vec::new();
    let mut next = 0;
    let lasts = layout == Layout::Msae && last == LastLatents::Detect && !census.lasts;
    for split in &hook.splits {
        let latents = split.latents();
        lost.extend(next..latents.start);
        if lasts {
            lost.push(latents.end - 1);
        }
        next = latents.end;
    }
    lost.extend(next..census.counts.len());
    lost.into_iter().map(|latent| FeatureId(latent as u32)).collect()
}

fn description(
    foreign: &ForeignCache,
    options: &ImportOptions,
    first: u32,
    n_samples: u64,
) -> CacheDescription {
    let config = foreign.entries().values().find_map(|hook| hook.config.clone()).unwrap_or_default();
    let mut dataset = options.dataset.clone();
    if dataset.name.is_empty() {
        dataset.name = config.dataset_repo;
        dataset.split = dataset.split.or(Some(config.dataset_split)).filter(|split| !split.is_empty());
    }
    dataset.n_samples = dataset.n_samples.max(n_samples);
    let model = if options.model.is_empty() { config.model_name } else { options.model.clone() };
    let token_layout = TokenLayoutDescription { prompt: None, base: options.base, first };
    CacheDescription { model, dataset, token_layout, ..CacheDescription::default() }
}
