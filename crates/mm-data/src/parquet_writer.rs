//! [`ParquetWriter`]: samples to a parquet file as the Hub has them.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, StringBuilder};
use arrow_array::{ArrayRef, BinaryArray, ListArray, RecordBatch, StringArray, StructArray};
use arrow_schema::DataType;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::DataError;
use crate::features::{self, ImageColumn};
use crate::sample::{EncodedImage, Field, MaskAnnotation, Sample, Turn};

/// A row group ends after this many rows,
const GROUP_ROWS: usize = 256;
/// or this many bytes of images, masks and text.
const GROUP_BYTES: usize = 32 << 20;

/// Writes samples to one parquet file with the column `id` (string) and those of the fields asked for: `image` (struct
/// of bytes and path, or `images`, a list of it), `conversations` (list of structs of from and value), `caption`
/// (string), `masks` (list of structs of labels and mask, an image), `text` (string); and the metadata from which
/// Python's `datasets` knows that images are images. What a sample holds beyond the columns is left out.
///
/// Compressed with zstd; the same samples give the same bytes. The file is written as `.{name}.part` beside its
/// place and appears whole when [`ParquetWriter::finish`] returns; dropped before, it leaves nothing.
#[derive(Debug)]
pub struct ParquetWriter {
    target: PathBuf,
    part: PathBuf,
    /// `None` once finished.
    writer: Option<ArrowWriter<BufWriter<File>>>,
    images: ImageColumn,
    fields: Vec<Field>,
    pending: Vec<Sample>,
    pending_bytes: usize,
    rows: usize,
}

impl ParquetWriter {
    /// Starts a file with the columns of images, conversations, captions and masks; its folder must exist.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, images: ImageColumn) -> Result<Self, DataError> {
        let fields = [Field::Images, Field::Conversations, Field::Caption, Field::Masks];
        Self::with_fields(path, images, &fields)
    }

    /// Starts a file with the columns of `fields`, in their order; its folder must exist.
    ///
    /// # Errors
    /// When the file cannot be made.
    ///
    /// # Panics
    /// When `fields` is empty or names one twice.
    #[track_caller]
    pub fn with_fields(path: &Path, images: ImageColumn, fields: &[Field]) -> Result<Self, DataError> {
        assert!(!fields.is_empty(), "a data set of no columns");
        let twice = fields.iter().enumerate().find(|(at, field)| fields[..*at].contains(field));
        assert!(twice.is_none(), "column {twice:?} is asked for twice");
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let part = path.with_file_name(format!(".{name}.part"));
        let file = File::create(&part).map_err(DataError::io("create", &part))?;
        let schema = features::schema(images, fields);
        let writer = ArrowWriter::try_new(BufWriter::new(file), schema, Some(properties(images, fields)))
            .map_err(DataError::parquet("start", path))?;
        Ok(Self {
            target: path.to_owned(),
            part,
            writer: Some(writer),
            images,
            fields: fields.to_owned(),
            pending: Vec::new(),
            pending_bytes: 0,
            rows: 0,
        })
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// When it has several images and the file takes one, or writing fails.
    pub fn push(&mut self, sample: Sample) -> Result<(), DataError> {
        let takes_one = self.images == ImageColumn::Single && self.fields.contains(&Field::Images);
        if takes_one && sample.images.len() > 1 {
            return Err(DataError::ImageCount { row: self.rows, got: sample.images.len() });
        }
        self.pending_bytes += weight(&sample);
        self.pending.push(sample);
        self.rows += 1;
        if self.pending.len() == GROUP_ROWS || self.pending_bytes >= GROUP_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// How many samples were appended.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Writes what is left and gives the file its name.
    ///
    /// # Errors
    /// When writing or renaming fails; nothing is left behind then.
    pub fn finish(mut self) -> Result<(), DataError> {
        self.flush()?;
        if let Some(writer) = self.writer.take() {
            let file = writer.into_inner().map_err(DataError::parquet("finish", &self.target))?;
            let file =
                file.into_inner().map_err(|error| DataError::io("write", &self.part)(error.into_error()))?;
            file.sync_all().map_err(DataError::io("write", &self.part))?;
        }
        fs::rename(&self.part, &self.target).map_err(DataError::io("rename to", &self.target))
    }

    /// Writes the pending samples as a row group.
    fn flush(&mut self) -> Result<(), DataError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let samples = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let written = batch(&samples, self.images, &self.fields).and_then(|batch| {
            writer.write(&batch)?;
            writer.flush()
        });
        written.map_err(DataError::parquet("write", &self.target))
    }
}

impl Drop for ParquetWriter {
    fn drop(&mut self) {
        // Gone already after a finish.
        let _ = fs::remove_file(&self.part);
    }
}

/// The bytes a sample takes, roughly.
fn weight(sample: &Sample) -> usize {
    let images: usize = sample.images.iter().map(|image| image.bytes.len()).sum();
    let masks: usize = sample.masks.iter().map(|mask| mask.png.len()).sum();
    let turns: usize = sample.conversations.iter().map(|turn| turn.text.len()).sum();
    let texts = [&sample.caption, &sample.text].into_iter().flatten().map(String::len);
    images + masks + turns + texts.sum::<usize>()
}

fn properties(images: ImageColumn, fields: &[Field]) -> WriterProperties {
    let image = match images {
        ImageColumn::Single => vec!["image", "bytes"],
        ImageColumn::List => vec!["images", "list", "element", "bytes"],
    };
    let encoded = [image, vec!["masks", "list", "element", "mask", "bytes"]];
    let features =
        KeyValue::new(features::FEATURES_KEY.to_owned(), features::features(images, fields).to_string());
    let mut builder = WriterProperties::builder()
        .set_created_by(format!("mm-data {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Pages of few rows, so that one record is read without its whole row group.
        .set_write_batch_size(8)
        .set_data_page_size_limit(256 << 10)
        .set_key_value_metadata(Some(vec![features]));
    for column in encoded {
        let column = ColumnPath::from(column.into_iter().map(str::to_owned).collect::<Vec<_>>());
        // No two are equal.
        builder = builder.set_column_dictionary_enabled(column, false);
    }
    builder.build()
}

fn batch(samples: &[Sample], images: ImageColumn, fields: &[Field]) -> Result<RecordBatch, ParquetError> {
    let texts = |text: fn(&Sample) -> Option<&str>| -> ArrayRef {
        Arc::new(samples.iter().map(text).collect::<StringArray>())
    };
    let mut columns = vec![texts(|sample| sample.id.as_deref())];
    for field in fields {
        columns.push(match (field, images) {
            (Field::Images, ImageColumn::Single) => {
                Arc::new(image_array(samples.iter().map(|sample| sample.images.first()))?)
            }
            (Field::Images, ImageColumn::List) => {
                let all = image_array(samples.iter().flat_map(|sample| &sample.images).map(Some))?;
                Arc::new(list(samples.iter().map(|sample| sample.images.len()), Arc::new(all))?)
            }
            (Field::Conversations, _) => {
                let turns = turn_array(samples.iter().flat_map(|sample| &sample.conversations))?;
                Arc::new(list(samples.iter().map(|sample| sample.conversations.len()), Arc::new(turns))?)
            }
            (Field::Caption, _) => texts(|sample| sample.caption.as_deref()),
            (Field::Masks, _) => {
                let masks = mask_array(samples.iter().flat_map(|sample| &sample.masks))?;
                Arc::new(list(samples.iter().map(|sample| sample.masks.len()), Arc::new(masks))?)
            }
            (Field::Text, _) => texts(|sample| sample.text.as_deref()),
        });
    }
    Ok(RecordBatch::try_new(features::schema(images, fields), columns)?)
}

fn image_array<'a>(
    images: impl Iterator<Item = Option<&'a EncodedImage>>,
) -> Result<StructArray, ParquetError> {
    let mut bytes = BinaryBuilder::new();
    let mut paths = StringBuilder::new();
    let mut present = Vec::new();
    for image in images {
        bytes.append_option(image.map(|image| &image.bytes));
        paths.append_option(image.and_then(|image| image.name.as_ref()));
        present.push(image.is_some());
    }
    let columns: Vec<ArrayRef> = vec![Arc::new(bytes.finish()), Arc::new(paths.finish())];
    Ok(StructArray::try_new(features::image_fields(), columns, Some(present.into()))?)
}

fn turn_array<'a>(turns: impl Iterator<Item = &'a Turn>) -> Result<StructArray, ParquetError> {
    let (speakers, texts): (Vec<&str>, Vec<&str>) =
        turns.map(|turn| (turn.role.llava_name(), turn.text.as_str())).unzip();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StringArray::from(speakers)), Arc::new(StringArray::from(texts))];
    Ok(StructArray::try_new(features::turn_fields(), columns, None)?)
}

fn mask_array<'a>(
    masks: impl Iterator<Item = &'a MaskAnnotation> + Clone,
) -> Result<StructArray, ParquetError> {
    let words: StringArray = masks.clone().flat_map(|mask| &mask.labels).map(Some).collect();
    let labels = list(masks.clone().map(|mask| mask.labels.len()), Arc::new(words))?;
    let bytes: BinaryArray = masks.map(|mask| Some(&mask.png)).collect();
    let paths = StringArray::new_null(arrow_array::Array::len(&bytes));
    let pngs = StructArray::try_new(features::image_fields(), vec![Arc::new(bytes), Arc::new(paths)], None)?;
    let columns: Vec<ArrayRef> = vec![Arc::new(labels), Arc::new(pngs)];
    Ok(StructArray::try_new(features::mask_fields(), columns, None)?)
}

/// Lists of the given lengths over `items`, one after another.
fn list(lengths: impl Iterator<Item = usize>, items: ArrayRef) -> Result<ListArray, ParquetError> {
    let kind: DataType = items.data_type().clone();
    let offsets = arrow_buffer::OffsetBuffer::from_lengths(lengths);
    Ok(ListArray::try_new(features::item(kind), offsets, items, None)?)
}
