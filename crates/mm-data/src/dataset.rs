//! [`Dataset`]: whatever the files, records by number.

use std::path::{Path, PathBuf};

use crate::files::{self, DataFile, FileKind};
use crate::fingerprint::Fingerprint;
use crate::image_folder::ImageFolder;
use crate::json_set::JsonSet;
use crate::parquet_set::ParquetSet;
use crate::sample::{Field, Sample};
use crate::tokens::{TokenOptions, TokenSet};
use crate::{DataError, RecordError};

/// A data set on disk, read record by record in any order and from any thread.
///
/// Only the records' places are held in memory, and a few rows around those read last.
#[derive(Debug)]
pub struct Dataset {
    source: Source,
    name: String,
    split: Option<String>,
    fingerprint: String,
}

#[derive(Debug)]
enum Source {
    Parquet(ParquetSet),
    Images(ImageFolder),
    Json(JsonSet),
    Tokens(TokenSet),
}

/// How to open a [`Dataset`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// The split, for a folder that has several. A single file is read whatever this says.
    pub split: Option<String>,
    /// What to read; parquet columns not asked for are not touched.
    pub fields: Vec<Field>,
    /// What image paths in JSON are relative to; `None` for the JSON file's own folder.
    pub image_root: Option<PathBuf>,
    /// How to read token files.
    pub tokens: TokenOptions,
}

impl Default for OpenOptions {
    /// The only split, every field.
    fn default() -> Self {
        Self { split: None, fields: Field::ALL.to_vec(), image_root: None, tokens: TokenOptions::default() }
    }
}

impl Dataset {
    /// Opens a file or folder with every field; see [`Dataset::open_with`].
    ///
    /// # Errors
    /// As [`Dataset::open_with`].
    pub fn open(source: &Path, split: Option<&str>) -> Result<Self, DataError> {
        Self::open_with(source, &OpenOptions { split: split.map(str::to_owned), ..OpenOptions::default() })
    }

    /// Opens a parquet, JSON or JSONL file or a token file (`.bin`), or a folder of parquet files, of JSON files, of
    /// token files or of images.
    ///
    /// A folder is what its files are, hidden ones and links included as usual: parquet before JSON before
    /// tokens before images, so that the images a LLaVA JSON names may lie beside it. Splits of all but images come
    /// from their paths (`data/train-00000-of-00002.parquet`, `train.parquet`, `train/0000.parquet`); those of
    /// an image folder are the folders `train`, `validation`, `test` directly in it, if there are any.
    ///
    /// A JSON file is a list of records, or an object with one list of records under a key that is no field's name
    /// (`{"data": [...]}`), or one record over several lines; every other file that begins with `{` has one record per
    /// line.
    ///
    /// A token file is what sparsify's `MemmapDataset` reads: ids one after another, u16 or u32, little endian, nothing
    /// else. Each `ctx_len` of them are a record; what is left at the end of a file is left out. The file is mapped
    /// into memory, not read.
    ///
    /// # Errors
    /// When there is nothing there or nothing of that kind, a file is damaged, a column has an impossible type,
    /// the split is missing or must be chosen, or there are no records.
    pub fn open_with(source: &Path, options: &OpenOptions) -> Result<Self, DataError> {
        if !source.exists() {
            return Err(DataError::NotFound { path: source.to_owned() });
        }
        let (kind, files, metadata) =
            if source.is_dir() { in_folder(source, options)? } else { single_file(source)? };
        let fields = &options.fields;
        let mut fingerprint;
        let opened = match kind {
            FileKind::Parquet => {
                let set = ParquetSet::open(&files, fields)?;
                fingerprint = Fingerprint::new("parquet");
                files.iter().try_for_each(|file| fingerprint.parquet(&file.name, &file.path))?;
                Source::Parquet(set)
            }
            FileKind::Json => {
                fingerprint = Fingerprint::new("json");
                files.iter().try_for_each(|file| fingerprint.content(&file.name, &file.path))?;
                Source::Json(JsonSet::open(&files, options.image_root.as_deref(), fields)?)
            }
            FileKind::Tokens => {
                let set = TokenSet::open(&files, options.tokens)?;
                fingerprint = Fingerprint::new("tokens");
                fingerprint.line(&set.ctx_len().to_string());
                for (file, (dtype, sha256)) in files.iter().zip(set.facts()) {
                    fingerprint.line(dtype.name());
                    fingerprint.tokens(&file.name, &file.path, sha256)?;
                }
                Source::Tokens(set)
            }
            FileKind::Image => {
                fingerprint = Fingerprint::new("images");
                files.iter().try_for_each(|file| fingerprint.file(&file.name, &file.path))?;
                metadata.iter().try_for_each(|file| fingerprint.content(&file.name, &file.path))?;
                Source::Images(ImageFolder::open(files, &metadata, fields)?)
            }
        };
        let split = options.split.clone();
        let set = Self { source: opened, name: name_of(source), split, fingerprint: fingerprint.finish() };
        if set.is_empty() {
            return Err(DataError::Empty { path: source.to_owned() });
        }
        Ok(set)
    }

    /// How many records there are; never 0.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Parquet(set) => set.len(),
            Source::Images(set) => set.len(),
            Source::Json(set) => set.len(),
            Source::Tokens(set) => set.len(),
        }
    }

    /// Always false: a data set without records does not open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Record `index`.
    ///
    /// # Errors
    /// [`DataError::Record`] when this record is bad, another when the file cannot be read.
    ///
    /// # Panics
    /// When `index` is not below [`Dataset::len`].
    #[track_caller]
    pub fn get(&self, index: usize) -> Result<Sample, DataError> {
        assert!(index < self.len(), "record {index} of a data set of {}", self.len());
        match &self.source {
            Source::Parquet(set) => set.get(index),
            Source::Images(set) => set.get(index),
            Source::Json(set) => set.get(index),
            Source::Tokens(set) => set.get(index),
        }
    }

    /// How many images record `index` has. Of JSON only the record is read, not its images.
    ///
    /// # Errors
    /// As [`Dataset::get`].
    ///
    /// # Panics
    /// When `index` is not below [`Dataset::len`].
    #[track_caller]
    pub fn n_images(&self, index: usize) -> Result<usize, DataError> {
        assert!(index < self.len(), "record {index} of a data set of {}", self.len());
        match &self.source {
            Source::Parquet(set) => Ok(set.get(index)?.images.len()),
            Source::Images(_) => Ok(1),
            Source::Json(set) => set.n_images(index),
            Source::Tokens(_) => Ok(0),
        }
    }

    /// Whether records may have masks: of the fields it was opened with, whether that is one and there is such a column.
    pub fn has_masks(&self) -> bool {
        matches!(&self.source, Source::Parquet(set) if set.has_masks())
    }

    /// The file record `index` is in, and its number there.
    ///
    /// # Panics
    /// When `index` is not below [`Dataset::len`].
    #[track_caller]
    pub fn place(&self, index: usize) -> (PathBuf, usize) {
        assert!(index < self.len(), "record {index} of a data set of {}", self.len());
        match &self.source {
            Source::Parquet(set) => set.place(index),
            Source::Images(set) => set.place(index),
            Source::Json(set) => set.place(index),
            Source::Tokens(set) => set.place(index),
        }
    }

    /// The error for a record that a later stage could not use (an image that does not decode, say), naming
    /// its file and row.
    ///
    /// # Panics
    /// When `index` is not below [`Dataset::len`].
    #[track_caller]
    pub fn unusable(&self, index: usize, cause: impl std::error::Error + Send + Sync + 'static) -> DataError {
        let (path, row) = self.place(index);
        DataError::Record { path, row, source: RecordError::Unusable(Box::new(cause)) }
    }

    /// The Hub id for a Hub download, else the file's or folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The split that was asked for.
    pub fn split(&self) -> Option<&str> {
        self.split.as_deref()
    }

    /// SHA-256 (hex) of what identifies the content: the kind (`parquet`, `images`, `json`, `tokens`) and, for each file in
    /// the order it is read, its path below the root, its size and one of: for parquet the SHA-256 of its footer
    /// (schema, offsets and compressed sizes of every column chunk, statistics); for JSON and `metadata.jsonl` that
    /// of the whole file; for token files that too, as the sidecar gives it where there is one, with dtype and
    /// context length; for images nothing more.
    ///
    /// It does not depend on where the root lies, on times or on the fields read. An image file replaced by
    /// another of exactly its size goes unseen.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

type Found = (FileKind, Vec<DataFile>, Vec<DataFile>);

fn single_file(path: &Path) -> Result<Found, DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match FileKind::of(&name) {
        Some(kind) => Ok((kind, vec![DataFile { path: path.to_owned(), name }], Vec::new())),
        None => Err(DataError::NoData { path: path.to_owned() }),
    }
}

/// The files of the folder's kind and split, and for images the metadata files beside them.
fn in_folder(root: &Path, options: &OpenOptions) -> Result<Found, DataError> {
    let split = options.split.as_deref();
    let files = files::list(root)?;
    let of_kind = |kind| files.iter().filter(move |file| FileKind::of(&file.name) == Some(kind)).cloned();
    for kind in [FileKind::Parquet, FileKind::Json, FileKind::Tokens] {
        let found: Vec<DataFile> = of_kind(kind).collect();
        if !found.is_empty() {
            return Ok((kind, files::of_split(root, found, split)?, Vec::new()));
        }
    }
    let metadata =
        files.iter().filter(|file| file.path.file_name() == Some("metadata.jsonl".as_ref())).cloned();
    let (images, metadata) =
        files::of_image_split(root, of_kind(FileKind::Image).collect(), metadata.collect(), split)?;
    if images.is_empty() {
        return Err(DataError::NoData { path: root.to_owned() });
    }
    Ok((FileKind::Image, images, metadata))
}

/// `owner/name` for `…/datasets--owner--name/snapshots/<commit>`, else the last part of the path.
fn name_of(source: &Path) -> String {
    let mut parts = source.iter().rev().map(|part| part.to_string_lossy());
    let last = parts.next().unwrap_or_default();
    if parts.next().as_deref() == Some("snapshots")
        && let Some(repository) = parts.next()
        && let Some((_, id)) = repository.split_once("--")
    {
        return id.replacen("--", "/", 1);
    }
    last.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name_of(Path::new("/data/shapes")), "shapes");
        let snapshot = "/cache/hub/datasets--lmms-lab--LLaVA-NeXT-Data/snapshots/0123abc";
        assert_eq!(name_of(Path::new(snapshot)), "lmms-lab/LLaVA-NeXT-Data");
    }
}
