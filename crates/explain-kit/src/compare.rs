//! [`compare`]: whether a run may go on with what an earlier one began.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::ExplainKitError;

/// Refuses settings that differ from those of the run that began the folder.
///
/// # Errors
/// When they differ, which is wrong usage, or `run.json` cannot be read.
pub fn compare(run_json: &Path, now: &BTreeMap<String, String>) -> Result<(), ExplainKitError> {
    #[derive(serde::Deserialize)]
    struct Then {
        #[serde(default)]
        settings: BTreeMap<String, String>,
    }
    let bytes = std::fs::read(run_json).map_err(ExplainKitError::io("the manifest", run_json))?;
    let then: Then = serde_json::from_slice(&bytes).map_err(|source| ExplainKitError::Json {
        path: run_json.to_owned(),
        expected: "run.json",
        source,
    })?;
    let names: BTreeSet<&String> = then.settings.keys().chain(now.keys()).collect();
    let absent = "not set".to_owned();
    let differences: Vec<String> = names
        .into_iter()
        .filter_map(|name| {
            let (was, is) = (then.settings.get(name).unwrap_or(&absent), now.get(name).unwrap_or(&absent));
            (was != is).then(|| format!("{name} was {was}, is {is}"))
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "{} was made with other settings: {}; use the same, or another folder, or start anew with --overwrite",
        run_json.parent().unwrap_or(run_json).display(),
        differences.join("; ")
    );
    Err(ExplainKitError::usage(problem))
}
