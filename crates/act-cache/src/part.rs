//! [`PartWriter`]: one worker's part of a cache, which survives a kill at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use sae_types::{HookPoint, SampleId, SparseCodes};
use serde_json::Value;

use crate::check;
use crate::files::{all_below, sync_folder, write_durably};
use crate::ledger::{Checkpoint, LEDGER_FILE, Ledger, LedgerWriter, Opening, PartFile};
use crate::runs::{Buffer, Entry};
use crate::{CacheError, CacheJob, SampleRecord, hash};

pub(crate) const LOCK_FILE: &str = "lock";
/// Bytes of sample records and token ids that are held whatever the memory budget.
const SMALLEST_SIDE_BUFFER: usize = 64 << 10;

/// Which part of how many: the samples of worker `index`, all before those of worker `index + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its number, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
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

/// Writes one part of a cache, below `<parts>/<index>-of-<count>`.
///
/// Codes collect in buffers of a fixed size; full ones are sorted and written as runs. A checkpoint puts all that was
/// pushed on disk and adds a line to the part's ledger; what came after the last one is pushed again after a kill.
/// Samples come in ascending order, in all parts together.
#[derive(Debug)]
pub struct PartWriter {
    folder: PathBuf,
    job: CacheJob,
    ledger: LedgerWriter,
    /// Held until the writer is dropped.
    _lock: File,
    hooks: BTreeMap<HookPoint, Hook>,
    side_budget: usize,
    records: Vec<u8>,
    token_ids: Vec<u32>,
    last_sample: Option<SampleId>,
    n_runs: usize,
    n_checkpoints: usize,
    /// The checkpoint in the making.
    pending: Checkpoint,
    next: Option<SampleId>,
    notes: Vec<Value>,
    complete: bool,
}

/// What a hook point's codes collect in.
#[derive(Debug)]
struct Hook {
    buffer: Buffer,
    /// Entries since the last call of [`PartWriter::advance`].
    step: usize,
    /// The most there were between two calls.
    largest_step: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    pub(crate) fn folder(self, parts: &Path) -> PathBuf {
        parts.join(self.to_string())
    }

    /// The shard whose folder is called `name`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (index, count) = name.split_once("-of-")?;
        let shard = Self { index: index.parse().ok()?, count: count.parse().ok()? };
        (shard.index < shard.count && shard.to_string() == name).then_some(shard)
    }
}

impl std::fmt::Display for Shard {
    /// `0-of-3`, as its folder is called.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-of-{}", self.index, self.count)
    }
}

impl PartWriter {
    /// Whether `shard` was begun in `parts`, by this program or one that was killed.
    ///
    /// # Errors
    /// When its ledger cannot be read.
    pub fn is_begun(parts: &Path, shard: Shard) -> Result<bool, CacheError> {
        Ok(Ledger::read(&shard.folder(parts))?.is_some())
    }

    /// Starts a part, or goes on with one that was begun. `memory_budget` bounds the bytes of buffered codes, sample records
    /// and token ids; it does not show in the files.
    ///
    /// # Errors
    /// When the job makes no cache or differs from the one in `parts`, another process writes this part, `parts` is divided
    /// otherwise, or what is there is damaged or foreign.
    pub fn open(
        parts: &Path,
        job: &CacheJob,
        shard: Shard,
        memory_budget: usize,
    ) -> Result<Self, CacheError> {
        check::job(job)?;
        // An eighth of the budget is for sample records and token ids.
        let side_budget = (memory_budget / 8).max(SMALLEST_SIDE_BUFFER);
        let hooks = hooks(job, memory_budget.saturating_sub(side_budget))?;
        let folder = shard.folder(parts);
        std::fs::create_dir_all(parts).map_err(CacheError::io("create", parts))?;
        refuse_other_division(parts, shard)?;
        std::fs::create_dir_all(&folder).map_err(CacheError::io("create", &folder))?;
        job.agree(parts)?;
        let lock =
            lock(&folder.join(LOCK_FILE))?.ok_or_else(|| CacheError::Locked { path: folder.clone() })?;
        let opening = Opening::new(job.sha256(), shard.index, shard.count);
        let begun = Ledger::read(&folder)?;
        if let Some(begun) = &begun
            && begun.opening != opening
        {
            let (path, field) = (folder.join(LEDGER_FILE), "job".to_owned());
            let (expected, got) = (opening.job, begun.opening.job.clone());
            return Err(CacheError::Field { path, field, expected, got });
        }
        let resumed = begun.is_some();
        let begun = begun.unwrap_or_else(|| Ledger::empty(opening));
        clear_unfinished(&folder, &begun)?;
        if resumed {
            tracing::info!(files = begun.files().count(), "comparing what is there with its hashes");
        }
        begun.verify(&folder)?;
        let ledger = if resumed {
            LedgerWriter::resume(&folder, &begun)?
        } else {
            LedgerWriter::create(&folder, &begun.opening)?
        };
        for hook in job.description.hooks.keys() {
            let own = folder.join(hook.as_str());
            std::fs::create_dir_all(&own).map_err(CacheError::io("create", own))?;
        }
        sync_folder(&folder)?;

        let last = begun.checkpoints.last();
        Ok(Self {
            hooks,
            side_budget,
            records: Vec::new(),
            token_ids: Vec::new(),
            last_sample: None,
            n_runs: begun.n_runs(),
            n_checkpoints: begun.checkpoints.len(),
            pending: Checkpoint::default(),
            next: last.map(|last| last.next),
            complete: last.is_some_and(|last| last.complete),
            notes: begun.checkpoints.into_iter().map(|checkpoint| checkpoint.note).collect(),
            folder,
            job: job.clone(),
            ledger,
            _lock: lock,
        })
    }

    /// All samples below this one are done and on disk; `None` before the first checkpoint.
    pub fn next(&self) -> Option<SampleId> {
        self.next
    }

    /// Whether the part was finished.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The notes of all checkpoints so far, in order.
    pub fn notes(&self) -> &[Value] {
        &self.notes
    }

    /// Adds a sample: `codes` has each of the description's hook points once, `token_ids` is there if the job keeps them.
    /// Features that the filters leave out are dropped. A sample that is refused for its content leaves the writer as it was.
    ///
    /// # Errors
    /// When the sample does not come after the one before it, its content does not fit the job, an activation does not fit
    /// the dtype, or files cannot be written.
    ///
    /// # Panics
    /// When the part is complete.
    pub fn push(
        &mut self,
        record: &SampleRecord,
        token_ids: Option<&[u32]>,
        codes: &[SampleCodes<'_>],
    ) -> Result<(), CacheError> {
        assert!(!self.complete, "{} is complete", self.folder.display());
        let done = self.next.filter(|&next| next > record.sample);
        let before = done.map(|next| SampleId(next.0 - 1)).or(self.last_sample);
        if let Some(before) = before.filter(|&before| before >= record.sample) {
            return Err(CacheError::SampleOrder { sample: record.sample, before });
        }
        check::sample(&self.job, record, token_ids, codes)?;
        let line = serde_json::to_vec(record).map_err(|source| CacheError::Json {
            path: self.folder.clone(),
            line: None,
            source,
        })?;
        self.records.extend(line);
        self.records.push(b'\n');
        self.token_ids.extend(token_ids.unwrap_or_default());
        let samples = self.pending.samples.get_or_insert_default();
        samples.n += 1;
        for codes in codes {
            self.append(record, codes)?;
        }
        self.last_sample = Some(record.sample);
        Ok(())
    }

    /// Tells that all samples below `next` were pushed or left out, which is where a resumed run goes on, and makes a
    /// checkpoint if as much again may not fit into the buffers. Gives whether it did; only then was `note` kept.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn advance(&mut self, next: SampleId, note: &Value) -> Result<bool, CacheError> {
        let mut due = !self.pending.runs.is_empty() || self.side_bytes() >= self.side_budget;
        for hook in self.hooks.values_mut() {
            hook.largest_step = hook.largest_step.max(std::mem::take(&mut hook.step));
            due |= !hook.buffer.has_room_for(hook.largest_step);
        }
        if due {
            self.checkpoint(next, note)?;
        }
        Ok(due)
    }

    /// Puts all that was pushed on disk. All samples below `next` were pushed or left out.
    ///
    /// # Errors
    /// When files cannot be written. The part is as it was at the checkpoint before then.
    pub fn checkpoint(&mut self, next: SampleId, note: &Value) -> Result<(), CacheError> {
        for (name, hook) in self.hooks.iter_mut().filter(|(_, hook)| !hook.buffer.is_empty()) {
            let run = spill(&self.job, &self.folder, name, &mut hook.buffer, &mut self.n_runs)?;
            self.pending.runs.entry(name.clone()).or_default().push(run);
        }
        let number = self.n_checkpoints;
        if let Some(samples) = &mut self.pending.samples {
            samples.file = samples_file(number);
            samples.sha256 = hash::sha256(&self.records);
            write_durably(&self.folder.join(&samples.file), &self.records)?;
            if self.job.keep_tokens {
                let bytes = bytemuck::cast_slice(&self.token_ids);
                let file = tokens_file(number);
                write_durably(&self.folder.join(&file), bytes)?;
                let (n, sha256) = (self.token_ids.len() as u64, hash::sha256(bytes));
                self.pending.tokens = Some(PartFile { file, n, sha256 });
            }
        }
        for hook in self.pending.runs.keys() {
            sync_folder(&self.folder.join(hook.as_str()))?;
        }
        self.pending.next = next;
        self.pending.note = note.clone();
        self.ledger.append(&self.pending)?;
        self.n_checkpoints += 1;
        self.records.clear();
        self.token_ids.clear();
        self.notes.push(note.clone());
        self.next = Some(next);
        self.complete = self.pending.complete;
        self.pending = Checkpoint::default();
        Ok(())
    }

    /// The last checkpoint, after which the part is complete.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn finish(mut self, next: SampleId, note: &Value) -> Result<(), CacheError> {
        self.pending.complete = true;
        self.checkpoint(next, note)
    }

    fn side_bytes(&self) -> usize {
        self.records.len() + size_of_val(self.token_ids.as_slice())
    }

    fn append(&mut self, record: &SampleRecord, codes: &SampleCodes<'_>) -> Result<(), CacheError> {
        let SampleCodes { hook, tokens, codes } = codes;
        let of_images = record.image_tokens.iter().map(|&[start, end]| {
            let before = |position: u32| tokens.partition_point(|&token| token < position);
            (before(end) - before(start)) as u64
        });
        let encoded = self.pending.encoded.entry((*hook).clone()).or_default();
        encoded[0] += tokens.len() as u64;
        encoded[1] += of_images.sum::<u64>();
        let Some(Hook { buffer, step, .. }) = self.hooks.get_mut(*hook) else { return Ok(()) };
        let (job, pending) = (&self.job, &mut self.pending);
        let filter = job.description.filters.as_ref().and_then(|filters| filters.features(hook));
        for (&token, row) in tokens.iter().zip(codes.rows()) {
            for (feature, value) in row.iter() {
                let wanted = filter.is_none_or(|wanted| wanted.binary_search(&feature).is_ok());
                if !wanted || job.dtype.round(value) == 0.0 {
                    continue;
                }
                if buffer.is_full() {
                    let run = spill(job, &self.folder, hook, buffer, &mut self.n_runs)?;
                    pending.runs.entry((*hook).clone()).or_default().push(run);
                }
                buffer.push(Entry { latent: feature.0, sample: record.sample.0, token, value });
                pending.largest_token = pending.largest_token.max(token);
                *step += 1;
            }
        }
        Ok(())
    }
}

/// Writes what a buffer holds as a run.
fn spill(
    job: &CacheJob,
    folder: &Path,
    hook: &HookPoint,
    buffer: &mut Buffer,
    n_runs: &mut usize,
) -> Result<PartFile, CacheError> {
    let width = job.description.hooks.get(hook).map_or(0, |about| about.width);
    let file = run_file(hook, *n_runs);
    tracing::debug!(entries = buffer.len(), "spilling {file}");
    let (n, sha256) = buffer.spill(&folder.join(&file), width, job.dtype)?;
    *n_runs += 1;
    Ok(PartFile { file, n, sha256 })
}

/// The budget is divided in proportion to how many codes a token has.
fn hooks(job: &CacheJob, budget: usize) -> Result<BTreeMap<HookPoint, Hook>, CacheError> {
    let hooks = &job.description.hooks;
    let total: u128 = hooks.values().map(|about| about.k.max(1) as u128).sum();
    let share = |k: usize| (budget as u128 * k.max(1) as u128 / total.max(1)) as usize;
    let hook = |(name, k): (&HookPoint, usize)| {
        let mut buffer = Buffer::new(share(k));
        buffer.reserve()?;
        Ok((name.clone(), Hook { buffer, step: 0, largest_step: 0 }))
    };
    hooks.iter().map(|(name, about)| hook((name, about.k))).collect()
}

fn run_file(hook: &HookPoint, number: usize) -> String {
    format!("{hook}/run-{number:06}.safetensors")
}

fn samples_file(number: usize) -> String {
    format!("samples-{number:06}.jsonl")
}

fn tokens_file(number: usize) -> String {
    format!("tokens-{number:06}.bin")
}

/// The lock on a file, which ends with the process; `None` if another process has it.
pub(crate) fn lock(path: &Path) -> Result<Option<File>, CacheError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(CacheError::io("create", path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(CacheError::io("lock", path)(error)),
    }
}

/// The shards in `parts`, begun or not.
pub(crate) fn shards(parts: &Path) -> Result<Vec<Shard>, CacheError> {
    let list = |source| CacheError::Io { action: "list", path: parts.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parts).map_err(list)? {
        let entry = entry.map_err(list)?;
        if let Some(shard) = Shard::parse(&entry.file_name().to_string_lossy()) {
            found.push(shard);
        }
    }
    found.sort_unstable_by_key(|shard| (shard.count, shard.index));
    Ok(found)
}

fn refuse_other_division(parts: &Path, shard: Shard) -> Result<(), CacheError> {
    match shards(parts)?.into_iter().find(|other| other.count != shard.count) {
        Some(other) => {
            Err(CacheError::Division { path: parts.to_owned(), begun: other.count, asked: shard.count })
        }
        None => Ok(()),
    }
}

/// Removes files that were being written when the program ended, and refuses those that this crate did not write.
fn clear_unfinished(folder: &Path, ledger: &Ledger) -> Result<(), CacheError> {
    let known: BTreeSet<&str> = ledger.files().map(|entry| entry.file.as_str()).collect();
    for (name, path) in all_below(folder)? {
        if known.contains(name.as_str()) || name == LEDGER_FILE || name == LOCK_FILE {
            continue;
        }
        if !is_unfinished(&name, ledger) {
            return Err(CacheError::Foreign { path });
        }
        tracing::debug!("removing {name}, which was not complete");
        std::fs::remove_file(&path).map_err(CacheError::io("remove", path))?;
    }
    Ok(())
}

/// Whether a file bears the name of one that the next checkpoint would have written.
fn is_unfinished(name: &str, ledger: &Ledger) -> bool {
    let number = |name: &str, before: &str, after: &str| -> Option<usize> {
        name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()
    };
    if let Some((_, file)) = name.rsplit_once('/') {
        return number(file, "run-", ".safetensors").is_some_and(|number| number >= ledger.n_runs());
    }
    let checkpoint = number(name, "samples-", ".jsonl").or_else(|| number(name, "tokens-", ".bin"));
    // `write_durably` writes beside.
    name.starts_with(".tmp") || checkpoint.is_some_and(|number| number >= ledger.checkpoints.len())
}
