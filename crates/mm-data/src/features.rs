//! The schema [`crate::ParquetWriter`] writes, for Arrow and for Python's `datasets`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use serde_json::{Value, json};

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

pub(crate) fn schema(images: ImageColumn) -> SchemaRef {
    let image = DataType::Struct(image_fields());
    let image = match images {
        ImageColumn::Single => Field::new("image", image, true),
        ImageColumn::List => Field::new("images", list(image), true),
    };
    let fields = vec![
        text("id"),
        image,
        Field::new("conversations", list(DataType::Struct(turn_fields())), true),
        text("caption"),
        Field::new("masks", list(DataType::Struct(mask_fields())), true),
    ];
    let metadata = HashMap::from([(FEATURES_KEY.to_owned(), features(images).to_string())]);
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// The features as `datasets` writes them down; lists in the form that its versions 2 to 5 all read.
pub(crate) fn features(images: ImageColumn) -> Value {
    let text = json!({ "dtype": "string", "_type": "Value" });
    let image = json!({ "_type": "Image" });
    let (image_name, image_feature) = match images {
        ImageColumn::Single => ("image", image.clone()),
        ImageColumn::List => ("images", json!([image])),
    };
    json!({ "info": { "features": {
        "id": text,
        image_name: image_feature,
        "conversations": [{ "from": text, "value": text }],
        "caption": text,
        "masks": [{ "labels": [text], "mask": image }],
    } } })
}
