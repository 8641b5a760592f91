//! [`Parts`]: what was found of each question, kept as it comes until the output folder is whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sae_types::HookPoint;
use stage_kit::UsageError;

use crate::store::{About, AboutQuestion, Found, write};

/// `SAVE_DIR.parts`, with a folder like the output's for each question that is done. A kill leaves it behind.
#[derive(Debug)]
pub(crate) struct Parts(PathBuf);

impl Parts {
    /// Refuses what a run left that did not end, unless it is to be replaced.
    pub(crate) fn open(save_dir: &Path, overwrite: bool) -> Result<Self> {
        let mut name = save_dir.as_os_str().to_owned();
        name.push(".parts");
        let path = PathBuf::from(name);
        if path.exists() {
            if !overwrite {
                let problem = format!(
                    "{} holds what a run found that did not end, a folder for each question: keep what you need of it and remove it, or \
                     start with --overwrite",
                    path.display()
                );
                return Err(UsageError::new(problem).into());
            }
            remove(&path)?;
        }
        Ok(Self(path))
    }

    /// Keeps what was found of a question: its folder is whole or absent.
    pub(crate) fn add(
        &self,
        number: usize,
        about: &About,
        question: &AboutQuestion,
        found: &BTreeMap<HookPoint, Found>,
    ) -> Result<()> {
        let path = self.0.join(format!("question-{number}"));
        let part = path.with_extension("part");
        std::fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        write(&part, &about.with(vec![question.clone()]), std::slice::from_ref(found))?;
        std::fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes all of them: the output folder is whole.
    pub(crate) fn remove(self) -> Result<()> {
        remove(&self.0)
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use attribution::{Effect, Effects};
    use sae_types::{FeatureId, TokenIndex};

    use super::*;
    use crate::store::read;

    #[test]
    fn each_question_can_be_read_before_all_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let save_dir = folder.path().join("effects");
        let hook = HookPoint::layer(2);
        let mut about = About::new("one-pass", None, "model", "sae");
        about.hooks.insert(hook.clone(), 4);
        let question = |score| AboutQuestion {
            prompt: "p".to_owned(),
            answers: Vec::new(),
            baselines: Vec::new(),
            score,
            tokens: vec!["a".to_owned(); 3],
            images: Vec::new(),
        };
        let effects = |value| {
            let entry = Effect { feature: FeatureId(1), token: TokenIndex(2), value };
            Effects::new(hook.clone(), 4, 3, vec![entry], [vec![0.5; 3], Vec::new()])
        };
        let parts = Parts::open(&save_dir, false).unwrap();
        for (number, value) in [(0, 1.0), (1, 2.0)] {
            let found = BTreeMap::from([(hook.clone(), Found::Tokens(effects(value)))]);
            parts.add(number, &about, &question(f64::from(value)), &found).unwrap();
        }
        let (told, found) = read(&folder.path().join("effects.parts/question-1")).unwrap();
        assert_eq!((told.questions.len(), told.questions[0].score), (1, 2.0));
        assert_eq!(found, [vec![effects(2.0)]]);
        // Nothing is thrown away unasked.
        let error = Parts::open(&save_dir, false).unwrap_err().to_string();
        assert!(error.contains("effects.parts") && error.contains("--overwrite"), "{error}");
        Parts::open(&save_dir, true).unwrap();
        assert!(!folder.path().join("effects.parts").exists());
        parts.remove().unwrap();
    }
}
