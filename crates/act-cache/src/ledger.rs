//! The ledger of a part: one line per checkpoint, each naming files that are complete and on disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sae_types::{HookPoint, SampleId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{CacheError, hash, mmap};

pub(crate) const LEDGER_FILE: &str = "ledger.jsonl";
const FORMAT: &str = "lmm-sae cache part";
const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Opening {
    format: String,
    version: u32,
    /// Hash of the job.
    pub(crate) job: String,
    pub(crate) index: usize,
    pub(crate) count: usize,
}

/// Every other line: what came on disk since the one before.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// All samples below are done.
    pub(crate) next: SampleId,
    /// Runs in the order they were spilled.
    pub(crate) runs: BTreeMap<HookPoint, Vec<PartFile>>,
    /// Lines of samples.jsonl.
    pub(crate) samples: Option<PartFile>,
    /// Token ids.
    pub(crate) tokens: Option<PartFile>,
    /// Encoded tokens, and those of images among them.
    pub(crate) encoded: BTreeMap<HookPoint, [u64; 2]>,
    pub(crate) largest_token: u32,
    /// The caller's.
    pub(crate) note: Value,
    /// Whether the part ends here.
    pub(crate) complete: bool,
}

/// A file of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartFile {
    /// Its path in the part's folder.
    pub(crate) file: String,
    /// Its entries, lines or ids.
    pub(crate) n: u64,
    pub(crate) sha256: String,
}

/// A ledger that was read.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) opening: Opening,
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// Bytes of its whole lines; what follows was being written when the program ended.
    whole: u64,
}

/// A ledger open for writing.
#[derive(Debug)]
pub(crate) struct LedgerWriter {
    path: PathBuf,
    file: File,
    /// Bytes of its whole lines.
    whole: u64,
}

impl Opening {
    pub(crate) fn new(job: String, index: usize, count: usize) -> Self {
        Self { format: FORMAT.to_owned(), version: VERSION, job, index, count }
    }
}

impl Ledger {
    /// Reads the ledger in `folder`; `None` where the part was not begun.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, CacheError> {
        let path = folder.join(LEDGER_FILE);
        let mut text = Vec::new();
        match File::open(&path) {
            Ok(mut file) => file.read_to_end(&mut text).map_err(CacheError::io("read", &path))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CacheError::io("read", path)(error)),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let mut lines =
            text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).enumerate();
        let json = |line: usize| {
            let path = path.clone();
            move |source| CacheError::Json { path, line: Some(line + 1), source }
        };
        // Without a whole first line nothing was written that counts.
        let Some((line, first)) = lines.next() else { return Ok(None) };
        let opening: Opening = serde_json::from_slice(first).map_err(json(line))?;
        if (opening.format.as_str(), opening.version) != (FORMAT, VERSION) {
            let got = format!("{:?}, version {}", opening.format, opening.version);
            let expected = format!("{FORMAT:?}, version {VERSION}");
            return Err(CacheError::Field { path, field: "format".to_owned(), expected, got });
        }
        let mut checkpoints: Vec<Checkpoint> = Vec::new();
        for (line, text) in lines {
            checkpoints.push(serde_json::from_slice(text).map_err(json(line))?);
        }
        let ledger = Self { opening, checkpoints, whole: whole as u64 };
        if let Some(entry) = ledger.files().find(|entry| !is_within(&entry.file)) {
            let expected = "a path within the part's folder".to_owned();
            let got = format!("{:?}", entry.file);
            return Err(CacheError::Field { path, field: "file".to_owned(), expected, got });
        }
        Ok(Some(ledger))
    }

    /// The ledger of a part in which nothing happened yet.
    pub(crate) fn empty(opening: Opening) -> Self {
        Self { opening, checkpoints: Vec::new(), whole: 0 }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.checkpoints.last().is_some_and(|last| last.complete)
    }

    /// Every file the ledger names.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PartFile> {
        self.checkpoints.iter().flat_map(|checkpoint| {
            let Checkpoint { runs, samples, tokens, .. } = checkpoint;
            runs.values().flatten().chain(samples).chain(tokens)
        })
    }

    /// How many runs there are: the number of the next.
    pub(crate) fn n_runs(&self) -> usize {
        self.checkpoints.iter().flat_map(|checkpoint| checkpoint.runs.values()).map(Vec::len).sum()
    }

    /// Compares every file with its hash.
    pub(crate) fn verify(&self, folder: &Path) -> Result<(), CacheError> {
        let files: Vec<&PartFile> = self.files().collect();
        files.into_par_iter().try_for_each(|entry| {
            let path = folder.join(&entry.file);
            let got = hash::sha256(&mmap::map(&path)?);
            if got == entry.sha256 {
                return Ok(());
            }
            Err(CacheError::Hash { path, expected: entry.sha256.clone(), got })
        })
    }
}

/// Whether a path stays in the folder it is joined to.
fn is_within(file: &str) -> bool {
    Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
}

impl LedgerWriter {
    /// Starts a ledger.
    pub(crate) fn create(folder: &Path, opening: &Opening) -> Result<Self, CacheError> {
        let path = folder.join(LEDGER_FILE);
        let file = File::create(&path).map_err(CacheError::io("create", &path))?;
        let mut ledger = Self { path, file, whole: 0 };
        ledger.append(opening)?;
        Ok(ledger)
    }

    /// Goes on with the ledger that was read, after its last whole line.
    pub(crate) fn resume(folder: &Path, ledger: &Ledger) -> Result<Self, CacheError> {
        let path = folder.join(LEDGER_FILE);
        let io = |source| CacheError::Io { action: "write", path: path.clone(), source };
        let mut file = OpenOptions::new().write(true).open(&path).map_err(io)?;
        file.set_len(ledger.whole).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self { path, file, whole: ledger.whole })
    }

    /// Adds a line; it is on disk when this returns.
    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<(), CacheError> {
        let path = &self.path;
        let mut text = serde_json::to_vec(line).map_err(|source| CacheError::Json {
            path: path.clone(),
            line: None,
            source,
        })?;
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_all());
        if written.is_err() {
            // Half a line must not have another after it. If this fails too, so will what comes next.
            let _ = self.file.set_len(self.whole).and_then(|()| self.file.seek(SeekFrom::End(0)));
        }
        written.map_err(CacheError::io("write", path))?;
        self.whole += text.len() as u64;
        Ok(())
    }
}
