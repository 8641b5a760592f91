//! [`CacheWriter`]: codes in, sample after sample; a complete cache out, or nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
use tempfile::TempDir;

use crate::hash::HashWriter;
use crate::manifest::{MANIFEST_FILE, SAMPLES_FILE, split_file};
use crate::runs::{Entry, Runs, SortedRuns};
use crate::split::{self, TokenDtype};
use crate::{
    ActivationDtype, CacheDescription, CacheError, Counts, HookManifest, Manifest, SampleRecord,
    SplitManifest,
};

/// Where runs are spilled, within the hidden folder.
const SPILL_FOLDER: &str = ".runs";
/// Bytes of budget per buffered entry: 16 for the entry, a quarter more for room to grow, and both the old
/// and the new block while it grows.
const BUDGET_PER_ENTRY: usize = 36;

/// How a cache is written. None of it but `dtype` and `n_splits` shows in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// Into how many files each hook point's latents are split.
    pub n_splits: usize,
    /// How activations are stored. Those that round to zero in 16 bits are left out.
    pub dtype: ActivationDtype,
    /// Bytes the buffered codes may take; more are sorted and spilled to disk. One sample's codes are always held.
    pub memory_budget: usize,
}

impl Default for WriterOptions {
    /// 5 splits, f32, 1 GiB.
    fn default() -> Self {
        Self { n_splits: 5, dtype: ActivationDtype::F32, memory_budget: 1 << 30 }
    }
}

/// One sample's codes at one hook point.
#[derive(Clone, Copy, Debug)]
pub struct SampleCodes<'a> {
    /// The hook point.
    pub hook: &'a HookPoint,
    /// The position of each row of `codes`, strictly ascending.
    pub tokens: &'a [u32],
    /// The codes, one row per position.
    pub codes: &'a SparseCodes,
}

/// Writes a cache. See the [crate documentation](crate) for the format.
pub struct CacheWriter {
    dir: PathBuf,
    temp: TempDir,
    description: CacheDescription,
    options: WriterOptions,
    samples: HashWriter<BufWriter<File>>,
    last_sample: Option<SampleId>,
    largest_token: u32,
    counts: Counts,
    hooks: BTreeMap<HookPoint, Hook>,
}

struct Hook {
    runs: Runs,
    tokens: u64,
}

impl CacheWriter {
    /// Starts a cache that will stand at `dir`, which must not exist or be empty.
    ///
    /// # Errors
    /// When `dir` holds something, the description or the options make no cache, or files cannot be made.
    pub fn create(
        dir: &Path,
        description: CacheDescription,
        options: WriterOptions,
    ) -> Result<Self, CacheError> {
        check(&description, &options)?;
        let taken = match std::fs::read_dir(dir) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => dir.exists(),
        };
        if taken {
            return Err(CacheError::Exists { path: dir.to_owned() });
        }
        let temp = hidden_sibling(dir)?;
        let spill = temp.path().join(SPILL_FOLDER);
        std::fs::create_dir(&spill).map_err(CacheError::io("create", &spill))?;
        let samples = temp.path().join(SAMPLES_FILE);
        let samples = File::create(&samples).map_err(CacheError::io("create", &samples))?;
        let hook = |name: &HookPoint| Hook { runs: Runs::new(spill.join(name.as_str())), tokens: 0 };
        let hooks = description.hooks.keys().map(|name| (name.clone(), hook(name))).collect();
        Ok(Self {
            dir: dir.to_owned(),
            temp,
            description,
            options,
            samples: HashWriter::new(BufWriter::new(samples)),
            last_sample: None,
            largest_token: 0,
            counts: Counts::default(),
            hooks,
        })
    }

    /// Adds a sample: `codes` has each of the description's hook points once. Features that the filters leave
    /// out are dropped. A sample that is refused for its content leaves the writer as it was.
    ///
    /// # Errors
    /// When the sample does not come after the one before it, its content does not fit the description, an
    /// activation does not fit the dtype, or files cannot be written.
    pub fn push(&mut self, record: &SampleRecord, codes: &[SampleCodes<'_>]) -> Result<(), CacheError> {
        self.check_record(record)?;
        self.check_codes(record, codes)?;
        let path = self.temp.path().join(SAMPLES_FILE);
        let mut line = serde_json::to_vec(record).map_err(|source| CacheError::Json {
            path: path.clone(),
            line: None,
            source,
        })?;
        line.push(b'\n');
        self.samples.write_all(&line).map_err(CacheError::io("write", path))?;
        let incoming: usize = codes.iter().map(|codes| codes.codes.n_codes()).sum();
        let buffered: usize = self.hooks.values().map(|hook| hook.runs.buffered()).sum();
        if (buffered + incoming) > self.options.memory_budget / BUDGET_PER_ENTRY && buffered > 0 {
            tracing::debug!(entries = buffered, "spilling a run");
            self.hooks.values_mut().try_for_each(|hook| hook.runs.spill())?;
        }
        for codes in codes {
            self.append(record.sample, codes);
        }
        self.last_sample = Some(record.sample);
        self.counts.samples += 1;
        self.counts.tokens += u64::from(record.n_tokens);
        Ok(())
    }

    /// Joins the runs to splits, writes the manifest and moves the cache to its place.
    ///
    /// # Errors
    /// When files cannot be written, or something appeared at the cache's place; nothing is left behind then.
    pub fn finish(self) -> Result<Manifest, CacheError> {
        let Self { dir, temp, description, options, samples, largest_token, mut counts, hooks, .. } = self;
        let samples_path = temp.path().join(SAMPLES_FILE);
        let (mut samples, samples_sha256) = samples.finish();
        samples.flush().map_err(CacheError::io("write", &samples_path))?;
        samples.get_ref().sync_all().map_err(CacheError::io("write", &samples_path))?;

        let token_dtype = TokenDtype::for_largest(largest_token);
        let mut entries = BTreeMap::new();
        for (name, hook) in hooks {
            let Some(about) = description.hooks.get(&name) else { continue };
            let splits =
                write_splits(temp.path(), &name, about.width, &hook.runs.finish()?, token_dtype, &options)?;
            counts.activations += splits.iter().map(|split| split.n).sum::<u64>();
            let (sae, width, k) = (about.sae.clone(), about.width, about.k);
            entries.insert(name, HookManifest { sae, width, k, tokens: hook.tokens, splits });
        }
        let manifest = Manifest::new(description, options.dtype, counts, samples_sha256, entries);
        let path = temp.path().join(MANIFEST_FILE);
        let mut text = serde_json::to_vec_pretty(&manifest).map_err(|source| CacheError::Json {
            path: path.clone(),
            line: None,
            source,
        })?;
        text.push(b'\n');
        let mut file = File::create(&path).map_err(CacheError::io("create", &path))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(CacheError::io("write", &path))?;
        let spill = temp.path().join(SPILL_FOLDER);
        std::fs::remove_dir_all(&spill).map_err(CacheError::io("remove", spill))?;
        // Renaming replaces an empty folder and fails on any other.
        std::fs::rename(temp.path(), &dir).map_err(CacheError::io("move the finished cache to", &dir))?;
        let _ = temp.keep();
        Ok(manifest)
    }

    fn check_record(&self, record: &SampleRecord) -> Result<(), CacheError> {
        let sample = record.sample;
        match self.last_sample {
            Some(before) if before >= sample => return Err(CacheError::SampleOrder { sample, before }),
            _ => {}
        }
        let misfit = |what: &str, expected: String, got: String| {
            Err(CacheError::Sample { sample, what: what.to_owned(), expected, got })
        };
        let n_samples = self.description.dataset.n_samples;
        if n_samples > 0 && u64::from(sample.0) >= n_samples {
            return misfit("its number", format!("one of the data set's {n_samples}"), sample.to_string());
        }
        if let Some(base) = self.description.token_layout.base
            && record.has_image()
            && record.base_tokens(&self.description.token_layout).is_none()
        {
            let start = record.base_start.unwrap_or(base.start);
            let expected = format!("at least {start} + {} x {} of the base tile", base.rows, base.cols);
            return misfit("its number of tokens", expected, record.n_tokens.to_string());
        }
        Ok(())
    }

    fn check_codes(&self, record: &SampleRecord, codes: &[SampleCodes<'_>]) -> Result<(), CacheError> {
        let sample = record.sample;
        let misfit = |what: String, expected: String, got: String| {
            Err(CacheError::Sample { sample, what, expected, got })
        };
        let listed =
            |hooks: Vec<&HookPoint>| format!("{:?}", hooks.iter().map(|h| h.as_str()).collect::<Vec<_>>());
        let mut given: Vec<&HookPoint> = codes.iter().map(|codes| codes.hook).collect();
        given.sort_unstable();
        if !given.iter().copied().eq(self.description.hooks.keys()) {
            let expected = listed(self.description.hooks.keys().collect());
            return misfit("its list of hook points".to_owned(), expected, listed(given));
        }
        for SampleCodes { hook, tokens, codes } in codes {
            let width = self.description.hooks[*hook].width;
            if codes.num_latents() != width {
                let got = codes.num_latents().to_string();
                return misfit(format!("the width of its codes of {hook}"), width.to_string(), got);
            }
            if tokens.len() != codes.n_rows() {
                let got = codes.n_rows().to_string();
                return misfit(format!("the number of code rows of {hook}"), tokens.len().to_string(), got);
            }
            let ascending = tokens.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || tokens.last().is_some_and(|&last| last >= record.n_tokens) {
                let expected = format!("strictly ascending below {}", record.n_tokens);
                return misfit(format!("the list of positions of {hook}"), expected, format!("{tokens:?}"));
            }
            let dtype = self.options.dtype;
            for (&latent, &value) in codes.latents().iter().zip(codes.values()) {
                if !dtype.round(value).is_finite() {
                    return Err(CacheError::Overflow { sample, feature: FeatureId(latent), value, dtype });
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, sample: SampleId, codes: &SampleCodes<'_>) {
        let filter = self.description.filters.as_ref().and_then(|filters| filters.features(codes.hook));
        let Some(hook) = self.hooks.get_mut(codes.hook) else { return };
        hook.tokens += codes.tokens.len() as u64;
        hook.runs.reserve(codes.codes.n_codes());
        for (&token, row) in codes.tokens.iter().zip(codes.codes.rows()) {
            for (feature, value) in row.iter() {
                let wanted = filter.is_none_or(|wanted| wanted.binary_search(&feature).is_ok());
                if wanted && self.options.dtype.round(value) != 0.0 {
                    self.largest_token = self.largest_token.max(token);
                    hook.runs.push(Entry { latent: feature.0, sample: sample.0, token, value });
                }
            }
        }
    }
}

fn write_splits(
    folder: &Path,
    hook: &HookPoint,
    width: usize,
    runs: &SortedRuns,
    token_dtype: TokenDtype,
    options: &WriterOptions,
) -> Result<Vec<SplitManifest>, CacheError> {
    let own = folder.join(hook.as_str());
    std::fs::create_dir(&own).map_err(CacheError::io("create", own))?;
    let boundary = |i: usize| (i as u128 * width as u128 / options.n_splits as u128) as usize;
    let write = |i: usize| {
        let (start, end) = (boundary(i), boundary(i + 1));
        let file = split_file(hook, start, end);
        let (n, sha256) = split::write(
            &folder.join(&file),
            start..end,
            runs.latents(start, end),
            token_dtype,
            options.dtype,
        )?;
        Ok(SplitManifest { file, start, end, n, sha256 })
    };
    (0..options.n_splits).into_par_iter().map(write).collect()
}

fn check(description: &CacheDescription, options: &WriterOptions) -> Result<(), CacheError> {
    let wrong =
        |field: String, expected: String, got: String| Err(CacheError::Description { field, expected, got });
    if description.hooks.is_empty() {
        return wrong("the list of hook points".to_owned(), "at least one".to_owned(), "empty".to_owned());
    }
    for (hook, about) in &description.hooks {
        if about.width == 0 || about.width > u32::MAX as usize {
            return wrong(
                format!("the width of {hook}"),
                "1 to 4294967295".to_owned(),
                about.width.to_string(),
            );
        }
        if options.n_splits == 0 || options.n_splits > about.width {
            let expected = format!("1 to the {} latents of {hook}", about.width);
            return wrong("n_splits".to_owned(), expected, options.n_splits.to_string());
        }
    }
    if let Some(base) = description.token_layout.base
        && base.n_tokens().is_none_or(|n| n == 0 || base.start.checked_add(n).is_none())
    {
        return wrong(
            "the base tile".to_owned(),
            "a grid of at least one patch".to_owned(),
            format!("{base:?}"),
        );
    }
    if let Some(filters) = &description.filters {
        for hook in filters.hooks() {
            if !description.hooks.contains_key(hook) {
                let known = description.hooks.keys().cloned().collect();
                return Err(CacheError::UnknownHook { hook: hook.clone(), known });
            }
        }
        for (hook, about) in &description.hooks {
            if filters.features(hook).is_none() {
                let expected = format!("features of {hook}, or no such hook point in the description");
                return wrong("the filters' list".to_owned(), expected, "absent".to_owned());
            }
            filters.check_width(hook, about.width).map_err(|source| CacheError::Filters { source })?;
        }
    }
    Ok(())
}

/// A fresh folder on the same file system as `dir`, readable as any other folder.
fn hidden_sibling(dir: &Path) -> Result<TempDir, CacheError> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(CacheError::io("create", parent))?;
    let name = dir.file_name().map_or_else(|| "cache".to_owned(), |name| name.to_string_lossy().into_owned());
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    {
        // tempfile's own choice is 0700; the umask decides as for any folder.
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(std::fs::Permissions::from_mode(0o777));
    }
    builder.tempdir_in(parent).map_err(CacheError::io("create a folder in", parent))
}
