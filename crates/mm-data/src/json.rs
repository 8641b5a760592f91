//! One JSON record, in LLaVA's or the chat templates' form.

use std::path::Path;

use serde_json::{Map, Value};

use crate::RecordError;
use crate::columns::part_text;
use crate::sample::{EncodedImage, Field, Role, Sample, Turn};

/// Reads a record; image paths are relative to `image_root`.
pub(crate) fn sample(record: &[u8], image_root: &Path, fields: &[Field]) -> Result<Sample, RecordError> {
    let record: Map<String, Value> = serde_json::from_slice(record).map_err(RecordError::Json)?;
    let mut sample = Sample { id: scalar(&record, "id")?, ..Sample::default() };
    for field in fields {
        match field {
            Field::Images => sample.images = images(&record, image_root)?,
            Field::Conversations => sample.conversations = conversation(&record)?,
            Field::Caption => sample.caption = text(&record, Field::Caption)?,
            Field::Text => sample.text = text(&record, Field::Text)?,
            Field::Masks => {}
        }
    }
    Ok(sample)
}

/// The first of a field's names that is there and not null.
fn lookup(record: &Map<String, Value>, field: Field) -> Option<(&'static str, &Value)> {
    let mut names = field.names().iter();
    names.find_map(|&name| Some((name, record.get(name).filter(|value| !value.is_null())?)))
}

fn scalar(record: &Map<String, Value>, field: &'static str) -> Result<Option<String>, RecordError> {
    match record.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(RecordError::Type { field, expected: "text or a number" }),
    }
}

/// The text of [`Field::Caption`] or [`Field::Text`].
pub(crate) fn text(record: &Map<String, Value>, field: Field) -> Result<Option<String>, RecordError> {
    match lookup(record, field) {
        None => Ok(None),
        Some((_, Value::String(text))) => Ok(Some(text.clone())),
        Some((field, _)) => Err(RecordError::Type { field, expected: "text" }),
    }
}

/// How many images a record names.
pub(crate) fn n_images(record: &[u8]) -> Result<usize, RecordError> {
    let record: Map<String, Value> = serde_json::from_slice(record).map_err(RecordError::Json)?;
    Ok(image_names(&record)?.len())
}

fn images(record: &Map<String, Value>, root: &Path) -> Result<Vec<EncodedImage>, RecordError> {
    image_names(record)?.into_iter().map(|name| read_image(root, name)).collect()
}

/// The paths of a record's images. Null, an empty text and an empty list stand for none.
fn image_names(record: &Map<String, Value>) -> Result<Vec<&str>, RecordError> {
    let Some((field, value)) = lookup(record, Field::Images) else { return Ok(Vec::new()) };
    let wrong = || RecordError::Type { field, expected: "a path or a list of paths" };
    let paths: Vec<&Value> = match value {
        Value::Array(paths) => paths.iter().collect(),
        one => vec![one],
    };
    let mut names = Vec::with_capacity(paths.len());
    for path in paths {
        let name = match path {
            Value::Object(parts) => parts.get("path").and_then(Value::as_str),
            path => path.as_str(),
        };
        let name = name.ok_or_else(wrong)?;
        if !name.is_empty() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Reads an image file; `name` becomes the image's.
pub(crate) fn read_image(root: &Path, name: &str) -> Result<EncodedImage, RecordError> {
    let path = root.join(name);
    let bytes = std::fs::read(&path).map_err(|source| RecordError::Image { path, source })?;
    Ok(EncodedImage { name: Some(name.to_owned()), bytes })
}

pub(crate) fn conversation(record: &Map<String, Value>) -> Result<Vec<Turn>, RecordError> {
    let Some((field, value)) = lookup(record, Field::Conversations) else { return Ok(Vec::new()) };
    let turns = value.as_array().ok_or(RecordError::Type { field, expected: "a list of turns" })?;
    turns.iter().map(turn).collect()
}

fn turn(value: &Value) -> Result<Turn, RecordError> {
    let (speaker, said, field) = match (value.get("from"), value.get("role")) {
        (Some(from), _) => (from, value.get("value"), "value"),
        (None, Some(role)) => (role, value.get("content"), "content"),
        (None, None) => return Err(RecordError::Missing { field: "from" }),
    };
    let speaker = speaker.as_str().ok_or(RecordError::Type { field: "from", expected: "text" })?;
    let text = match said {
        None => return Err(RecordError::Missing { field }),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| {
                let text = |key| part.get(key).and_then(Value::as_str);
                part_text(text("type"), text("text").map(str::to_owned))
            });
            texts.collect::<Vec<_>>().join("\n")
        }
        Some(_) => return Err(RecordError::Type { field, expected: "text or a list of parts" }),
    };
    Ok(Turn { role: Role::parse(speaker)?, text })
}
