//! A folder of image files, with captions or conversations from `metadata.jsonl` where there is one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::files::DataFile;
use crate::json;
use crate::sample::{EncodedImage, Field, Sample};
use crate::{DataError, RecordError};

/// Image files in the order of their names.
#[derive(Debug)]
pub(crate) struct ImageFolder {
    files: Vec<DataFile>,
    /// What `metadata.jsonl` says, by the image's number.
    notes: BTreeMap<usize, Map<String, Value>>,
    fields: Vec<Field>,
}

impl ImageFolder {
    /// `files` are the images; `metadata` the `metadata.jsonl` files, each about the images below its folder.
    pub(crate) fn open(
        files: Vec<DataFile>,
        metadata: &[DataFile],
        fields: &[Field],
    ) -> Result<Self, DataError> {
        let by_name: BTreeMap<&str, usize> =
            files.iter().enumerate().map(|(number, file)| (file.name.as_str(), number)).collect();
        let mut notes = BTreeMap::new();
        for DataFile { path, name } in metadata {
            let folder = name.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
            let text = std::fs::read_to_string(path).map_err(DataError::io("read", path))?;
            for (row, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let bad = |source| DataError::Record { path: path.clone(), row, source };
                let note: Map<String, Value> =
                    serde_json::from_str(line).map_err(|error| bad(RecordError::Json(error)))?;
                let image = note.get("file_name").and_then(Value::as_str);
                let image = image.ok_or_else(|| bad(RecordError::Missing { field: "file_name" }))?;
                let missing = || {
                    let source = std::io::Error::from(std::io::ErrorKind::NotFound);
                    bad(RecordError::Image { path: path.with_file_name(image), source })
                };
                let number = *by_name.get(format!("{folder}{image}").as_str()).ok_or_else(missing)?;
                notes.insert(number, note);
            }
        }
        Ok(Self { files, notes, fields: fields.to_owned() })
    }

    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// The file record `index` is.
    pub(crate) fn place(&self, index: usize) -> (PathBuf, usize) {
        (self.files[index].path.clone(), index)
    }

    pub(crate) fn get(&self, index: usize) -> Result<Sample, DataError> {
        let file = &self.files[index];
        self.sample(index, file).map_err(|source| DataError::Record {
            path: file.path.clone(),
            row: index,
            source,
        })
    }

    fn sample(&self, index: usize, file: &DataFile) -> Result<Sample, RecordError> {
        let mut sample = Sample { id: Some(file.name.clone()), ..Sample::default() };
        let note = self.notes.get(&index);
        for field in &self.fields {
            match (field, note) {
                (Field::Images, _) => {
                    let bytes = std::fs::read(&file.path)
                        .map_err(|source| RecordError::Image { path: file.path.clone(), source })?;
                    sample.images = vec![EncodedImage { name: Some(file.name.clone()), bytes }];
                }
                (Field::Conversations, Some(note)) => sample.conversations = json::conversation(note)?,
                (Field::Caption, Some(note)) => sample.caption = json::text(note, Field::Caption)?,
                (Field::Text, Some(note)) => sample.text = json::text(note, Field::Text)?,
                (Field::Masks, _) | (_, None) => {}
            }
        }
        Ok(sample)
    }
}
