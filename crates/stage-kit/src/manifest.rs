//! `run.json`: what made an output folder.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::World;
use crate::logging::utc_now;

/// What a run was asked, what it read and what it made. [`crate::OutputFolder::commit`] writes it.
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

    pub(crate) fn stop(&mut self) {
        self.seconds = (self.clock.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    }
}
