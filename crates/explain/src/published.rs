//! Explanation files as multimodal-sae publishes them: a list of objects with one member each, named after the feature.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::{ExplainError, FeatureKey};

/// What a published file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The text of each feature; of several the last, since later runs append.
    pub texts: BTreeMap<FeatureKey, String>,
    /// How many texts were replaced by later ones of the same feature.
    pub duplicates: usize,
}

/// Reads `[{"model.layers.24_feature12": "..."}, ...]`. Members named `prompt`, which some files have, are passed over.
///
/// # Errors
/// When the file cannot be read, is no such list, or names something that is no feature.
pub fn read_published(path: &Path) -> Result<Published, ExplainError> {
    let bytes = fs::read(path).map_err(ExplainError::io("read", path))?;
    let wrong = |problem: String| ExplainError::Published { path: path.to_owned(), problem };
    let list: Vec<BTreeMap<String, String>> =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut published = Published::default();
    for (name, text) in list.into_iter().flatten().filter(|(name, _)| name != "prompt") {
        let key: FeatureKey =
            name.parse().map_err(|error: crate::record::FeatureKeyError| wrong(error.to_string()))?;
        published.duplicates += usize::from(published.texts.insert(key, text).is_some());
    }
    Ok(published)
}

/// Writes such a file, one feature a line, beside its place and renamed; texts are taken one by one.
///
/// # Errors
/// When the file cannot be written, or a text is an error.
pub fn write_published<E: From<ExplainError>>(
    path: &Path,
    texts: impl Iterator<Item = Result<(FeatureKey, String), E>>,
) -> Result<(), E> {
    // Processes in containers of one folder may have the same id.
    let part = path.with_extension(format!("json.part-{:x}", RandomState::new().hash_one(())));
    let io = |action| ExplainError::io(action, path);
    let write = || -> Result<(), E> {
        let file = fs::File::create(&part).map_err(io("write"))?;
        let mut file = BufWriter::new(file);
        let mut before = "[";
        for text in texts {
            let (key, text) = text?;
            let text = serde_json::Value::String(text);
            write!(file, "{before}\n    {{\"{key}\": {text}}}").map_err(io("write"))?;
            before = ",";
        }
        let empty = if before == "[" { "[" } else { "" };
        writeln!(file, "{empty}\n]").and_then(|()| file.flush()).map_err(io("write"))?;
        Ok(fs::rename(&part, path).map_err(io("write"))?)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_back_sorted_and_later_lines_win() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model_layers_24.json");
        fs::write(
            &path,
            r#"[{"model.layers.24_feature12": "old"}, {"prompt": "x"}, {"model.layers.24_feature3": "a \"b\" ü"},
                {"model.layers.24_feature12": "new"}]"#,
        )
        .unwrap();
        let published = read_published(&path).unwrap();
        let texts: Vec<_> =
            published.texts.iter().map(|(key, text)| (key.feature.0, text.as_str())).collect();
        assert_eq!((texts, published.duplicates), (vec![(3, "a \"b\" ü"), (12, "new")], 1));
        let all = published.texts.clone().into_iter().map(Ok::<_, ExplainError>);
        write_published(&path, all).unwrap();
        assert_eq!(read_published(&path).unwrap(), Published { duplicates: 0, ..published });
        write_published(&path, std::iter::empty::<Result<_, ExplainError>>()).unwrap();
        assert_eq!(read_published(&path).unwrap(), Published::default());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        for (text, says) in [
            (r#"{"model.layers.24_feature12": "x"}"#, "expected a sequence"),
            (r#"[{"model.layers.24_feature12": 3}]"#, "expected a string"),
            (r#"[{"model.layers.24": "x"}]"#, "names no feature"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read_published(&path).unwrap_err().to_string();
            assert!(error.contains("x.json") && error.contains(says), "{error}");
        }
    }
}
