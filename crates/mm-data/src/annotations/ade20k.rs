//! [`Ade20k`]: ADE20K in the layout of its scene parsing benchmark.

use std::path::{Path, PathBuf};

use super::AnnotatedImages;
use super::label_map::LabelMap;
use super::labels::{self, Classes};
use crate::files::{self, DataFile, FileKind};
use crate::fingerprint::Fingerprint;
use crate::json;
use crate::sample::Sample;
use crate::{DataError, RecordError};

/// The names of the 150 classes.
const NAMES: &str = "objectInfo150.txt";
/// The classes of the full ADE20K.
const PICKLE: &str = "index_ade20k.pkl";

/// ADE20K as `ADEChallengeData2016.zip` holds it (SceneParsing): `images/validation/*.jpg`, for each a PNG of class
/// numbers in `annotations/validation`, 0 for what has no class, and `objectInfo150.txt`, whose lines are a class's
/// number, some statistics and its names, separated by tabs.
///
/// An image has one mask per class. A class's labels are its names, the first one first, but for further names that are
/// another class's first one. The full ADE20K (`*_seg.png`) is not read: its names are in a Python pickle only.
#[derive(Debug)]
pub struct Ade20k {
    root: PathBuf,
    split: String,
    images: Vec<DataFile>,
    classes: Classes,
    fingerprint: String,
}

impl Ade20k {
    /// Opens a split, `training` or `validation`.
    ///
    /// # Errors
    /// When the folder is laid out otherwise, or the names of the classes cannot be read.
    pub fn open(root: &Path, split: &str) -> Result<Self, DataError> {
        for kind in ["images", "annotations"] {
            let folder = root.join(kind).join(split);
            if !folder.is_dir() {
                return Err(layout_error(root, &folder));
            }
        }
        let folder = root.join("images").join(split);
        let mut images = files::list(&folder)?;
        images.retain(|file| FileKind::of(&file.name) == Some(FileKind::Image));
        if images.is_empty() {
            return Err(DataError::Empty { path: folder });
        }
        let classes = read_names(&root.join(NAMES))?;
        let mut set = Self {
            root: root.to_owned(),
            split: split.to_owned(),
            images,
            classes,
            fingerprint: String::new(),
        };
        let mut fingerprint = Fingerprint::new("ade20k");
        fingerprint.content(NAMES, &root.join(NAMES))?;
        for file in &set.images {
            fingerprint.file(&file.name, &file.path)?;
            let map = set.map_path(file);
            // A missing one is met again when it is read.
            if map.exists() {
                fingerprint.file(&file.name, &map)?;
            }
        }
        set.fingerprint = fingerprint.finish();
        Ok(set)
    }

    fn map_path(&self, image: &DataFile) -> PathBuf {
        self.root.join("annotations").join(&self.split).join(Path::new(&image.name).with_extension("png"))
    }

    fn sample(&self, file: &DataFile) -> Result<Sample, RecordError> {
        let folder = self.root.join("images").join(&self.split);
        let image = json::read_image(&folder, &file.name)?;
        let map = LabelMap::read(&self.map_path(file))?;
        let mut masks = Vec::new();
        for class in map.values().into_iter().filter(|&class| class > 0) {
            let id = u64::from(class);
            let unknown = || RecordError::UnknownId { what: "class", id, known: self.classes.len() };
            let labels = self.classes.get(&id).cloned().ok_or_else(unknown)?;
            masks.push(map.mask(class).annotation(labels));
        }
        let id = Path::new(&file.name).with_extension("").to_string_lossy().into_owned();
        Ok(Sample { id: Some(id), images: vec![image], masks, ..Sample::default() })
    }
}

fn layout_error(root: &Path, missing: &Path) -> DataError {
    let full = root.join(PICKLE).exists() || root.join("images").join("ADE").is_dir();
    let got = if full {
        "the full ADE20K, whose names are in a pickle".to_owned()
    } else {
        format!("no folder {}", missing.display())
    };
    DataError::AnnotationLayout {
        path: root.to_owned(),
        expected: "images/SPLIT, annotations/SPLIT and objectInfo150.txt, as ADEChallengeData2016.zip (SceneParsing) has them",
        got,
    }
}

/// Reads lines such as `2`, `0.1072`, `6046`, `612`, `building, edifice`, separated by tabs; a first line may say what they are.
fn read_names(path: &Path) -> Result<Classes, DataError> {
    let text = std::fs::read_to_string(path).map_err(DataError::io("read the names of classes in", path))?;
    let mut named = Vec::new();
    for (row, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (first, rest) = line.split_once('\t').unwrap_or((line, ""));
        let names = rest.rsplit('\t').next().unwrap_or_default();
        let names: Vec<String> = names
            .split([',', ';'])
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        match first.trim().parse() {
            Ok(class) if !names.is_empty() => named.push((class, names)),
            Err(_) if row == 0 && !names.is_empty() => {}
            _ => {
                return Err(DataError::AnnotationLayout {
                    path: path.to_owned(),
                    expected: "lines that begin with a class's number and end with its names, separated by tabs",
                    got: format!("line {}: {line:?}", row + 1),
                });
            }
        }
    }
    if named.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    Ok(labels::classes(named))
}

impl AnnotatedImages for Ade20k {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize) -> Result<Sample, DataError> {
        assert!(index < self.len(), "image {index} of {}", self.len());
        let file = &self.images[index];
        self.sample(file).map_err(|source| DataError::Record { path: file.path.clone(), row: index, source })
    }

    fn place(&self, index: usize) -> (PathBuf, usize) {
        assert!(index < self.len(), "image {index} of {}", self.len());
        (self.images[index].path.clone(), index)
    }

    /// Of the file of names, and names and sizes of images and label maps.
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Classes, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAMES);
        std::fs::write(&path, text).unwrap();
        read_names(&path)
    }

    #[test]
    fn names_of_classes() {
        let text = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n22 \t0.0074\t709\t75\twater\n\
                    9\t0.0198\t4688\t460\twindowpane, window \n";
        let found = names(text).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!((&found[&1][..], &found[&22][..]), (&["wall".to_owned()][..], &["water".to_owned()][..]));
        assert_eq!(found[&9], ["windowpane", "window"]);
        // Without a head line, and with the separator of later lists.
        assert_eq!(names("2\tbuilding;edifice\r\n").unwrap()[&2], ["building", "edifice"]);
    }

    #[test]
    fn what_names_no_classes() {
        for (text, says) in [
            ("1 0.1 wall\n", "line 1: \"1 0.1 wall\""),
            ("1\twall\nx\tsky\n", "line 2"),
            ("1\t\n", "line 1"),
            ("Idx\tName\n", "is empty"),
        ] {
            let error = names(text).unwrap_err().to_string();
            assert!(error.contains(NAMES) && error.contains(says), "{error}");
        }
    }
}
