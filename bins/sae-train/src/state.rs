//! What a checkpoint holds beside the trainers: how far the run is, and by which flags it was started.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use model_kit::LeftOut;
use serde::{Deserialize, Serialize};

const FILE: &str = "run_state.json";

/// What the result of a run depends on, by the names of the flags; values in JSON, as text, so that numbers stay what they are.
pub(crate) type Settings = BTreeMap<String, String>;

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunState {
    /// What the result depends on: flags, and hashes of what is read.
    pub(crate) settings: Settings,
    /// Samples of the order that were read.
    pub(crate) samples: usize,
    /// Length of metrics.jsonl.
    pub(crate) metrics_bytes: u64,
    /// Samples left out so far.
    pub(crate) left_out: LeftOut,
    /// Per autoencoder, how many calls its trainer had.
    pub(crate) calls: BTreeMap<String, u64>,
    /// Per autoencoder, the smallest FVU on held-out samples so far, as text that reads back to the same bits.
    pub(crate) best: BTreeMap<String, String>,
}

impl RunState {
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).context("writing the run's state as JSON")?;
        std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no state of a run", path.display()))
    }
}

/// Whether a run that was started with the settings `was` may go on with `is`.
///
/// # Errors
/// With every difference.
pub(crate) fn check_settings(was: &Settings, is: &Settings) -> Result<()> {
    let names = was.keys().chain(is.keys().filter(|name| !was.contains_key(*name)));
    let differences: Vec<String> = names
        .filter_map(|name| {
            let (was, is) = (was.get(name), is.get(name));
            let shown = |value: Option<&String>| value.map_or("not set", |value| value).to_owned();
            (was != is).then(|| format!("  {name}: {} in the checkpoint, {} now", shown(was), shown(is)))
        })
        .collect();
    if !differences.is_empty() {
        bail!(
            "--resume would mix two runs:\n{}\ngive the flags of the checkpoint, or another --save-dir",
            differences.join("\n")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> RunState {
        RunState {
            settings: BTreeMap::from([("--k".into(), "[32]".into()), ("--lr".into(), "0.1".into())]),
            samples: 24,
            metrics_bytes: 100,
            left_out: LeftOut::default(),
            calls: BTreeMap::from([("model.layers.2".into(), 3)]),
            best: BTreeMap::from([("model.layers.2".into(), (0.1_f64 + 0.2).to_string())]),
        }
    }

    #[test]
    fn reads_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        state().write(folder.path()).unwrap();
        assert_eq!(RunState::read(folder.path()).unwrap(), state());
    }

    #[test]
    fn every_difference_is_listed() {
        check_settings(&state().settings, &state().settings).unwrap();
        let other = BTreeMap::from([("--k".into(), "[16]".into()), ("--seed".into(), "1".into())]);
        let message = check_settings(&state().settings, &other).unwrap_err().to_string();
        for words in
            ["--k: [32] in the checkpoint, [16] now", "--lr: 0.1 in the checkpoint, not set now", "--seed"]
        {
            assert!(message.contains(words), "{message}");
        }
    }
}
