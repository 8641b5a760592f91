//! Random access to parquet files, a small window of rows in memory at a time.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use arrow_array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
    RowSelection, RowSelector,
};
use parquet::file::metadata::PageIndexPolicy;

use crate::DataError;
use crate::columns::Columns;
use crate::files::DataFile;
use crate::sample::{Field, Sample};

/// Rows decoded at once. A row group can be the whole file, so it is never held whole.
const WINDOW: usize = 16;
/// Windows kept, so that as many threads can read at different places without losing theirs.
const CURSORS: usize = 8;

/// One or more parquet files read as one sequence of records.
#[derive(Debug)]
pub(crate) struct ParquetSet {
    files: Vec<ParquetFile>,
    /// Idle cursors, the one used last at the end.
    cursors: Mutex<Vec<Cursor>>,
}

#[derive(Debug)]
struct ParquetFile {
    path: PathBuf,
    /// Number of its first record in the data set.
    first: usize,
    /// Ends of its row groups, counted in rows of the file.
    group_ends: Vec<usize>,
    metadata: ArrowReaderMetadata,
    projection: ProjectionMask,
    columns: Columns,
}

/// A reader within one row group and the window it decoded last.
struct Cursor {
    file: usize,
    group: usize,
    /// Row of the file at which the window starts.
    start: usize,
    window: RecordBatch,
    reader: ParquetRecordBatchReader,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("file", &self.file).field("start", &self.start).finish_non_exhaustive()
    }
}

impl ParquetSet {
    pub(crate) fn open(files: &[DataFile], fields: &[Field]) -> Result<Self, DataError> {
        let mut first = 0;
        let mut opened = Vec::with_capacity(files.len());
        for DataFile { path, .. } in files {
            let file = File::open(path).map_err(DataError::io("open", path))?;
            let options = ArrowReaderOptions::new()
                .with_skip_arrow_metadata(true)
                .with_page_index_policy(PageIndexPolicy::Optional);
            let metadata =
                ArrowReaderMetadata::load(&file, options).map_err(DataError::parquet("open", path))?;
            let schema = metadata.schema();
            let columns = Columns::find(path, schema, fields)?;
            let roots = columns.names().filter_map(|name| schema.index_of(name).ok());
            let projection = ProjectionMask::roots(metadata.parquet_schema(), roots);
            let groups = metadata.metadata().row_groups().iter();
            let group_ends: Vec<usize> = groups
                .scan(0, |rows, group| {
                    *rows += group.num_rows().max(0) as usize;
                    Some(*rows)
                })
                .collect();
            let rows = group_ends.last().copied().unwrap_or(0);
            opened.push(ParquetFile { path: path.clone(), first, group_ends, metadata, projection, columns });
            first += rows;
        }
        Ok(Self { files: opened, cursors: Mutex::new(Vec::new()) })
    }

    pub(crate) fn len(&self) -> usize {
        self.files.last().map_or(0, |file| file.first + file.group_ends.last().copied().unwrap_or(0))
    }

    /// Whether any file has a column of masks.
    pub(crate) fn has_masks(&self) -> bool {
        self.files.iter().any(|file| file.columns.has_masks())
    }

    /// The file record `index` is in, and its row there.
    pub(crate) fn place(&self, index: usize) -> (PathBuf, usize) {
        let file = &self.files[self.file_of(index)];
        (file.path.clone(), index - file.first)
    }

    fn file_of(&self, index: usize) -> usize {
        // Files without rows share their `first` with the next one: the last of them is the one with rows.
        self.files.partition_point(|file| file.first <= index) - 1
    }

    pub(crate) fn get(&self, index: usize) -> Result<Sample, DataError> {
        let number = self.file_of(index);
        let file = &self.files[number];
        let row = index - file.first;
        let group = file.group_ends.partition_point(|&end| end <= row);
        let cursor = match self.take(number, group, row) {
            Some(cursor) => cursor.forward_to(row, file)?,
            None => file.cursor(number, group, row)?,
        };
        let sample = file.columns.sample(&cursor.window, row - cursor.start);
        self.put_back(cursor);
        sample.map_err(|source| DataError::Record { path: file.path.clone(), row, source })
    }

    /// An idle cursor that has the row or soon comes to it.
    fn take(&self, file: usize, group: usize, row: usize) -> Option<Cursor> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let near = |cursor: &Cursor| {
            let reach = cursor.start..cursor.start + cursor.window.num_rows() + WINDOW;
            cursor.file == file && cursor.group == group && reach.contains(&row)
        };
        let found = cursors.iter().rposition(near)?;
        Some(cursors.remove(found))
    }

    fn put_back(&self, cursor: Cursor) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        if cursors.len() == CURSORS {
            cursors.remove(0);
        }
        cursors.push(cursor);
    }
}

impl ParquetFile {
    /// A new cursor whose window starts at `row`.
    fn cursor(&self, file: usize, group: usize, row: usize) -> Result<Cursor, DataError> {
        let group_start = if group == 0 { 0 } else { self.group_ends[group - 1] };
        let selection = RowSelection::from(vec![
            RowSelector::skip(row - group_start),
            RowSelector::select(self.group_ends[group] - row),
        ]);
        let handle = File::open(&self.path).map_err(DataError::io("open", &self.path))?;
        let mut reader = ParquetRecordBatchReaderBuilder::new_with_metadata(handle, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_row_selection(selection)
            .with_projection(self.projection.clone())
            .with_batch_size(WINDOW)
            .build()
            .map_err(DataError::parquet("read", &self.path))?;
        let window = self.next_window(&mut reader)?;
        Ok(Cursor { file, group, start: row, window, reader })
    }

    fn next_window(&self, reader: &mut ParquetRecordBatchReader) -> Result<RecordBatch, DataError> {
        let window = reader
            .next()
            .transpose()
            .map_err(|error| DataError::parquet("read", &self.path)(error.into()))?;
        match window {
            Some(window) if window.num_rows() > 0 => Ok(window),
            _ => {
                let short = parquet::errors::ParquetError::EOF("fewer rows than the footer says".to_owned());
                Err(DataError::parquet("read", &self.path)(short))
            }
        }
    }
}

impl Cursor {
    fn forward_to(mut self, row: usize, file: &ParquetFile) -> Result<Self, DataError> {
        while row >= self.start + self.window.num_rows() {
            self.start += self.window.num_rows();
            self.window = file.next_window(&mut self.reader)?;
        }
        Ok(self)
    }
}
