//! [`merge`]: from the parts of a cache to the cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sae_types::{HookPoint, SampleId};
use serde_json::Value;

use crate::files::sync_folder;
use crate::hash::HashWriter;
use crate::ledger::{Checkpoint, LEDGER_FILE, Ledger, PartFile};
use crate::manifest::{SAMPLES_FILE, split_file};
use crate::part::{LOCK_FILE, lock, shards};
use crate::split::{SplitFile, TokenDtype};
use crate::split_writer::SplitWriter;
use crate::tokens::{TOKENS_FILE, TokensWriter};
use crate::{
    ActivationDtype, CacheError, CacheJob, Counts, HookDescription, HookManifest, Manifest, SampleRecord,
    Shard, SplitManifest, TokensManifest, mmap,
};

/// Runs of a hook point that are mapped at once. Systems allow a process some 65,000 mappings.
const MOST_MAPPED: usize = if cfg!(test) { 3 } else { 4096 };

/// While one lives, no other process merges the same parts.
#[derive(Debug)]
#[must_use = "the lock ends when it is dropped"]
pub struct MergeLock(#[expect(dead_code, reason = "held, not read")] File);

/// A complete part.
struct Part {
    folder: PathBuf,
    ledger: Ledger,
}

/// The parts of `parts` that are missing or not complete; none when [`merge`] can run.
///
/// # Errors
/// When the folder or a ledger in it cannot be read, or parts of different divisions lie in it.
pub fn missing_parts(parts: &Path) -> Result<Vec<Shard>, CacheError> {
    Ok(read_parts(parts)?.1)
}

/// The lock under which one process merges; `None` if another has it.
///
/// # Errors
/// When the lock file cannot be made, as when the parts are gone because they were merged.
pub fn lock_for_merge(parts: &Path) -> Result<Option<MergeLock>, CacheError> {
    Ok(lock(&parts.join(LOCK_FILE))?.map(MergeLock))
}

/// The notes of all complete parts in `parts`, in order.
///
/// # Errors
/// When the folder or a ledger in it cannot be read, or parts of different divisions lie in it.
pub fn part_notes(parts: &Path) -> Result<Vec<Value>, CacheError> {
    let (found, _) = read_parts(parts)?;
    Ok(checkpoints(&found).map(|(_, checkpoint)| checkpoint.note.clone()).collect())
}

/// Joins the parts to a cache in the folder `dir`, which exists and holds none.
///
/// The bytes do not depend on how many parts there were, nor on where their checkpoints lay. Every file is compared with
/// its hash first. Memory: some MiB per thread; the parts are memory-mapped.
///
/// # Errors
/// When a part is missing, not complete, damaged or of another job, or files cannot be written.
pub fn merge(parts: &Path, dir: &Path) -> Result<Manifest, CacheError> {
    let job = CacheJob::read(parts)?;
    let (found, missing) = read_parts(parts)?;
    if !missing.is_empty() || found.is_empty() {
        return Err(CacheError::Incomplete { path: parts.to_owned(), missing });
    }
    for part in &found {
        let (expected, got) = (job.sha256(), &part.ledger.opening.job);
        if *got != expected {
            let (path, field) = (part.folder.join(LEDGER_FILE), "job".to_owned());
            return Err(CacheError::Field { path, field, expected, got: got.clone() });
        }
        part.ledger.verify(&part.folder)?;
    }
    let (mut counts, samples_sha256) = join_samples(&found, dir)?;
    let tokens = job.keep_tokens.then(|| join_tokens(&found, dir, counts)).transpose()?;
    let mut hooks = BTreeMap::new();
    for (hook, about) in &job.description.hooks {
        let entry = join_hook(&found, dir, &job, hook, about)?;
        counts.activations += entry.splits.iter().map(|split| split.n).sum::<u64>();
        hooks.insert(hook.clone(), entry);
    }
    let manifest = Manifest::new(job.description, job.dtype, counts, samples_sha256, tokens, hooks);
    manifest.write(dir)?;
    Ok(manifest)
}

/// The complete parts in order, and those that are not.
fn read_parts(parts: &Path) -> Result<(Vec<Part>, Vec<Shard>), CacheError> {
    let there = shards(parts)?;
    let Some(count) = there.first().map(|shard| shard.count) else { return Ok((Vec::new(), Vec::new())) };
    if let Some(other) = there.iter().find(|shard| shard.count != count) {
        let (path, begun, asked) = (parts.to_owned(), count, other.count);
        return Err(CacheError::Division { path, begun, asked });
    }
    let (mut complete, mut missing) = (Vec::new(), Vec::new());
    for index in 0..count {
        let shard = Shard { index, count };
        let folder = shard.folder(parts);
        match Ledger::read(&folder)?.filter(Ledger::is_complete) {
            Some(ledger) => complete.push(Part { folder, ledger }),
            None => missing.push(shard),
        }
    }
    Ok((complete, missing))
}

fn checkpoints(parts: &[Part]) -> impl Iterator<Item = (&Path, &Checkpoint)> {
    parts.iter().flat_map(|part| {
        part.ledger.checkpoints.iter().map(move |checkpoint| (part.folder.as_path(), checkpoint))
    })
}

/// Every line of samples, in order, with the file it is from.
fn each_sample(
    parts: &[Part],
    mut visit: impl FnMut(&[u8], &SampleRecord) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let mut line = Vec::new();
    for (folder, entry) in
        checkpoints(parts).filter_map(|(folder, checkpoint)| Some((folder, checkpoint.samples.as_ref()?)))
    {
        let path = folder.join(&entry.file);
        let read = |source| CacheError::Io { action: "read", path: path.clone(), source };
        let mut file = BufReader::new(File::open(&path).map_err(read)?);
        let mut number = 0;
        loop {
            line.clear();
            if file.read_until(b'\n', &mut line).map_err(read)? == 0 {
                break;
            }
            number += 1;
            let json = |source| CacheError::Json { path: path.clone(), line: Some(number), source };
            visit(&line, &serde_json::from_slice(&line).map_err(json)?)?;
        }
    }
    Ok(())
}

/// The numbers of samples and of tokens, and the hash of samples.jsonl.
fn join_samples(parts: &[Part], dir: &Path) -> Result<(Counts, String), CacheError> {
    let path = dir.join(SAMPLES_FILE);
    let write = |source| CacheError::Io { action: "write", path: path.clone(), source };
    let file = File::create(&path).map_err(CacheError::io("create", &path))?;
    let mut joined = HashWriter::new(BufWriter::new(file));
    let (mut counts, mut last) = (Counts::default(), None::<SampleId>);
    each_sample(parts, |line, record| {
        if let Some(before) = last.filter(|&before| before >= record.sample) {
            return Err(CacheError::SampleOrder { sample: record.sample, before });
        }
        last = Some(record.sample);
        counts.samples += 1;
        counts.tokens += u64::from(record.n_tokens);
        joined.write_all(line).map_err(write)
    })?;
    let (mut joined, sha256) = joined.finish();
    joined.flush().and_then(|()| joined.get_ref().sync_all()).map_err(write)?;
    Ok((counts, sha256))
}

fn join_tokens(parts: &[Part], dir: &Path, counts: Counts) -> Result<TokensManifest, CacheError> {
    let mut joined = TokensWriter::create(&dir.join(TOKENS_FILE), counts.samples, counts.tokens)?;
    let files = checkpoints(parts)
        .filter_map(|(folder, checkpoint)| Some(folder.join(&checkpoint.tokens.as_ref()?.file)));
    let mut ids = TokenStream { files: files.collect::<Vec<_>>().into_iter(), open: None };
    let mut sample = Vec::new();
    each_sample(parts, |_, record| {
        ids.read(record.n_tokens as usize, &mut sample)?;
        joined.push(&sample)
    })?;
    Ok(TokensManifest { file: TOKENS_FILE.to_owned(), sha256: joined.finish()? })
}

/// The token ids of several files as one.
struct TokenStream {
    files: std::vec::IntoIter<PathBuf>,
    open: Option<(PathBuf, BufReader<File>)>,
}

impl TokenStream {
    /// Reads the next `n` ids; a sample's lie in one file.
    fn read(&mut self, n: usize, ids: &mut Vec<u32>) -> Result<(), CacheError> {
        ids.resize(n, 0);
        if n == 0 {
            return Ok(());
        }
        loop {
            if let Some((path, file)) = &mut self.open {
                let io = |source| CacheError::Io { action: "read", path: path.clone(), source };
                if !file.fill_buf().map_err(io)?.is_empty() {
                    return file.read_exact(bytemuck::cast_slice_mut(ids.as_mut_slice())).map_err(io);
                }
            }
            let Some(next) = self.files.next() else {
                let path = self.open.take().map_or_else(PathBuf::new, |(path, _)| path);
                return Err(CacheError::io("read", path)(std::io::ErrorKind::UnexpectedEof.into()));
            };
            let file = File::open(&next).map_err(CacheError::io("open", &next))?;
            self.open = Some((next, BufReader::new(file)));
        }
    }
}

fn join_hook(
    parts: &[Part],
    dir: &Path,
    job: &CacheJob,
    hook: &HookPoint,
    about: &HookDescription,
) -> Result<HookManifest, CacheError> {
    let HookDescription { sae, width, k, reads } = about.clone();
    let runs: Vec<(&Path, &PartFile)> = checkpoints(parts)
        .flat_map(|(folder, checkpoint)| {
            checkpoint.runs.get(hook).into_iter().flatten().map(move |run| (folder, run))
        })
        .collect();
    let mut runs: Vec<(PathBuf, u64)> =
        runs.into_iter().map(|(folder, run)| (folder.join(&run.file), run.n)).collect();
    let largest_token = checkpoints(parts).map(|(_, checkpoint)| checkpoint.largest_token).max();
    let token_dtype = TokenDtype::for_largest(largest_token.unwrap_or(0));
    let folder = dir.join(hook.as_str());
    std::fs::create_dir(&folder).map_err(CacheError::io("create", &folder))?;
    let joined = condense(&mut runs, &folder, width, token_dtype, job.dtype)?;
    let runs = open_runs(&runs, width, job.dtype)?;
    let boundary = |i: usize| (i as u128 * width as u128 / job.n_splits as u128) as usize;
    let splits = (0..job.n_splits).into_par_iter().map(|i| {
        let (start, end) = (boundary(i), boundary(i + 1));
        let file = split_file(hook, start, end);
        let path = dir.join(&file);
        let (n, sha256) = join_runs(&runs, &path, start..end, token_dtype, job.dtype)?;
        Ok(SplitManifest { file, start, end, n, sha256 })
    });
    let splits = splits.collect::<Result<_, _>>()?;
    drop(runs);
    for path in joined {
        std::fs::remove_file(&path).map_err(CacheError::io("remove", path))?;
    }
    sync_folder(&folder)?;
    let encoded = checkpoints(parts).filter_map(|(_, checkpoint)| checkpoint.encoded.get(hook));
    let (tokens, image_tokens) = encoded.fold((0, 0), |(all, image), more| (all + more[0], image + more[1]));
    Ok(HookManifest { sae, width, k, reads, tokens, image_tokens, lost: Vec::new(), splits })
}

fn open_runs(
    runs: &[(PathBuf, u64)],
    width: usize,
    dtype: ActivationDtype,
) -> Result<Vec<SplitFile>, CacheError> {
    runs.into_par_iter().map(|(path, n)| SplitFile::open(path, 0..width, *n, dtype)).collect()
}

/// Joins runs to fewer until they can all be mapped at once, and gives the files this took in `folder`.
fn condense(
    runs: &mut Vec<(PathBuf, u64)>,
    folder: &Path,
    width: usize,
    token_dtype: TokenDtype,
    activation_dtype: ActivationDtype,
) -> Result<Vec<PathBuf>, CacheError> {
    let mut made: Vec<PathBuf> = Vec::new();
    while runs.len() > MOST_MAPPED {
        let mut fewer = Vec::with_capacity(runs.len().div_ceil(MOST_MAPPED));
        for group in runs.chunks(MOST_MAPPED) {
            let path = folder.join(format!(".joined-{}", made.len()));
            let mapped = open_runs(group, width, activation_dtype)?;
            let (n, _) = join_runs(&mapped, &path, 0..width, token_dtype, activation_dtype)?;
            made.push(path.clone());
            fewer.push((path, n));
        }
        *runs = fewer;
    }
    Ok(made)
}

/// Writes the split of `latents`: of every latent the entries of the first run, then those of the next.
fn join_runs(
    runs: &[SplitFile],
    path: &Path,
    latents: std::ops::Range<usize>,
    token_dtype: TokenDtype,
    activation_dtype: ActivationDtype,
) -> Result<(u64, String), CacheError> {
    let held = |run: &&SplitFile| !run.entries_of(latents.clone()).is_empty();
    let runs: Vec<&SplitFile> = runs.iter().filter(held).collect();
    let n = runs.iter().map(|run| run.entries_of(latents.clone()).len() as u64).sum();
    let mut split = SplitWriter::create(path, latents.clone(), n, token_dtype, activation_dtype)?;
    for latent in latents {
        for run in &runs {
            split.append(latent, run)?;
        }
    }
    let sha256 = split.finish()?;
    // The run's pages are read once; the system may have them back.
    for run in runs {
        mmap::release(run.map());
    }
    Ok((n, sha256))
}

#[cfg(test)]
mod tests {
    use sae_types::{FeatureId, SparseCodes};

    use super::*;
    use crate::{CacheDescription, PartWriter, SampleCodes};

    /// The bytes of the only split of a cache whose samples were written in so many runs.
    fn split_of(n_samples: u32, every: u32) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let hook = HookPoint::layer(0);
        let mut description = CacheDescription::default();
        description.hooks.insert(hook.clone(), HookDescription { width: 5, k: 2, ..Default::default() });
        let job = CacheJob { n_splits: 1, ..CacheJob::new(description) };
        let parts = folder.path().join("parts");
        let mut part = PartWriter::open(&parts, &job, Shard::WHOLE, 1 << 20).unwrap();
        for sample in 0..n_samples {
            let mut codes = SparseCodes::new(5);
            codes.push_row([(FeatureId(sample % 4), 0.5), (FeatureId(4), sample as f32 + 1.0)]).unwrap();
            let record = SampleRecord { sample: SampleId(sample), n_tokens: 1, ..SampleRecord::default() };
            part.push(&record, None, &[SampleCodes { hook: &hook, tokens: &[0], codes: &codes }]).unwrap();
            if sample % every == every - 1 {
                part.checkpoint(SampleId(sample + 1), &Value::Null).unwrap();
            }
        }
        part.finish(SampleId(n_samples), &Value::Null).unwrap();
        let dir = folder.path().join("cache");
        std::fs::create_dir(&dir).unwrap();
        merge(&parts, &dir).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.join(hook.as_str())).unwrap().count(),
            1,
            "nothing beside the split"
        );
        std::fs::read(dir.join("model.layers.0/0_4.safetensors")).unwrap()
    }

    #[test]
    fn more_runs_than_can_be_mapped_are_joined_in_steps() {
        let want = split_of(40, 40);
        for every in [1, 2, 7] {
            assert_eq!(split_of(40, every), want, "a run of every {every} samples, {MOST_MAPPED} at once");
        }
    }
}
