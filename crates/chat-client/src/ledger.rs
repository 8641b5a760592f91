//! [`Ledger`]: one line of JSON per finished item, in a file that survives a kill.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
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

/// An append-only file of finished items, each with a key. Half a line at the end, which a kill leaves, is removed on
/// opening. Of several lines with one key the last counts.
#[derive(Debug)]
pub struct Ledger<T> {
    path: PathBuf,
    file: File,
    items: HashMap<String, T>,
}

impl<T: Serialize + DeserializeOwned> Ledger<T> {
    /// Opens the ledger at `path`, or starts it. `key` names an item. The file is locked against other processes.
    ///
    /// # Errors
    /// When it cannot be read, a whole line is not an item, or another process has it.
    pub fn open(path: &Path, key: impl Fn(&T) -> String) -> Result<Self, LedgerError> {
        let io = |action| {
            let path = path.to_owned();
            move |source| LedgerError::Io { action, path, source }
        };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(LedgerError::Locked { path: path.to_owned() });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(io("lock")(error)),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(io("read"))?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let mut items = HashMap::new();
        let lines = text[..whole].split(|&byte| byte == b'\n').enumerate();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let item: T = serde_json::from_slice(line).map_err(|source| LedgerError::Line {
                path: path.to_owned(),
                line: number + 1,
                source,
            })?;
            items.insert(key(&item), item);
        }
        file.set_len(whole as u64).map_err(io("write"))?;
        file.seek(SeekFrom::End(0)).map_err(io("write"))?;
        Ok(Self { path: path.to_owned(), file, items })
    }

    /// The item with `key`, if it is finished.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.items.get(key)
    }

    /// How many items are finished.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All finished items, in no order.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.items.values()
    }

    /// Adds a finished item. It is written in one piece and handed to the operating system, so that a kill of this process
    /// does not lose it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, key: String, item: T) -> Result<(), LedgerError> {
        let path = &self.path;
        let mut line =
            serde_json::to_vec(&item).map_err(|source| LedgerError::Item { path: path.clone(), source })?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|source| LedgerError::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        self.items.insert(key, item);
        Ok(())
    }
}
