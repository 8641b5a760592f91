//! The schema [`crate::ParquetWriter`] writes, for Arrow and for Python's `datasets`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use serde_json::{Map, Value, json};

use crate::sample::Field as DataField;

/// How the images of a record are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageColumn {
    /// Column `image`: one image, or none.
    Single,
    /// Column `images`: a list.
    List,
}

/// Key of the metadata `datasets` reads its features from.
pub(crate) const FEATURES_KEY: &str = "huggingface";

pub(crate) fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, true)
}

/// `datasets`' storage of an Image: its bytes and, for what was a file, its path.
pub(crate) fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), text("path")])
}

pub(crate) fn turn_fields() -> Fields {
    Fields::from(vec![text("from"), text("value")])
}

pub(crate) fn mask_fields() -> Fields {
    Fields::from(vec![
        Field::new("labels", list(DataType::Utf8), true),
        Field::new("mask", DataType::Struct(image_fields()), true),
    ])
}

/// The field of a list's items. `element` is the name the parquet format asks for.
pub(crate) fn item(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", kind, true))
}

fn list(kind: DataType) -> DataType {
    DataType::List(item(kind))
}

/// The column of a field, its name as in files.
fn column(field: DataField, images: ImageColumn) -> Field {
    let image = DataType::Struct(image_fields());
    match (field, images) {
        (DataField::Images, ImageColumn::Single) => Field::new("image", image, true),
        (DataField::Images, ImageColumn::List) => Field::new("images", list(image), true),
        (DataField::Conversations, _) => {
            Field::new("conversations", list(DataType::Struct(turn_fields())), true)
        }
        (DataField::Caption, _) => text("caption"),
        (DataField::Masks, _) => Field::new("masks", list(DataType::Struct(mask_fields())), true),
        (DataField::Text, _) => text("text"),
    }
}

/// `id` and the columns of `fields`, in their order.
pub(crate) fn schema(images: ImageColumn, fields: &[DataField]) -> SchemaRef {
    let columns = fields.iter().map(|&field| column(field, images));
    let columns: Vec<Field> = std::iter::once(text("id")).chain(columns).collect();
    let metadata = HashMap::from([(FEATURES_KEY.to_owned(), features(images, fields).to_string())]);
    Arc::new(Schema::new_with_metadata(columns, metadata))
}

/// The features as `datasets` writes them down; lists in the form that its versions 2 to 5 all read.
pub(crate) fn features(images: ImageColumn, fields: &[DataField]) -> Value {
    let text = json!({ "dtype": "string", "_type": "Value" });
    let image = json!({ "_type": "Image" });
    let mut columns = Map::from_iter([("id".to_owned(), text.clone())]);
    for &field in fields {
        let feature = match (field, images) {
            (DataField::Images, ImageColumn::Single) => image.clone(),
            (DataField::Images, ImageColumn::List) => json!([image]),
            (DataField::Conversations, _) => json!([{ "from": text, "value": text }]),
            (DataField::Caption | DataField::Text, _) => text.clone(),
            (DataField::Masks, _) => json!([{ "labels": [text], "mask": image }]),
        };
        columns.insert(column(field, images).name().clone(), feature);
    }
    json!({ "info": { "features": columns } })
}
