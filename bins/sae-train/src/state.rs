//! What a checkpoint holds beside the trainers: how far the run is, and by which flags it was started.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use model_kit::LeftOut;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const FILE: &str = "run_state.json";

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunState {
    /// What the result depends on: flags, and hashes of what is read.
    pub(crate) settings: BTreeMap<String, Value>,
    /// Samples of the order that were read.
    pub(crate) samples: usize,
    /// Length of metrics.jsonl.
    pub(crate) metrics_bytes: u64,
    /// Samples left out so far.
    pub(crate) left_out: LeftOut,
    /// Per autoencoder, how many calls its trainer had.
    pub(crate) calls: BTreeMap<String, u64>,
    /// Per autoencoder, the smallest FVU on held-out samples so far.
    pub(crate) best: BTreeMap<String, f64>,
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

    /// Whether a run with `settings` may go on from here.
    pub(crate) fn check(&self, settings: &BTreeMap<String, Value>) -> Result<()> {
        let names =
            self.settings.keys().chain(settings.keys().filter(|name| !self.settings.contains_key(*name)));
        let differences: Vec<String> = names
            .filter_map(|name| {
                let (was, is) = (self.settings.get(name), settings.get(name));
                let shown = |value: Option<&Value>| value.map_or("not set".to_owned(), Value::to_string);
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
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state() -> RunState {
        RunState {
            settings: BTreeMap::from([("--k".into(), json!([32])), ("--lr".into(), json!(0.1))]),
            samples: 24,
            metrics_bytes: 100,
            left_out: LeftOut::default(),
            calls: BTreeMap::from([("model.layers.2".into(), 3)]),
            best: BTreeMap::from([("model.layers.2".into(), 0.1 + 0.2)]),
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
        state().check(&state().settings).unwrap();
        let other = BTreeMap::from([("--k".into(), json!([16])), ("--seed".into(), json!(1))]);
        let message = state().check(&other).unwrap_err().to_string();
        for words in
            ["--k: [32] in the checkpoint, [16] now", "--lr: 0.1 in the checkpoint, not set now", "--seed"]
        {
            assert!(message.contains(words), "{message}");
        }
    }
}
