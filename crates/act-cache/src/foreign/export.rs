//! [`export_msae`] and [`export_delphi`]: a native cache becomes a foreign one, in bounded memory.

use std::path::Path;

use half::{bf16, f16};
use sae_types::{FeatureId, HookPoint, SampleId};
use safetensors::tensor::Dtype;

use super::boundaries::boundaries;
use super::delphi::DelphiConfig;
use super::import::groups;
use super::split::{ACTIVATIONS, LOCATIONS, TOKENS};
use crate::files::{check_free, hidden_sibling};
use crate::header::Layout;
use crate::runs::Entry;
use crate::tensor_file::TensorFile;
use crate::{ActivationDtype, Cache, CacheError, CachedTokens, FeatureSlice, HookCache};

/// How to write a cache of msae's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsaeOptions {
    /// Into how many files each hook point's latents are split; as many as the cache has if `None`.
    pub n_splits: Option<usize>,
    /// How activations are stored; as in the cache if `None`.
    pub dtype: Option<ActivationDtype>,
    /// Bytes that sorted entries may take. One sample's entries of one split are always held.
    pub memory_budget: usize,
}

impl Default for MsaeOptions {
    /// As the cache has it, 1 GiB.
    fn default() -> Self {
        Self { n_splits: None, dtype: None, memory_budget: 1 << 30 }
    }
}

/// What to do about token ids that the cache does not keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingTokens {
    /// Refuse: delphi shows its explainer text made of them.
    #[default]
    Refuse,
    /// Write padding in their place, for what needs activations only.
    Pad,
}

/// How to write a cache of delphi's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelphiOptions {
    /// Into how many files each hook point's latents are split; as many as the cache has if `None`.
    pub n_splits: Option<usize>,
    /// Rows of `tokens` are padded to a multiple of this, which must be one of delphi's `example_ctx_len` (32 by default).
    pub ctx_len: usize,
    /// What they are padded with.
    pub pad: u32,
    /// What to do about token ids that the cache does not keep.
    pub missing_tokens: MissingTokens,
    /// Bytes that sorted entries may take. One sample's entries of one split are always held.
    pub memory_budget: usize,
}

impl Default for DelphiOptions {
    /// As many splits as the cache has, rows padded with 0 to a multiple of 32, token ids required, 1 GiB.
    fn default() -> Self {
        Self {
            n_splits: None,
            ctx_len: 32,
            pad: 0,
            missing_tokens: MissingTokens::default(),
            memory_budget: 1 << 30,
        }
    }
}

/// What an export made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Activations of all hook points.
    pub activations: u64,
    /// Activations left out because they round to zero in the dtype written.
    pub zeros: u64,
    /// Rows of delphi's `tokens`.
    pub rows: usize,
    /// How many of these stand for numbers below the largest that are no sample of the cache; all padding.
    pub empty_rows: usize,
    /// Tokens in a row of delphi's `tokens`.
    pub row_length: usize,
}

/// Writes `cache` in msae's layout at `dir`, which must not exist or be empty. Positions become tokens counted from
/// [`TokenLayoutDescription::first`]. Every latent of a split is in it, the last one too, which msae itself loses.
///
/// [`TokenLayoutDescription::first`]: crate::TokenLayoutDescription::first
///
/// # Errors
/// When the cache is damaged, an activation does not fit the dtype, a position lies before the first one, there are
/// more splits than latents, or files cannot be written; nothing is left behind then.
pub fn export_msae(cache: &Cache, dir: &Path, options: &MsaeOptions) -> Result<Exported, CacheError> {
    let dtype = options.dtype.unwrap_or(cache.manifest().activation_dtype);
    let walk = Walk {
        cache,
        dtype,
        first: cache.manifest().token_layout.first,
        capacity: (options.memory_budget / size_of::<Entry>()).max(1) as u64,
    };
    let mut exported = Exported::default();
    write_beside(dir, |folder| {
        for name in cache.hooks() {
            let hook = cache.hook(name)?;
            for latents in splits(&hook, options.n_splits)? {
                let path = split_path(folder, name, &latents)?;
                let survey = walk.survey(&hook, latents.clone())?;
                let n = survey.by_line.iter().sum::<u64>() as usize;
                let mut file = TensorFile::create(
                    &path,
                    &Layout::of_library(&[
                        (LOCATIONS, Dtype::I64, vec![n, 3]),
                        (ACTIVATIONS, dtype.tensor(), vec![n]),
                    ]),
                )?;
                walk.entries(&hook, latents, &survey, |entry| {
                    let place = [entry.sample, entry.token, entry.latent].map(i64::from);
                    file.write(0, bytemuck::bytes_of(&place))?;
                    write_value(&mut file, dtype, entry.value)
                })?;
                file.finish()?;
                exported.activations += n as u64;
                exported.zeros += survey.zeros;
            }
        }
        Ok(())
    })?;
    Ok(exported)
}

/// Writes `cache` in delphi's layout at `dir`, which must not exist or be empty: f16, latents counted from each split's
/// first, and in every split the token ids of all samples in rows of one length. Row and sample have the same number;
/// positions stay as they are. `locations` are U16 where samples, latents and positions all fit, else U32; delphi looks at
/// samples and latents only.
///
/// # Errors
/// When the cache is damaged, an activation does not fit f16, the cache keeps no token ids and padding was not
/// asked for, there are more splits than latents, or files cannot be written; nothing is left behind then.
///
/// # Panics
/// When `ctx_len` is 0.
pub fn export_delphi(cache: &Cache, dir: &Path, options: &DelphiOptions) -> Result<Exported, CacheError> {
    assert!(options.ctx_len > 0, "ctx_len is 0");
    let tokens = cache.tokens()?;
    if tokens.is_none() && options.missing_tokens == MissingTokens::Refuse {
        return Err(CacheError::NoTokens);
    }
    let dtype = ActivationDtype::F16;
    let walk =
        Walk { cache, dtype, first: 0, capacity: (options.memory_budget / size_of::<Entry>()).max(1) as u64 };
    let rows = cache.samples().last().map_or(0, |last| last.sample.index() + 1);
    let longest = cache.samples().iter().map(|sample| sample.n_tokens as usize).max().unwrap_or(0);
    let row_length = longest.max(1).next_multiple_of(options.ctx_len);
    let mut exported =
        Exported { rows, row_length, empty_rows: rows - cache.samples().len(), ..Exported::default() };
    write_beside(dir, |folder| {
        for name in cache.hooks() {
            let hook = cache.hook(name)?;
            let ranges = splits(&hook, options.n_splits)?;
            let n_splits = ranges.len();
            for latents in ranges {
                let path = split_path(folder, name, &latents)?;
                let start = latents.start as u32;
                let survey = walk.survey(&hook, latents.clone())?;
                let n = survey.by_line.iter().sum::<u64>() as usize;
                let narrow = [
                    survey.largest.latent.saturating_sub(start),
                    survey.largest.sample,
                    survey.largest.token,
                ]
                .iter()
                .all(|&number| u16::try_from(number).is_ok());
                let places = if narrow { Dtype::U16 } else { Dtype::U32 };
                let mut file = TensorFile::create(
                    &path,
                    &Layout::of_library(&[
                        (LOCATIONS, places, vec![n, 3]),
                        (ACTIVATIONS, dtype.tensor(), vec![n]),
                        (TOKENS, Dtype::I64, vec![rows, row_length]),
                    ]),
                )?;
                walk.entries(&hook, latents, &survey, |entry| {
                    let place = [entry.sample, entry.token, entry.latent - start];
                    if narrow {
                        file.write(0, bytemuck::bytes_of(&place.map(|number| number as u16)))?;
                    } else {
                        file.write(0, bytemuck::bytes_of(&place))?;
                    }
                    write_value(&mut file, dtype, entry.value)
                })?;
                write_rows(&mut file, cache, tokens.as_ref(), rows, row_length, options.pad)?;
                file.finish()?;
                exported.activations += n as u64;
                exported.zeros += survey.zeros;
            }
            config(cache, rows, row_length, n_splits).write(&folder.join(name.as_str()))?;
        }
        Ok(())
    })?;
    Ok(exported)
}

/// Fills a hidden folder and renames it.
fn write_beside(dir: &Path, fill: impl FnOnce(&Path) -> Result<(), CacheError>) -> Result<(), CacheError> {
    check_free(dir)?;
    let temp = hidden_sibling(dir)?;
    fill(temp.path())?;
    std::fs::rename(temp.path(), dir).map_err(CacheError::io("move the finished cache to", dir))?;
    let _ = temp.keep();
    Ok(())
}

/// The latents of each file.
fn splits(hook: &HookCache<'_>, n_splits: Option<usize>) -> Result<Vec<std::ops::Range<usize>>, CacheError> {
    let of_cache = hook.cache().manifest().hooks[hook.hook()].splits.len();
    let n_splits = n_splits.unwrap_or(of_cache);
    if n_splits == 0 || n_splits > hook.width() {
        return Err(CacheError::Description {
            field: "n_splits".to_owned(),
            expected: format!("1 to the {} latents of {}", hook.width(), hook.hook()),
            got: n_splits.to_string(),
        });
    }
    Ok(boundaries(hook.width(), n_splits).windows(2).map(|pair| pair[0]..pair[1]).collect())
}

/// The file of `latents`, its folder made.
fn split_path(
    folder: &Path,
    hook: &HookPoint,
    latents: &std::ops::Range<usize>,
) -> Result<std::path::PathBuf, CacheError> {
    let own = folder.join(hook.as_str());
    std::fs::create_dir_all(&own).map_err(CacheError::io("create", &own))?;
    // As signed numbers, because torch names a split without latents after the one before its first.
    Ok(own.join(format!("{}_{}.safetensors", latents.start, latents.end as i64 - 1)))
}

fn write_value(file: &mut TensorFile, dtype: ActivationDtype, value: f32) -> Result<(), CacheError> {
    match dtype {
        ActivationDtype::F32 => file.write(1, &value.to_le_bytes()),
        ActivationDtype::F16 => file.write(1, &f16::from_f32(value).to_le_bytes()),
        ActivationDtype::Bf16 => file.write(1, &bf16::from_f32(value).to_le_bytes()),
    }
}

fn write_rows(
    file: &mut TensorFile,
    cache: &Cache,
    tokens: Option<&CachedTokens>,
    rows: usize,
    row_length: usize,
    pad: u32,
) -> Result<(), CacheError> {
    let mut ids: Vec<i64> = Vec::with_capacity(row_length);
    let mut samples = cache.samples().iter().enumerate().peekable();
    for row in 0..rows {
        ids.clear();
        if let Some((line, _)) = samples.next_if(|(_, sample)| sample.sample.index() == row)
            && let Some(tokens) = tokens
        {
            ids.extend(tokens.of_line(line).iter().map(|&id| i64::from(id)));
        }
        ids.resize(row_length, i64::from(pad));
        file.write(2, bytemuck::cast_slice(&ids))?;
    }
    Ok(())
}

fn config(cache: &Cache, rows: usize, row_length: usize, n_splits: usize) -> DelphiConfig {
    let manifest = cache.manifest();
    DelphiConfig {
        dataset_repo: manifest.dataset.name.clone(),
        dataset_split: manifest.dataset.split.clone().unwrap_or_default(),
        dataset_name: String::new(),
        dataset_column: "text".to_owned(),
        batch_size: 32,
        cache_ctx_len: row_length as u64,
        n_tokens: (rows * row_length) as u64,
        n_splits: n_splits as u64,
        model_name: manifest.model.clone(),
    }
}

/// Reads a cache by (sample, token, latent), which lies by (latent, sample, token).
struct Walk<'c> {
    cache: &'c Cache,
    dtype: ActivationDtype,
    first: u32,
    /// Entries that may be held.
    capacity: u64,
}

/// What one pass over the latents of a split found.
struct Survey {
    /// Activations to write, by line of samples.jsonl.
    by_line: Vec<u64>,
    zeros: u64,
    /// The largest of each number among these.
    largest: Entry,
}

impl Walk<'_> {
    fn survey(&self, hook: &HookCache<'_>, latents: std::ops::Range<usize>) -> Result<Survey, CacheError> {
        let lines = self.cache.samples();
        let largest = Entry { latent: 0, sample: 0, token: 0, value: 0.0 };
        let mut survey = Survey { by_line: vec![0; lines.len()], zeros: 0, largest };
        for latent in latents {
            let slice = hook.slice(FeatureId(latent as u32));
            for (sample, part) in slice.by_sample() {
                let misfit = |what: &str, expected: String, got: String| CacheError::Sample {
                    sample,
                    what: what.to_owned(),
                    expected,
                    got,
                };
                let line = line_of(self.cache, sample).ok_or_else(|| {
                    misfit("its record", "in samples.jsonl".to_owned(), "absent".to_owned())
                })?;
                for activation in part.iter() {
                    let position = activation.token.0;
                    if position < self.first || position >= lines[line].n_tokens {
                        let expected = format!("{} to {}", self.first, i64::from(lines[line].n_tokens) - 1);
                        return Err(misfit("a position", expected, position.to_string()));
                    }
                    let stored = self.dtype.round(activation.value);
                    if !stored.is_finite() {
                        return Err(CacheError::Overflow {
                            sample,
                            feature: FeatureId(latent as u32),
                            value: activation.value,
                            dtype: self.dtype,
                        });
                    }
                    if stored == 0.0 {
                        survey.zeros += 1;
                        continue;
                    }
                    survey.by_line[line] += 1;
                    let largest = &mut survey.largest;
                    largest.latent = largest.latent.max(latent as u32);
                    largest.sample = largest.sample.max(sample.0);
                    largest.token = largest.token.max(position);
                }
            }
        }
        Ok(survey)
    }

    /// All entries of some latents in order, tokens counted from `first`: groups of samples that fit the memory allowed, with a
    /// cursor per latent.
    fn entries(
        &self,
        hook: &HookCache<'_>,
        latents: std::ops::Range<usize>,
        survey: &Survey,
        mut write: impl FnMut(&Entry) -> Result<(), CacheError>,
    ) -> Result<(), CacheError> {
        let lines = self.cache.samples();
        let slices: Vec<FeatureSlice<'_>> =
            latents.clone().map(|latent| hook.slice(FeatureId(latent as u32))).collect();
        let mut cursors = vec![0; slices.len()];
        let mut entries: Vec<Entry> = Vec::new();
        for window in groups(&survey.by_line, self.capacity) {
            let n: u64 = survey.by_line[window.clone()].iter().sum();
            let end = lines.get(window.end).map_or(u32::MAX, |line| line.sample.0);
            entries.clear();
            if entries.capacity() < n as usize {
                // Given back before more is taken.
                entries = Vec::new();
                entries.reserve_exact(n as usize);
            }
            for ((slice, cursor), latent) in slices.iter().zip(&mut cursors).zip(latents.clone()) {
                while let Some(&sample) = slice.samples().get(*cursor).filter(|&&sample| sample < end) {
                    let (token, value) = (slice.token(*cursor).0 - self.first, slice.activation(*cursor));
                    *cursor += 1;
                    if self.dtype.round(value) != 0.0 {
                        entries.push(Entry { latent: latent as u32, sample, token, value });
                    }
                }
            }
            // Only a cache out of order has its entries elsewhere than where they were counted.
            if entries.len() as u64 != n {
                let feature = FeatureId(latents.start as u32);
                let problem = "the samples of a feature in this split do not ascend".to_owned();
                let path = hook.split_path(latents.start).to_owned();
                return Err(CacheError::Entry { path, feature, entry: 0, problem });
            }
            entries.sort_unstable_by_key(|entry| (entry.sample, entry.token, entry.latent));
            entries.iter().try_for_each(&mut write)?;
        }
        Ok(())
    }
}

/// The line of samples.jsonl, from 0, that records `sample`.
pub(super) fn line_of(cache: &Cache, sample: SampleId) -> Option<usize> {
    let lines = cache.samples();
    if lines.get(sample.index()).is_some_and(|line| line.sample == sample) {
        return Some(sample.index());
    }
    lines.binary_search_by_key(&sample, |line| line.sample).ok()
}
