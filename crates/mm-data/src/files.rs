//! Which files a data set consists of, and which split each belongs to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::DataError;

/// Image file endings, lower case.
const IMAGE_ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// JSON files that describe a data set and are not its records.
const NOT_RECORDS: [&str; 7] = [
    "run.json",
    "bad_records.jsonl",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "metadata.jsonl",
];

/// Words that name a split wherever they stand in a path, as the Hub has them.
const SPLIT_WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// A file and its path below the data set's root, `/` between the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
}

/// What a file's ending says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Parquet,
    Json,
    Tokens,
    Image,
}

impl FileKind {
    pub(crate) fn of(name: &str) -> Option<Self> {
        let file_name = name.rsplit('/').next().unwrap_or(name);
        let ending = file_name.rsplit_once('.')?.1.to_ascii_lowercase();
        match ending.as_str() {
            "parquet" => Some(Self::Parquet),
            "json" | "jsonl" if !NOT_RECORDS.contains(&file_name) && !is_sidecar(file_name) => {
                Some(Self::Json)
            }
            "bin" => Some(Self::Tokens),
            ending if IMAGE_ENDINGS.contains(&ending) => Some(Self::Image),
            _ => None,
        }
    }
}

/// Whether a file describes the token file beside it.
fn is_sidecar(name: &str) -> bool {
    name.ends_with(".bin.json")
}

/// All files below `root` that hold data, in the order of their names; hidden ones are left out, links followed.
pub(crate) fn list(root: &Path) -> Result<Vec<DataFile>, DataError> {
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_str().is_some_and(|name| name.starts_with('.'))
    };
    let mut files = Vec::new();
    for entry in WalkDir::new(root).follow_links(true).into_iter().filter_entry(visible) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            DataError::io("list", path)(error.into())
        })?;
        if entry.file_type().is_file() {
            let relative = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            files.push(DataFile { name: parts.join("/"), path: entry.into_path() });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// The split a file belongs to, from its path below the data set's root: what it says, else its own name.
fn split_of(name: &str) -> String {
    said_split(name).unwrap_or_else(|| stem(name).to_owned())
}

/// The split a path says.
///
/// In this order: `data/{split}-00000-of-00002.parquet`; a word such as `train`, `val` or `test` in the file's
/// name or, inner ones first, its folders; for a numbered file (`0000.parquet`) its folder's name.
fn said_split(name: &str) -> Option<String> {
    let stem = stem(name);
    let mut folders = name.split('/').rev().skip(1);
    if let Some(split) = sharded_split(stem) {
        return Some(split.to_owned());
    }
    if let Some(split) = std::iter::once(stem).chain(folders.clone()).find_map(split_word) {
        return Some(split.to_owned());
    }
    let numbered = stem.trim_start_matches("part-").bytes().all(|byte| byte.is_ascii_digit());
    numbered.then(|| folders.next().unwrap_or("train").to_owned())
}

fn stem(name: &str) -> &str {
    let file_name = name.rsplit('/').next().unwrap_or(name);
    file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem)
}

/// `train` of `train-00000-of-00002` and of `train-00000-of-00002-0123456789abcdef`.
fn sharded_split(stem: &str) -> Option<&str> {
    let (head, tail) = stem.rsplit_once("-of-")?;
    let (split, index) = head.rsplit_once('-')?;
    let total = tail.split('-').next().unwrap_or(tail);
    let digits = |text: &str| text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(index) && digits(total) && !split.is_empty()).then_some(split)
}

/// The split a folder or file name has among its words.
pub(crate) fn split_word(part: &str) -> Option<&'static str> {
    let lower = part.to_lowercase();
    let found = lower
        .split(|c: char| !c.is_alphanumeric())
        .find_map(|word| SPLIT_WORDS.iter().find(|(_, words)| words.contains(&word)));
    found.map(|(split, _)| *split)
}

/// The files of one split. `None` takes the only split there is; `train` takes all files where none says a split.
pub(crate) fn of_split(
    root: &Path,
    files: Vec<DataFile>,
    split: Option<&str>,
) -> Result<Vec<DataFile>, DataError> {
    let present: BTreeSet<String> = files.iter().map(|file| split_of(&file.name)).collect();
    let present: Vec<String> = present.into_iter().collect();
    let wanted = match split {
        None if present.len() > 1 => return Err(DataError::SeveralSplits { path: root.to_owned(), present }),
        None => return Ok(files),
        Some(split) if present.iter().any(|name| name == split) => split,
        Some("train") if files.iter().all(|file| said_split(&file.name).is_none()) => return Ok(files),
        Some(split) => {
            return Err(DataError::MissingSplit { path: root.to_owned(), split: split.to_owned(), present });
        }
    };
    Ok(files.into_iter().filter(|file| split_of(&file.name) == wanted).collect())
}

/// The images of one split and the metadata files among them. Folders named as splits directly in the root are
/// splits; without any, all images are the one split there is, whatever it is called.
pub(crate) fn of_image_split(
    root: &Path,
    mut images: Vec<DataFile>,
    mut metadata: Vec<DataFile>,
    split: Option<&str>,
) -> Result<(Vec<DataFile>, Vec<DataFile>), DataError> {
    fn top(file: &DataFile) -> Option<&str> {
        file.name.split_once('/').map(|(top, _)| top)
    }
    let folders: BTreeSet<&str> = images.iter().filter_map(top).collect();
    let is_split = |folder: &&str| split_word(folder).is_some() || split == Some(*folder);
    let present: Vec<String> = folders.into_iter().filter(is_split).map(str::to_owned).collect();
    let wanted = match split {
        _ if present.is_empty() => return Ok((images, metadata)),
        Some(split) => present.iter().find(|folder| *folder == split || split_word(folder) == Some(split)),
        None if images.iter().all(|file| top(file) == Some(&present[0])) => present.first(),
        None => return Err(DataError::SeveralSplits { path: root.to_owned(), present }),
    };
    let Some(wanted) = wanted else {
        let split = split.unwrap_or_default().to_owned();
        return Err(DataError::MissingSplit { path: root.to_owned(), split, present });
    };
    images.retain(|file| top(file) == Some(wanted));
    metadata.retain(|file| top(file) == Some(wanted));
    Ok((images, metadata))
}

/// Whether a file of this name below a data set's root can be part of the split.
pub(crate) fn may_be_of_split(name: &str, split: Option<&str>) -> bool {
    let is_data = FileKind::of(name).is_some() || name.ends_with("metadata.jsonl") || is_sidecar(name);
    let said = said_split(name);
    is_data
        && (split.is_none()
            || said.is_none()
            || said.as_deref() == split
            || split_of(name) == split.unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_from_paths() {
        for (name, split) in [
            ("data/train-00000-of-00001.parquet", "train"),
            ("data/test_std-00003-of-00120-0a1b2c3d4e5f6789.parquet", "test_std"),
            ("shapes-00000-of-00002.parquet", "shapes"),
            ("train.parquet", "train"),
            ("default/train/0000.parquet", "train"),
            ("vqa/bench/0000.parquet", "bench"),
            ("0000.parquet", "train"),
            ("my_val_file.parquet", "validation"),
            ("dev/part-00001.parquet", "validation"),
            ("trainer.parquet", "trainer"),
            ("held_out.jsonl", "held_out"),
            ("one-of-us.parquet", "one-of-us"),
        ] {
            assert_eq!(split_of(name), split, "{name}");
        }
    }

    #[test]
    fn kinds_from_endings() {
        assert_eq!(FileKind::of("a/b.parquet"), Some(FileKind::Parquet));
        assert_eq!(FileKind::of("a/b.JPG"), Some(FileKind::Image));
        assert_eq!(FileKind::of("run.json"), None);
        assert_eq!(FileKind::of("data/train.bin"), Some(FileKind::Tokens));
        assert_eq!(FileKind::of("data/train.bin.json"), None);
        assert!(may_be_of_split("data/train.bin.json", Some("train")));
        assert!(!may_be_of_split("data/test.bin.json", Some("train")));
        assert_eq!(FileKind::of("chat.json"), Some(FileKind::Json));
        assert_eq!(FileKind::of("README.md"), None);
        assert_eq!(FileKind::of("parquet"), None);
    }
}
