//! What the tests share: the binary, files to read, what a failure must look like.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) fn sae_data(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sae-data"));
    for launcher in ["RANK", "WORLD_SIZE", "SLURM_PROCID", "PMI_RANK", "PMI_SIZE", "RUST_LOG"] {
        command.env_remove(launcher);
    }
    command.args(args);
    command
}

#[track_caller]
pub(crate) fn assert_fails(output: &Output, code: i32, says: &str) {
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{log}");
    assert!(log.contains(says), "{log}");
    assert!(output.stdout.is_empty());
}

pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[track_caller]
pub(crate) fn assert_succeeds(output: &Output) {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(output.stdout.is_empty());
}

pub(crate) fn run_json(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("run.json")).unwrap()).unwrap()
}

pub(crate) fn put(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// A model folder of the workspace's fixtures, as a tokenizer alone: no `config.json`.
pub(crate) fn tokenizer(root: &Path, name: &str) -> PathBuf {
    let from =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/lmm-prep/tests/fixtures/models").join(name);
    let to = root.join(format!("{name}-tokenizer"));
    fs::create_dir(&to).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        if from.join(file).is_file() {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
    to
}
