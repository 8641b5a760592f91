//! What can go wrong with a data set.

use std::path::PathBuf;

/// A data set that cannot be opened, read, written or downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Nothing stands at the path.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The path holds nothing this crate reads.
    #[error("{} holds no parquet, JSON, JSONL, token (.bin) or image files", path.display())]
    NoData {
        /// The file or folder.
        path: PathBuf,
    },
    /// No records.
    #[error("the data set {} is empty", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// The split asked for is not there.
    #[error("{} has no split {split:?}: it has {}", path.display(), present.join(", "))]
    MissingSplit {
        /// The folder.
        path: PathBuf,
        /// The split asked for.
        split: String,
        /// The splits it has.
        present: Vec<String>,
    },
    /// There are several splits, and none was asked for.
    #[error("{} has several splits, choose one with --split: {}", path.display(), present.join(", "))]
    SeveralSplits {
        /// The folder.
        path: PathBuf,
        /// The splits it has.
        present: Vec<String>,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A parquet file that is truncated, damaged or of a kind the reader does not know.
    #[error("cannot {action} the parquet file {}", path.display())]
    Parquet {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: parquet::errors::ParquetError,
    },
    /// A column has a type that cannot be what its name says.
    #[error("{}: column {column:?} has type {got}, expected {expected}", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What it can be.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// None of the columns asked for is there.
    #[error("{} has none of the columns {}: it has {}", path.display(), expected.join(", "), present.join(", "))]
    NoColumns {
        /// The file.
        path: PathBuf,
        /// The names looked for.
        expected: Vec<&'static str>,
        /// The names there.
        present: Vec<String>,
    },
    /// One record is bad; the data set can go on without it.
    #[error("{}: record {row}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The record within the file, from 0 (blank lines of JSONL are none).
        row: usize,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A JSON file that is one object, and neither a record nor a list of records under one key.
    #[error(
        "{} is one JSON object: expected a list, one record per line, a record, or an object with one list of \
         records, got {got}",
        path.display()
    )]
    JsonLayout {
        /// The file.
        path: PathBuf,
        /// What it holds.
        got: String,
    },
    /// A token file that contradicts its sidecar, the options or itself.
    #[error("{}: expected {expected}, got {got}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        got: String,
    },
    /// The sidecar of a token file cannot be understood.
    #[error("{} does not describe a token file", path.display())]
    TokenSidecar {
        /// The sidecar.
        path: PathBuf,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// Annotations that are not laid out as those of their kind.
    #[error("{}: expected {expected}, got {got}", path.display())]
    AnnotationLayout {
        /// The file or folder.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// A share of a data set that is none.
    #[error(
        "a share is a number of records from 1 (1000) or a percentage above 0 and up to 100 (5%), not {got:?}"
    )]
    Share {
        /// As given.
        got: String,
    },
    /// A share that leaves no record.
    #[error("the share asked for of {name} is less than one of its {records} records")]
    EmptyShare {
        /// The data set's name.
        name: String,
        /// How many records it has.
        records: usize,
    },
    /// More bad records than allowed.
    #[error("{bad} bad records, at most {max} are allowed (--max-bad); the last one follows")]
    TooManyBad {
        /// How many were met.
        bad: u64,
        /// How many were allowed.
        max: u64,
        /// The last one.
        source: Box<DataError>,
    },
    /// A record to be written does not fit the file.
    #[error("record {row} has {got} images, but the file holds one each: choose ImageColumn::List")]
    ImageCount {
        /// Its place in the file, from 0.
        row: usize,
        /// Its number of images.
        got: usize,
    },
    /// Neither a path nor a Hub id.
    #[error("{argument:?} is no local path, and cannot be a Hub id, which reads owner/name")]
    Unresolved {
        /// As given.
        argument: String,
    },
    /// The Hub has no file that was asked for.
    #[error("{repository} on the Hub has no file like {}", patterns.join(", "))]
    NoHubFiles {
        /// Its id.
        repository: String,
        /// What was looked for.
        patterns: Vec<String>,
    },
    /// The Hub did not give what was asked for.
    #[error(
        "cannot {action} of {repository} from {endpoint}, and no local folder has that name \
         (an answer of 401, 403 or 404 can mean that HF_TOKEN must be set)"
    )]
    Hub {
        /// What was tried, as a verb.
        action: String,
        /// The repository's id.
        repository: String,
        /// The Hub's address.
        endpoint: String,
        /// Why it failed.
        source: Box<hf_hub::api::sync::ApiError>,
    },
    /// Downloads are off, and the cache does not have it.
    #[error("{repository} at {revision} is not in {}, and HF_HUB_OFFLINE forbids a download", cache.display())]
    Offline {
        /// The repository's id.
        repository: String,
        /// Its revision.
        revision: String,
        /// The cache folder.
        cache: PathBuf,
    },
}

/// What is wrong with one record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not JSON.
    #[error("not valid JSON")]
    Json(#[source] serde_json::Error),
    /// A field is missing.
    #[error("no field {field:?}")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field has another type than it must have.
    #[error("field {field:?} must be {expected}")]
    Type {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A turn by nobody known.
    #[error("role {got:?}: known are human, user, gpt, assistant, system")]
    Role {
        /// The role found.
        got: String,
    },
    /// An image file that cannot be read.
    #[error("image {}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An image of which only the path was stored.
    #[error("the image has no bytes, only {}", path.as_deref().map_or_else(|| "nulls".to_owned(), |path| format!("the path {path:?}")))]
    ImageBytes {
        /// That path.
        path: Option<String>,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {position} of the file: expected an id below {vocab_size}, got {got}")]
    Token {
        /// Its place in the file, from 0.
        position: u64,
        /// The id.
        got: u32,
        /// The vocabulary's size.
        vocab_size: u32,
    },
    /// A pixel mask without bytes.
    #[error("a mask has no bytes")]
    MaskBytes,
    /// An entry of an annotation file's list.
    #[error("{list}[{row}]")]
    Entry {
        /// The list.
        list: &'static str,
        /// The entry within it, from 0.
        row: usize,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// JSON that is not laid out as an annotation file's.
    #[error("not laid out as COCO's files are")]
    Layout(#[source] serde_json::Error),
    /// An id that stands for nothing.
    #[error("there is no {what} {id} among the {known} that are listed")]
    UnknownId {
        /// `image`, `category` or `class`.
        what: &'static str,
        /// The id.
        id: u64,
        /// How many there are.
        known: usize,
    },
    /// An image of which no mask can be made.
    #[error("an image of {width} x {height} pixels; 1 to {max} of them are read")]
    ImageSize {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// The most pixels that are read.
        max: u64,
    },
    /// A mask of another size than its image.
    #[error("a mask of {} x {} pixels for an image of {} x {}", got.0, got.1, expected.0, expected.1)]
    MaskSize {
        /// The image's width and height.
        expected: (u32, u32),
        /// The mask's.
        got: (u32, u32),
    },
    /// Run lengths of another sum than their mask has pixels.
    #[error("the run lengths cover {got} pixels, but the mask has {expected}")]
    RunLengths {
        /// The mask's pixels.
        expected: u64,
        /// Those of the runs.
        got: u64,
    },
    /// Compressed run lengths that are none.
    #[error("compressed run lengths, character {position}: {reason}")]
    RunText {
        /// Where they break, in bytes from 0.
        position: usize,
        /// Why.
        reason: &'static str,
    },
    /// A polygon that encloses nothing, whatever its image.
    #[error("a polygon is three or more points, x and y of each less than 2^20 from 0, got {got}")]
    Polygon {
        /// What is there.
        got: String,
    },
    /// A segment that is listed and not drawn.
    #[error("segment {id} is not in {png}")]
    Segment {
        /// Its id.
        id: u32,
        /// The PNG's name.
        png: String,
    },
    /// A PNG of labels that cannot be decoded.
    #[error("labels {}", path.display())]
    LabelMap {
        /// The file.
        path: PathBuf,
        /// Why.
        source: png::DecodingError,
    },
    /// A PNG whose pixels are no labels.
    #[error("labels {}: expected grey of 8 or 16 bits, a palette of 8 or RGB of 8, got {got}", path.display())]
    LabelMapPixels {
        /// The file.
        path: PathBuf,
        /// Its pixels.
        got: String,
    },
    /// Whatever a later stage found, such as an image that does not decode.
    #[error("unusable")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl DataError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn parquet(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(parquet::errors::ParquetError) -> Self {
        let path = path.into();
        move |source| Self::Parquet { action, path, source }
    }
}

impl RecordError {
    /// Puts the place in an annotation file before an error.
    pub(crate) fn of(list: &'static str, row: usize) -> impl FnOnce(Self) -> Self {
        move |source| Self::Entry { list, row, source: Box::new(source) }
    }
}
