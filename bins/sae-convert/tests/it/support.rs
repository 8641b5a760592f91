//! What the tests share: the binary, and what success and failure look like.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) fn convert(root: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sae-convert"));
    for launcher in ["RANK", "WORLD_SIZE", "SLURM_PROCID", "PMI_RANK", "PMI_SIZE", "RUST_LOG"] {
        command.env_remove(launcher);
    }
    command.current_dir(root).args(args).output().unwrap()
}

#[track_caller]
pub(crate) fn report(output: &Output) -> Value {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn assert_fails(output: &Output, code: i32, says: &str) {
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{log}");
    assert!(log.contains(says), "{log}");
    assert!(output.stdout.is_empty());
}

/// Names in `folder`, hidden ones too.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
