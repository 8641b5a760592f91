//! [`Ledger`]: one line of JSON per finished item, in a file that survives a kill.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A line that is none of this ledger's.
    #[error("{}, line {line}, is not of this ledger: remove the line, or the file to start again", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A file that another process writes.
    #[error("another process is writing {}", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A line that another program changed while it was open.
    #[error("{} was changed by another program", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// An item that JSON cannot hold.
    #[error("cannot write an item to {}", path.display())]
    Item {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

/// The file of a ledger, locked against other writers for as long as this lives, and not read yet.
#[derive(Debug)]
pub struct LedgerFile {
    path: PathBuf,
    file: File,
}

impl LedgerFile {
    /// Locks the ledger at `path`, or starts it.
    ///
    /// # Errors
    /// When it cannot be opened, or another process writes it.
    pub fn lock(path: &Path) -> Result<Self, LedgerError> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(io("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(LedgerError::Locked { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(error)) => Err(io("lock", path)(error)),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes all items, those included that are of no ledger.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn empty(&self) -> Result<(), LedgerError> {
        self.file.set_len(0).map_err(io("write", &self.path))
    }

    /// Reads what it holds. `key` names an item.
    ///
    /// # Errors
    /// When it cannot be read, or a whole line is not an item.
    pub fn read<K: Ord, T: Serialize + DeserializeOwned>(
        self,
        key: impl Fn(&T) -> K,
    ) -> Result<Ledger<K, T>, LedgerError> {
        let mut ledger = Ledger::of_file(&self.path, self.file, key)?;
        ledger.cut().map_err(io("write", &self.path))?;
        Ok(ledger)
    }
}

/// An append-only file of finished items, each with a key. Half a line at the end, which a kill leaves, is removed on
/// opening. Of several lines with one key the last counts.
///
/// Only the keys and the places of their lines are held in memory; items are read from the file when they are asked for.
#[derive(Debug)]
pub struct Ledger<K, T> {
    path: PathBuf,
    file: File,
    /// Where the next line begins.
    end: u64,
    places: BTreeMap<K, Place>,
    items: PhantomData<fn() -> T>,
}

/// A line, without its end.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u64,
    len: usize,
}

impl<K: Ord, T: Serialize + DeserializeOwned> Ledger<K, T> {
    /// Opens the ledger at `path`, or starts it. `key` names an item. The file is locked against other writers.
    ///
    /// # Errors
    /// When it cannot be read, a whole line is not an item, or another process writes it.
    pub fn open(path: &Path, key: impl Fn(&T) -> K) -> Result<Self, LedgerError> {
        LedgerFile::lock(path)?.read(key)
    }

    /// Reads the ledger at `path` without locking or changing it, as far as its lines are whole: another process may be writing.
    /// Adding to it fails.
    ///
    /// # Errors
    /// When it cannot be read, or a whole line is not an item.
    pub fn read(path: &Path, key: impl Fn(&T) -> K) -> Result<Self, LedgerError> {
        let file = File::open(path).map_err(io("open", path))?;
        Self::of_file(path, file, key)
    }

    fn of_file(path: &Path, file: File, key: impl Fn(&T) -> K) -> Result<Self, LedgerError> {
        let mut places = BTreeMap::new();
        let mut reader = BufReader::new(&file);
        let (mut start, mut line, mut number) = (0, Vec::new(), 0);
        loop {
            line.clear();
            let n = reader.read_until(b'\n', &mut line).map_err(io("read", path))?;
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                break;
            }
            number += 1;
            if !line.is_empty() {
                let item: T = serde_json::from_slice(&line).map_err(|source| LedgerError::Line {
                    path: path.to_owned(),
                    line: number,
                    source,
                })?;
                places.insert(key(&item), Place { start, len: line.len() });
            }
            start += n as u64;
        }
        Ok(Self { path: path.to_owned(), file, end: start, places, items: PhantomData })
    }

    /// The item with `key`, if it is finished.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, key: &K) -> Result<Option<T>, LedgerError> {
        self.places.get(key).map(|&place| self.item(place)).transpose()
    }

    /// Whether the item with `key` is finished.
    pub fn contains(&self, key: &K) -> bool {
        self.places.contains_key(key)
    }

    /// How many items are finished.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The keys of all finished items, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.places.keys()
    }

    /// All finished items, ascending by key, each read as it comes.
    ///
    /// # Errors
    /// An item is an error where it cannot be read.
    pub fn items(&self) -> impl Iterator<Item = Result<T, LedgerError>> {
        self.places.values().map(|&place| self.item(place))
    }

    fn item(&self, place: Place) -> Result<T, LedgerError> {
        let mut line = vec![0; place.len];
        self.file.read_exact_at(&mut line, place.start).map_err(io("read", &self.path))?;
        serde_json::from_slice(&line)
            .map_err(|source| LedgerError::Changed { path: self.path.clone(), source })
    }

    /// Adds a finished item. It is written in one piece and handed to the operating system, so that a kill of this process
    /// does not lose it.
    ///
    /// # Errors
    /// When it cannot be written; the ledger is then as it was before, so that this may be tried again.
    pub fn add(&mut self, key: K, item: &T) -> Result<(), LedgerError> {
        let mut line = serde_json::to_vec(item)
            .map_err(|source| LedgerError::Item { path: self.path.clone(), source })?;
        let len = line.len();
        line.push(b'\n');
        if let Err(source) = self.file.write_all_at(&line, self.end) {
            // A full disk takes half a line. What cannot be cut off either is cut off when the ledger is opened again.
            let _ = self.cut();
            return Err(io("write", &self.path)(source));
        }
        self.places.insert(key, Place { start: self.end, len });
        self.end += line.len() as u64;
        Ok(())
    }

    /// Removes what stands behind the last whole line.
    fn cut(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.end)
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { action, path, source }
}
