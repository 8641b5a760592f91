//! Random access to the records of JSON and JSONL files, by an index of where each begins.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::DataError;
use crate::files::DataFile;
use crate::json;
use crate::json_index::{self, Place, index};
use crate::sample::{Field, Sample};

/// One or more JSON files read as one sequence of records. Only the records' places are held in memory.
#[derive(Debug)]
pub(crate) struct JsonSet {
    files: Vec<JsonFile>,
    fields: Vec<Field>,
}

#[derive(Debug)]
struct JsonFile {
    path: PathBuf,
    image_root: PathBuf,
    /// Number of its first record in the data set.
    first: usize,
    /// Offset and length of each record's bytes.
    records: Vec<Place>,
    handle: Mutex<File>,
}

impl JsonSet {
    /// `image_root` of `None` stands for each file's own folder.
    pub(crate) fn open(
        files: &[DataFile],
        image_root: Option<&Path>,
        fields: &[Field],
    ) -> Result<Self, DataError> {
        let mut first = 0;
        let mut opened = Vec::with_capacity(files.len());
        for DataFile { path, .. } in files {
            let handle = File::open(path).map_err(DataError::io("open", path))?;
            let records = index(BufReader::with_capacity(1 << 20, &handle), path)?;
            let image_root = image_root.or(path.parent()).unwrap_or(Path::new("")).to_owned();
            let rows = records.len();
            opened.push(JsonFile {
                path: path.clone(),
                image_root,
                first,
                records,
                handle: Mutex::new(handle),
            });
            first += rows;
        }
        Ok(Self { files: opened, fields: fields.to_owned() })
    }

    pub(crate) fn len(&self) -> usize {
        self.files.last().map_or(0, |file| file.first + file.records.len())
    }

    fn file_of(&self, index: usize) -> &JsonFile {
        &self.files[self.files.partition_point(|file| file.first <= index) - 1]
    }

    /// The file record `index` is in, and its number there.
    pub(crate) fn place(&self, index: usize) -> (PathBuf, usize) {
        let file = self.file_of(index);
        (file.path.clone(), index - file.first)
    }

    /// How many images record `index` names; their files are not read.
    pub(crate) fn n_images(&self, index: usize) -> Result<usize, DataError> {
        let file = self.file_of(index);
        let row = index - file.first;
        let text = file.read(row).map_err(DataError::io("read", &file.path))?;
        json::n_images(&text).map_err(|source| DataError::Record { path: file.path.clone(), row, source })
    }

    pub(crate) fn get(&self, index: usize) -> Result<Sample, DataError> {
        let file = self.file_of(index);
        let row = index - file.first;
        let text = file.read(row).map_err(DataError::io("read", &file.path))?;
        json::sample(&text, &file.image_root, &self.fields).map_err(|source| DataError::Record {
            path: file.path.clone(),
            row,
            source,
        })
    }
}

impl JsonFile {
    fn read(&self, row: usize) -> std::io::Result<Vec<u8>> {
        json_index::read(&self.handle, self.records[row])
    }
}
