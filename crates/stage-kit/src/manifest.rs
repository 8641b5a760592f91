//! `run.json`: what made an output folder.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::logging::utc_now;
use crate::{KitError, World};

/// What a run was asked, what it read and what it made. [`crate::OutputFolder::commit`] writes it, or [`RunManifest::write`].
#[derive(Clone, Debug, Serialize)]
pub struct RunManifest {
    /// The binary's name.
    pub binary: String,
    /// Its version.
    pub version: String,
    /// The command line after the binary's name, as given.
    pub arguments: Vec<String>,
    /// The seed, where one was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Worker and number of workers, where there were several.
    #[serde(skip_serializing_if = "Option::is_none")]
    world: Option<[usize; 2]>,
    /// What decides what it makes, by flag: a later run that goes on with its folder must have the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// What was read.
    pub inputs: Vec<Input>,
    /// How many of what were made or met.
    pub counts: BTreeMap<String, u64>,
    /// Versions of what the numbers depend on, such as libtorch's.
    pub versions: BTreeMap<String, String>,
    /// When it started, UTC.
    pub started_at: String,
    /// How long it took; set on commit.
    pub seconds: f64,
    #[serde(skip)]
    clock: Instant,
}

/// One thing a run read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Input {
    /// What it was to the run: `model`, `sae`, `dataset`.
    pub role: String,
    /// Path or Hub id, as given.
    pub source: String,
    /// SHA-256 of the file, or the fingerprint of what has no single file.
    pub sha256: String,
}

impl RunManifest {
    /// Starts the clock and keeps this process's arguments.
    pub fn start(binary: &str, version: &str) -> Self {
        Self {
            binary: binary.to_owned(),
            version: version.to_owned(),
            arguments: std::env::args_os().skip(1).map(|text| text.to_string_lossy().into_owned()).collect(),
            seed: None,
            world: None,
            settings: BTreeMap::new(),
            inputs: Vec::new(),
            counts: BTreeMap::new(),
            versions: BTreeMap::new(),
            started_at: utc_now(),
            seconds: 0.0,
            clock: Instant::now(),
        }
    }

    /// Notes which worker this was, unless it was the only one.
    pub fn world(&mut self, world: World) {
        self.world = (world.size > 1).then_some([world.rank, world.size]);
    }

    /// Notes something read.
    pub fn input(&mut self, role: &str, source: &(impl ToString + ?Sized), sha256: impl Into<String>) {
        self.inputs.push(Input { role: role.to_owned(), source: source.to_string(), sha256: sha256.into() });
    }

    /// Notes how many.
    pub fn count(&mut self, what: &str, n: u64) {
        self.counts.insert(what.to_owned(), n);
    }

    /// Writes the manifest to a file of a folder that grows in place, as far as the run has come. It is written beside its
    /// place and renamed, so that the file is whole at every moment.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, path: &Path) -> Result<(), KitError> {
        let text = self.finished_text().map_err(KitError::io("write", path))?;
        write_whole(path, text.as_bytes())
    }

    /// As [`RunManifest::write`], unless the file is there: of several processes that begin together one writes it. Gives
    /// whether this one did.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_new(&mut self, path: &Path) -> Result<bool, KitError> {
        let text = self.finished_text().map_err(KitError::io("write", path))?;
        let part = part_of(path);
        let linked = std::fs::write(&part, &text).and_then(|()| std::fs::hard_link(&part, path));
        let _ = std::fs::remove_file(&part);
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            // Not every file system has links.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                if path.exists() {
                    return Ok(false);
                }
                write_whole(path, text.as_bytes()).map(|()| true)
            }
            Err(error) => Err(KitError::io("write", path)(error)),
        }
    }

    /// The JSON, with the time up to now.
    pub(crate) fn finished_text(&mut self) -> std::io::Result<String> {
        self.seconds = (self.clock.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }
}

/// Writes a file beside its place and renames it, so that it is whole at every moment.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), KitError> {
    let part = part_of(path);
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(KitError::io("write", path))
}

/// A name beside `path` that no other process has: in containers that share a folder each may have the same id.
fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".part-{:x}", RandomState::new().hash_one(())));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_begin_together_one_writes_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        let begin = |i: u64| {
            let mut manifest = RunManifest::start("test", "0");
            manifest.seed = Some(i);
            manifest.write_new(&path).unwrap().then_some(i)
        };
        let wrote: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || begin(i))).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        let [one] = wrote[..] else { panic!("{wrote:?} wrote it") };
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["seed"], one);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
