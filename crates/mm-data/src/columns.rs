//! From the columns of a parquet file to the fields of a [`Sample`].
//!
//! Types are taken from the parquet schema, not from the Arrow schema a writer may have embedded, so that
//! text is `Utf8`, bytes are `Binary` and lists are `List` whether pandas, polars or `datasets` wrote them.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::{DataType, Field as ArrowField, Fields, Schema};

use crate::sample::{EncodedImage, Field, MaskAnnotation, Role, Sample, Turn};
use crate::{DataError, RecordError};

/// The columns of one file that are read, by what they become.
#[derive(Clone, Debug, Default)]
pub(crate) struct Columns {
    id: Option<&'static str>,
    images: Option<&'static str>,
    conversations: Option<&'static str>,
    caption: Option<&'static str>,
    masks: Option<&'static str>,
    text: Option<&'static str>,
}

impl Columns {
    /// Finds the columns for `fields` in `schema` and checks their types.
    pub(crate) fn find(path: &Path, schema: &Schema, fields: &[Field]) -> Result<Self, DataError> {
        let mut columns = Self { id: find(path, schema, &["id"], is_text, TEXT)?, ..Self::default() };
        for field in fields {
            let names = field.names();
            match field {
                Field::Images => columns.images = find(path, schema, names, is_images, IMAGES)?,
                Field::Conversations => {
                    columns.conversations = find(path, schema, names, is_conversation, CONVERSATION)?;
                }
                Field::Caption => columns.caption = find(path, schema, names, is_text, TEXT)?,
                Field::Masks => columns.masks = find(path, schema, names, is_masks, MASKS)?,
                Field::Text => columns.text = find(path, schema, names, is_text, TEXT)?,
            }
        }
        let found = [columns.images, columns.conversations, columns.caption, columns.masks, columns.text];
        if found.iter().all(Option::is_none) {
            return Err(DataError::NoColumns {
                path: path.to_owned(),
                expected: fields.iter().flat_map(|field| field.names()).copied().collect(),
                present: schema.fields().iter().map(|field| field.name().clone()).collect(),
            });
        }
        Ok(columns)
    }

    /// The names of all of them.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.id, self.images, self.conversations, self.caption, self.masks, self.text].into_iter().flatten()
    }

    /// Whether there is one of masks.
    pub(crate) fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// Row `row` of `batch`.
    pub(crate) fn sample(&self, batch: &RecordBatch, row: usize) -> Result<Sample, RecordError> {
        let column = |name: Option<&str>| name.and_then(|name| batch.column_by_name(name));
        let mut sample = Sample {
            id: column(self.id).map(|array| text(array, row, "id")).transpose()?.flatten(),
            caption: column(self.caption).map(|array| text(array, row, "caption")).transpose()?.flatten(),
            text: column(self.text).map(|array| text(array, row, "text")).transpose()?.flatten(),
            ..Sample::default()
        };
        if let Some(array) = column(self.images) {
            sample.images = images(array, row)?;
        }
        if let Some(array) = column(self.conversations) {
            sample.conversations = conversation(array, row)?;
        }
        if let Some(array) = column(self.masks) {
            sample.masks = masks(array, row)?;
        }
        Ok(sample)
    }
}

const TEXT: &str = "text or an integer";
const IMAGES: &str = "bytes, a struct of bytes and path, or a list of these";
const CONVERSATION: &str = "a list of structs of from and value, or of role and content";
const MASKS: &str =
    "a list of structs of labels (list of text) and mask (bytes, or a struct of bytes and path)";

fn find(
    path: &Path,
    schema: &Schema,
    names: &[&'static str],
    fits: fn(&DataType) -> bool,
    expected: &'static str,
) -> Result<Option<&'static str>, DataError> {
    for &name in names {
        let Ok(field) = schema.field_with_name(name) else { continue };
        if fits(field.data_type()) {
            return Ok(Some(name));
        }
        return Err(DataError::ColumnType {
            path: path.to_owned(),
            column: name.to_owned(),
            expected,
            got: field.data_type().to_string(),
        });
    }
    Ok(None)
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::Int32 | DataType::Int64)
}

fn is_image(kind: &DataType) -> bool {
    match kind {
        DataType::Binary => true,
        DataType::Struct(fields) => has(fields, "bytes", |kind| *kind == DataType::Binary),
        _ => false,
    }
}

fn is_images(kind: &DataType) -> bool {
    is_image(kind) || is_list_of(kind, is_image)
}

fn is_conversation(kind: &DataType) -> bool {
    let part = |kind: &DataType| matches!(kind, DataType::Struct(fields) if has(fields, "text", is_text) || has(fields, "type", is_text));
    let content = |kind: &DataType| is_text(kind) || is_list_of(kind, part);
    is_list_of(kind, |item| match item {
        DataType::Struct(fields) => {
            (has(fields, "from", is_text) && has(fields, "value", is_text))
                || (has(fields, "role", is_text) && has(fields, "content", content))
        }
        _ => false,
    })
}

fn is_masks(kind: &DataType) -> bool {
    is_list_of(kind, |item| match item {
        DataType::Struct(fields) => {
            has(fields, "labels", |kind| is_list_of(kind, is_text)) && has(fields, "mask", is_image)
        }
        _ => false,
    })
}

fn is_list_of(kind: &DataType, fits: impl Fn(&DataType) -> bool) -> bool {
    matches!(kind, DataType::List(item) if fits(item.data_type()))
}

fn has(fields: &Fields, name: &str, fits: impl Fn(&DataType) -> bool) -> bool {
    fields.iter().any(|field: &std::sync::Arc<ArrowField>| field.name() == name && fits(field.data_type()))
}

/// Text, or an integer written out; `None` for null. The column's type was checked when the file was opened.
fn text(array: &ArrayRef, row: usize, field: &'static str) -> Result<Option<String>, RecordError> {
    if array.is_null(row) {
        return Ok(None);
    }
    let value = match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        _ => return Err(RecordError::Type { field, expected: TEXT }),
    };
    Ok(Some(value))
}

/// The items of list `row`; `None` for null.
fn items(array: &ArrayRef, row: usize) -> Option<ArrayRef> {
    (!array.is_null(row)).then(|| array.as_list::<i32>().value(row))
}

fn images(array: &ArrayRef, row: usize) -> Result<Vec<EncodedImage>, RecordError> {
    if !matches!(array.data_type(), DataType::List(_)) {
        return Ok(image(array, row)?.into_iter().collect());
    }
    let Some(items) = items(array, row) else { return Ok(Vec::new()) };
    (0..items.len()).map(|item| image(&items, item)?.ok_or(RecordError::ImageBytes { path: None })).collect()
}

fn image(array: &ArrayRef, row: usize) -> Result<Option<EncodedImage>, RecordError> {
    if array.is_null(row) {
        return Ok(None);
    }
    let Some(parts) = array.as_struct_opt() else {
        return Ok(Some(EncodedImage { name: None, bytes: array.as_binary::<i32>().value(row).to_vec() }));
    };
    let name = member(parts, "path").map(|path| text(path, row, "image")).transpose()?.flatten();
    match member(parts, "bytes") {
        Some(bytes) if !bytes.is_null(row) => {
            Ok(Some(EncodedImage { name, bytes: bytes.as_binary::<i32>().value(row).to_vec() }))
        }
        // Some writers keep "no image" as a struct of two nulls.
        _ if name.is_none() => Ok(None),
        _ => Err(RecordError::ImageBytes { path: name }),
    }
}

fn conversation(array: &ArrayRef, row: usize) -> Result<Vec<Turn>, RecordError> {
    let Some(turns) = items(array, row) else { return Ok(Vec::new()) };
    let parts = turns.as_struct();
    let (speaker, content) = match (member(parts, "from"), member(parts, "value")) {
        (Some(from), Some(value)) => (Some(from), Some(value)),
        _ => (member(parts, "role"), member(parts, "content")),
    };
    let speaker = speaker.ok_or(RecordError::Missing { field: "from" })?;
    let content = content.ok_or(RecordError::Missing { field: "value" })?;
    (0..turns.len())
        .map(|turn| {
            let name = text(speaker, turn, "from")?.ok_or(RecordError::Missing { field: "from" })?;
            let said = match content.data_type() {
                DataType::List(_) => spoken_parts(content, turn)?,
                _ => text(content, turn, "value")?.ok_or(RecordError::Missing { field: "value" })?,
            };
            Ok(Turn { role: Role::parse(&name)?, text: said })
        })
        .collect()
}

/// Content in parts: `{type: "image"}` becomes `<image>`, texts stay; joined by line ends.
fn spoken_parts(array: &ArrayRef, row: usize) -> Result<String, RecordError> {
    let Some(items) = items(array, row) else { return Ok(String::new()) };
    let parts = items.as_struct();
    let mut lines = Vec::with_capacity(items.len());
    for item in 0..items.len() {
        let kind = member(parts, "type").map(|kind| text(kind, item, "type")).transpose()?.flatten();
        let words = member(parts, "text").map(|words| text(words, item, "text")).transpose()?.flatten();
        lines.extend(part_text(kind.as_deref(), words));
    }
    Ok(lines.join("\n"))
}

/// One part of a content list as text; `None` for what says nothing.
pub(crate) fn part_text(kind: Option<&str>, words: Option<String>) -> Option<String> {
    match kind {
        Some("image" | "image_url") => Some("<image>".to_owned()),
        _ => words,
    }
}

fn masks(array: &ArrayRef, row: usize) -> Result<Vec<MaskAnnotation>, RecordError> {
    let Some(items) = items(array, row) else { return Ok(Vec::new()) };
    let parts = items.as_struct();
    let labels = member(parts, "labels").ok_or(RecordError::Missing { field: "labels" })?;
    let mask = member(parts, "mask").ok_or(RecordError::Missing { field: "mask" })?;
    (0..items.len())
        .map(|item| {
            let words = self::items(labels, item);
            let words =
                words.iter().flat_map(|words| (0..words.len()).map(move |word| text(words, word, "labels")));
            Ok(MaskAnnotation {
                labels: words.filter_map(Result::transpose).collect::<Result<_, _>>()?,
                png: image(mask, item)?.ok_or(RecordError::MaskBytes)?.bytes,
            })
        })
        .collect()
}

fn member<'a>(parts: &'a StructArray, name: &str) -> Option<&'a ArrayRef> {
    parts.column_by_name(name)
}
