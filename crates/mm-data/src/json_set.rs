//! Random access to the records of JSON and JSONL files, by an index of where each begins.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::files::DataFile;
use crate::json;
use crate::sample::{Field, Sample};
use crate::{DataError, RecordError};

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
    records: Vec<(u64, u32)>,
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
        let (offset, length) = self.records[row];
        let mut text = vec![0; length as usize];
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        handle.seek(SeekFrom::Start(offset))?;
        handle.read_exact(&mut text)?;
        Ok(text)
    }
}

/// Where the records lie: the items of a top-level array, or the lines.
fn index(mut reader: impl BufRead, path: &Path) -> Result<Vec<(u64, u32)>, DataError> {
    let mut offset = 0;
    let io = |error| DataError::io("read", path)(error);
    // Byte order mark and white space before the first value.
    loop {
        let buffer = reader.fill_buf().map_err(io)?;
        if offset == 0 && buffer.starts_with(b"\xef\xbb\xbf") {
            reader.consume(3);
            offset += 3;
            continue;
        }
        let Some(&byte) = buffer.first() else { return Ok(Vec::new()) };
        if !byte.is_ascii_whitespace() {
            let array = byte == b'[';
            return if array { array_items(reader, offset, path) } else { lines(reader, offset, path) };
        }
        reader.consume(1);
        offset += 1;
    }
}

fn lines(mut reader: impl BufRead, mut offset: u64, path: &Path) -> Result<Vec<(u64, u32)>, DataError> {
    let mut records = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).map_err(DataError::io("read", path))?;
        if n == 0 {
            return Ok(records);
        }
        if !line.trim_ascii().is_empty() {
            records.push(place(offset, offset + n as u64, records.len(), path)?);
        }
        offset += n as u64;
    }
}

/// Finds the items of the array that starts at `offset` by brackets and quotes alone; whether each is valid
/// JSON shows when it is read.
fn array_items(mut reader: impl BufRead, mut offset: u64, path: &Path) -> Result<Vec<(u64, u32)>, DataError> {
    let mut records = Vec::new();
    let mut depth = 0_usize;
    let (mut quoted, mut escaped) = (false, false);
    let mut start = None;
    loop {
        let buffer = reader.fill_buf().map_err(DataError::io("read", path))?;
        if buffer.is_empty() {
            let cut =
                std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the array is not closed: truncated?");
            return Err(DataError::io("read", path)(cut));
        }
        let n = buffer.len();
        for (i, &byte) in buffer.iter().enumerate() {
            let at = offset + i as u64;
            if quoted {
                (quoted, escaped) = match byte {
                    _ if escaped => (true, false),
                    b'\\' => (true, true),
                    b'"' => (false, false),
                    _ => (true, false),
                };
                continue;
            }
            if depth == 1 && (byte == b',' || byte == b']') {
                if let Some(start) = start.take() {
                    records.push(place(start, at, records.len(), path)?);
                }
            } else if depth == 1 && start.is_none() && !byte.is_ascii_whitespace() {
                start = Some(at);
            }
            match byte {
                b'"' => quoted = true,
                b'[' | b'{' => depth += 1,
                b']' | b'}' if depth == 1 => return Ok(records),
                b']' | b'}' => depth -= 1,
                _ => {}
            }
        }
        reader.consume(n);
        offset += n as u64;
    }
}

fn place(start: u64, end: u64, row: usize, path: &Path) -> Result<(u64, u32), DataError> {
    let length = u32::try_from(end - start).map_err(|_| DataError::Record {
        path: path.to_owned(),
        row,
        source: RecordError::Type { field: "record", expected: "shorter than 4 GiB" },
    })?;
    Ok((start, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Vec<&str> {
        // A small buffer, so that items lie across its edges.
        let found = index(BufReader::with_capacity(3, text.as_bytes()), Path::new("x.json")).unwrap();
        found.iter().map(|&(start, length)| text[start as usize..][..length as usize].trim()).collect()
    }

    #[test]
    fn items_and_lines() {
        assert_eq!(
            records(r#" [ {"a": "]},\"{["} , {"b":[1,{"c":2}]},3 ]"#),
            [r#"{"a": "]},\"{["}"#, r#"{"b":[1,{"c":2}]}"#, "3"]
        );
        assert_eq!(records("{\"a\":1}\n\n  {\"b\":2}\r\n{\"c\":3}"), ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        assert_eq!(records("\u{feff}[{}]"), ["{}"]);
        assert!(records("[]").is_empty());
        assert!(records(" \n ").is_empty());
    }

    #[test]
    fn truncated_array() {
        let error = index(br#"[{"a": 1}, {"b"#.as_slice(), Path::new("x.json")).unwrap_err();
        assert!(error.to_string().contains("x.json"), "{error}");
    }
}
