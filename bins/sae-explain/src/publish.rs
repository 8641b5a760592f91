//! Explanations, and what is made of them, as multimodal-sae publishes them.

use explain::parse::UNABLE;
use explain::{FeatureKey, Outcome, Record, write_published};
use explain_kit::{EXPLANATIONS, ExplainKitError, Folder, Records, Stage};

/// The flag that names the folder of every stage here.
pub(crate) const FLAG: &str = "--explanation-dir";

pub(crate) const EXPLAINED: Stage = Stage { keeps_images: true, ..stage(EXPLANATIONS, Some("")) };

/// A stage that writes its ledger and what is made of it, and keeps no pictures.
pub(crate) const fn stage(name: &'static str, suffix: Option<&'static str>) -> Stage {
    Stage { name, suffix, extra: &[], keeps_images: false, flag: FLAG }
}

/// Writes one file per hook point in multimodal-sae's form.
pub(crate) fn publish(folder: &Folder, records: Records<'_>) -> Result<(), ExplainKitError> {
    let mut records = records.peekable();
    while let Some(first) = records.peek() {
        let Ok(first) = first else { break };
        let hook = first.hook.clone();
        let of_hook = |record: &Result<Record, ExplainKitError>| {
            record.as_ref().map_or(true, |record| record.hook == hook)
        };
        let texts =
            std::iter::from_fn(|| records.next_if(of_hook)).filter_map(|record| text(record).transpose());
        write_published(&folder.stage().written_of(folder.path(), &hook), texts)?;
    }
    records.next().transpose()?;
    Ok(())
}

/// What a published file says of a record; nothing where there is no explanation.
fn text(record: Result<Record, ExplainKitError>) -> Result<Option<(FeatureKey, String)>, ExplainKitError> {
    let record = record?;
    let key = record.key();
    Ok(match record.outcome {
        Outcome::Answered(text) => Some((key, text)),
        Outcome::Unable => Some((key, UNABLE.to_owned())),
        Outcome::Unparsed | Outcome::Skipped(_) | Outcome::Failed(_) => None,
    })
}
