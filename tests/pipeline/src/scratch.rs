//! [`Scratch`]: a folder to run binaries in, with the embedded model linked into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::Run;

/// Variables by which a launcher, a user or CI could change what a run does.
const FOREIGN: [&str; 9] = [
    "RANK",
    "WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "JOB_COMPLETION_INDEX",
];

/// A temporary folder, removed when dropped. Binaries run in it, so their arguments are plain relative names.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// An empty folder but for `model`, a link to the embedded model.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn new() -> Self {
        let scratch = Self(tempfile::tempdir().expect("a temporary folder"));
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes-lmm-s");
        let model = model.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", model.display()));
        std::os::unix::fs::symlink(model, scratch.path("model")).expect("a link to the model");
        scratch
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of the folder as text.
    ///
    /// # Panics
    /// When it cannot be read.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A JSON file of the folder.
    ///
    /// # Panics
    /// When it cannot be read or is not JSON.
    #[track_caller]
    pub fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A binary with its arguments, split at blanks, to be run in the folder: on one thread, without a network.
    ///
    /// # Panics
    /// When the binary has not been built.
    #[track_caller]
    pub fn command(&self, program: &str, arguments: &str) -> Command {
        let mut command = Command::new(binary(program));
        command.args(arguments.split_whitespace());
        self.prepare(&mut command);
        command
    }

    /// A shell script to be run in the folder as [`Scratch::command`] runs a binary; `"$@"` in it are the binary and its
    /// arguments.
    ///
    /// # Panics
    /// When the binary has not been built.
    #[track_caller]
    pub fn script(&self, shell: &[&str], script: &str, program: &str, arguments: &str) -> Command {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).args(["-c", script, "sh"]).arg(binary(program));
        command.args(arguments.split_whitespace());
        self.prepare(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        for variable in FOREIGN {
            command.env_remove(variable);
        }
        command
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            .env("OMP_NUM_THREADS", "1")
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("no-hub"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started, or panics itself.
    #[track_caller]
    pub fn finish(&self, mut command: Command) -> Run {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Run::of(format!("{command:?}"), &output)
    }

    /// Runs a binary, which has to succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &str) -> Run {
        self.finish(self.command(program, arguments)).ends_with(0)
    }

    /// Runs a binary that has to fail with `code`, say `words`, and leave the folder as it was.
    ///
    /// # Panics
    /// When it does anything else.
    #[track_caller]
    pub fn refuses(&self, program: &str, arguments: &str, code: i32, words: &[&str]) {
        let before = self.listing();
        let run = self.finish(self.command(program, arguments)).ends_with(code).says(words);
        assert_eq!(self.listing(), before, "files came or went\n{run}");
    }

    /// Everything below the folder, hidden files too, in order, each with its size. Links are not followed.
    pub fn listing(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            // What a running binary removes meanwhile is not there.
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(facts) = fs::symlink_metadata(&path) else { continue };
                found.push((path.clone(), if facts.is_file() { facts.len() } else { 0 }));
                if facts.is_dir() {
                    folders.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// A built binary, beside the folder the running test executable lies in (`target/<profile>/deps`).
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let path = folder.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    path
}
