//! Where the records of a JSON or JSONL file lie, found in one pass by brackets and quotes alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::sample::Field;
use crate::{DataError, RecordError};

/// Offset and length of a record's bytes.
pub(crate) type Place = (u64, u32);

/// Keys of a top-level object that are kept, and bytes of each.
const MAX_KEYS: usize = 64;

/// The records: the items of a top-level array or of the one list of objects in a top-level object, or that object itself,
/// or the lines. Whether each is valid JSON shows when it is read.
pub(crate) fn index(mut reader: impl BufRead + Seek, path: &Path) -> Result<Vec<Place>, DataError> {
    let mut bytes = Bytes::new(&mut reader, 0, path);
    bytes.skip_mark()?;
    let first = bytes.skip_space()?;
    let offset = bytes.offset;
    match first {
        None => Ok(Vec::new()),
        Some(b'[') => bytes.array()?.ok_or_else(|| truncated("array", path)),
        Some(b'{') => {
            let (newline, next) = bytes.first_line()?;
            rewind(&mut reader, offset, path)?;
            let found = one_object(Bytes::new(&mut reader, offset, path), newline, next)?;
            if let Some(places) = found {
                return Ok(places);
            }
            rewind(&mut reader, offset, path)?;
            lines(reader, offset, path)
        }
        Some(_) => {
            rewind(&mut reader, offset, path)?;
            lines(reader, offset, path)
        }
    }
}

/// The lists of objects, and the empty ones, in a file that is one object, by their keys.
pub(crate) fn lists(
    mut reader: impl BufRead,
    path: &Path,
) -> Result<BTreeMap<String, Vec<Place>>, DataError> {
    let mut bytes = Bytes::new(&mut reader, 0, path);
    bytes.skip_mark()?;
    let wrong = |got: String| {
        let expected = "a JSON object with the lists \"images\", \"annotations\" and \"categories\"";
        Err(DataError::AnnotationLayout { path: path.to_owned(), expected, got })
    };
    match bytes.skip_space()? {
        Some(b'{') => {}
        Some(first) => return wrong(format!("{:?} at its beginning", char::from(first))),
        None => return wrong("an empty file".to_owned()),
    }
    match bytes.object()? {
        Object::Closed(entries) => {
            Ok(entries.into_iter().filter_map(|entry| Some((entry.key, entry.list?))).collect())
        }
        Object::Malformed => wrong(format!("something else at byte {}", bytes.offset)),
        Object::Open => Err(truncated("object", path)),
    }
}

/// The bytes at a place of a file.
pub(crate) fn read(handle: &Mutex<File>, (offset, length): Place) -> std::io::Result<Vec<u8>> {
    let mut text = vec![0; length as usize];
    let mut handle = handle.lock().unwrap_or_else(PoisonError::into_inner);
    handle.seek(SeekFrom::Start(offset))?;
    handle.read_exact(&mut text)?;
    Ok(text)
}

fn rewind(reader: &mut impl Seek, offset: u64, path: &Path) -> Result<(), DataError> {
    reader.seek(SeekFrom::Start(offset)).map(|_| ()).map_err(DataError::io("read", path))
}

fn lines(mut reader: impl BufRead, mut offset: u64, path: &Path) -> Result<Vec<Place>, DataError> {
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

/// The records of a file that begins as an object: `None` where it holds one record per line. `newline` is where its
/// first line ends, `next` the byte the next line that is not blank begins with.
///
/// A first line that is cut in JSONL must stay one bad record among good ones, so whatever could be JSONL is.
fn one_object(
    mut bytes: Bytes<'_, impl BufRead>,
    newline: Option<u64>,
    next: Option<u8>,
) -> Result<Option<Vec<Place>>, DataError> {
    let path = bytes.path;
    let wrong = |got: String| Err(DataError::JsonLayout { path: path.to_owned(), got });
    // Also fills the reader's buffer, which is empty after a seek.
    bytes.skip_space()?;
    let start = bytes.offset;
    let could_be_lines = next.is_none_or(|byte| byte == b'{');
    let (end, entries) = match bytes.object()? {
        Object::Closed(entries) => (bytes.offset, entries),
        Object::Malformed | Object::Open if could_be_lines => return Ok(None),
        Object::Malformed => return wrong(format!("something else at byte {}", bytes.offset)),
        Object::Open => return Err(truncated("object", path)),
    };
    let spans_lines = newline.is_some_and(|newline| newline < end);
    if bytes.skip_space()?.is_some() {
        if spans_lines && !could_be_lines {
            return wrong(format!("a second one at byte {}", bytes.offset));
        }
        return Ok(None);
    }
    let has = |names: &[&str]| entries.iter().any(|entry| names.contains(&entry.key.as_str()));
    let texts = [Field::Conversations, Field::Caption, Field::Masks, Field::Text];
    let is_record = texts.iter().any(|field| has(field.names()))
        || entries
            .iter()
            .any(|entry| entry.list.is_none() && Field::Images.names().contains(&entry.key.as_str()));
    let keys: Vec<String> = entries.iter().take(8).map(|entry| format!("{:?}", entry.key)).collect();
    let lists: Vec<Vec<Place>> = entries.into_iter().filter_map(|entry| entry.list).collect();
    match <[Vec<Place>; 1]>::try_from(lists) {
        _ if is_record => Ok(Some(vec![place(start, end, 0, path)?])),
        Ok([list]) => Ok(Some(list)),
        Err(lists) if lists.is_empty() && !spans_lines => Ok(None),
        Err(lists) => wrong(format!("{} lists of objects, and the keys {}", lists.len(), keys.join(", "))),
    }
}

fn truncated(what: &str, path: &Path) -> DataError {
    let text = format!("the {what} is not closed: truncated?");
    DataError::io("read", path)(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text))
}

fn place(start: u64, end: u64, row: usize, path: &Path) -> Result<Place, DataError> {
    let length = u32::try_from(end - start).map_err(|_| DataError::Record {
        path: path.to_owned(),
        row,
        source: RecordError::Type { field: "record", expected: "shorter than 4 GiB" },
    })?;
    Ok((start, length))
}

/// What a top-level object turned out to be.
enum Object {
    Closed(Vec<Entry>),
    /// Not JSON at this place.
    Malformed,
    /// The file ended before it did.
    Open,
}

/// A key of an object and, where its value is a list of objects or an empty one, the items' places.
struct Entry {
    key: String,
    list: Option<Vec<Place>>,
}

/// The bytes of a file, one after another.
struct Bytes<'a, R> {
    reader: &'a mut R,
    /// Place of the next byte.
    offset: u64,
    path: &'a Path,
}

impl<'a, R: BufRead> Bytes<'a, R> {
    fn new(reader: &'a mut R, offset: u64, path: &'a Path) -> Self {
        Self { reader, offset, path }
    }

    /// Goes on to the first byte for which `stop` holds, and gives it; `None` at the end of the file.
    fn find(&mut self, mut stop: impl FnMut(u8) -> bool) -> Result<Option<u8>, DataError> {
        loop {
            let buffer = self.reader.fill_buf().map_err(DataError::io("read", self.path))?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let found = buffer.iter().position(|&byte| stop(byte));
            let byte = found.map(|at| buffer[at]);
            let n = found.unwrap_or(buffer.len());
            self.reader.consume(n);
            self.offset += n as u64;
            if byte.is_some() {
                return Ok(byte);
            }
        }
    }

    fn skip_space(&mut self) -> Result<Option<u8>, DataError> {
        self.find(|byte| !byte.is_ascii_whitespace())
    }

    /// Steps over the byte that was found.
    fn step(&mut self) {
        self.reader.consume(1);
        self.offset += 1;
    }

    /// Steps over a byte order mark.
    fn skip_mark(&mut self) -> Result<(), DataError> {
        for expected in *b"\xef\xbb\xbf" {
            if self.find(|_| true)? != Some(expected) {
                break;
            }
            self.step();
        }
        Ok(())
    }

    /// Where this line ends, and the first byte after it that is no white space.
    fn first_line(&mut self) -> Result<(Option<u64>, Option<u8>), DataError> {
        let newline = self.find(|byte| byte == b'\n')?.map(|_| self.offset);
        Ok((newline, self.skip_space()?))
    }

    /// Goes on to the comma or bracket that ends the value begun here. `None` at the end of the file.
    fn skip_value(&mut self) -> Result<Option<u8>, DataError> {
        let mut depth = 0_usize;
        let (mut quoted, mut escaped) = (false, false);
        self.find(|byte| {
            if quoted {
                (quoted, escaped) = match byte {
                    _ if escaped => (true, false),
                    b'\\' => (true, true),
                    b'"' => (false, false),
                    _ => (true, false),
                };
                return false;
            }
            match byte {
                b',' | b']' | b'}' if depth == 0 => return true,
                b'"' => quoted = true,
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth -= 1,
                _ => {}
            }
            false
        })
    }

    /// The items of the array that begins here; `None` when it is not closed.
    fn array(&mut self) -> Result<Option<Vec<Place>>, DataError> {
        self.step();
        self.items()
    }

    /// The items of the array that has begun; `None` when it is not closed.
    fn items(&mut self) -> Result<Option<Vec<Place>>, DataError> {
        let mut items = Vec::new();
        loop {
            match self.skip_space()? {
                None => return Ok(None),
                Some(b']') => {
                    self.step();
                    return Ok(Some(items));
                }
                Some(b',') => self.step(),
                Some(first) => {
                    let start = self.offset;
                    // A brace that closes nothing begins an item that cannot be valid.
                    if first == b'}' {
                        self.step();
                    }
                    if self.skip_value()?.is_none() {
                        return Ok(None);
                    }
                    items.push(place(start, self.offset, items.len(), self.path)?);
                }
            }
        }
    }

    /// The object that begins here.
    fn object(&mut self) -> Result<Object, DataError> {
        let mut entries = Vec::new();
        self.step();
        loop {
            match self.skip_space()? {
                None => return Ok(Object::Open),
                Some(b'}') => {
                    self.step();
                    return Ok(Object::Closed(entries));
                }
                Some(b',') => self.step(),
                Some(b'"') => {
                    let Some(key) = self.key()? else { return Ok(Object::Malformed) };
                    if self.skip_space()? != Some(b':') {
                        return Ok(Object::Malformed);
                    }
                    self.step();
                    let mut list = None;
                    if self.skip_space()? == Some(b'[') {
                        list = self.list()?;
                    }
                    if self.skip_value()?.is_none() {
                        return Ok(Object::Open);
                    }
                    if entries.len() < MAX_KEYS {
                        entries.push(Entry { key, list });
                    }
                }
                Some(_) => return Ok(Object::Malformed),
            }
        }
    }

    /// The key that begins here, of a long one the beginning; `None` when its line ends before it.
    fn key(&mut self) -> Result<Option<String>, DataError> {
        self.step();
        let (mut text, mut escaped) = (Vec::new(), false);
        let end = self.find(|byte| {
            let ends = byte == b'\n' || (byte == b'"' && !escaped);
            escaped = byte == b'\\' && !escaped;
            if !ends && text.len() < MAX_KEYS {
                text.push(byte);
            }
            ends
        })?;
        if end != Some(b'"') {
            return Ok(None);
        }
        self.step();
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Steps over the array that begins here; its items where they are objects or there are none.
    fn list(&mut self) -> Result<Option<Vec<Place>>, DataError> {
        self.step();
        let first = self.skip_space()?;
        Ok(self.items()?.filter(|_| matches!(first, Some(b'{' | b']'))))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use super::*;

    /// A small buffer, so that items lie across its edges.
    fn try_records(text: &str) -> Result<Vec<&str>, DataError> {
        let found = index(BufReader::with_capacity(3, Cursor::new(text)), Path::new("x.json"))?;
        Ok(found.iter().map(|&(start, length)| text[start as usize..][..length as usize].trim()).collect())
    }

    fn records(text: &str) -> Vec<&str> {
        try_records(text).unwrap()
    }

    #[test]
    fn items_and_lines() {
        assert_eq!(
            records(r#" [ {"a": "]},\"{["} , {"b":[1,{"c":2}]},3 ]"#),
            [r#"{"a": "]},\"{["}"#, r#"{"b":[1,{"c":2}]}"#, "3"]
        );
        assert_eq!(records("{\"a\":1}\n\n  {\"b\":2}\r\n{\"c\":3}"), ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        assert_eq!(records("\u{feff}[{}]"), ["{}"]);
        assert_eq!(records("\u{feff}{}\n{}"), ["{}", "{}"]);
        assert_eq!(records("[{}}, {}]"), ["{}", "}", "{}"]);
        assert!(records("[]").is_empty());
        assert!(records(" \n ").is_empty());
        assert!(records("").is_empty());
    }

    #[test]
    fn one_record_over_several_lines() {
        for text in [
            "{\n  \"id\": 1,\n  \"image\": \"a.png\"\n}\n",
            "{\n  \"conversations\": [\n    {\"from\": \"human\"}\n  ],\n  \"x\": [{}]\n}",
            "{\"text\": \"}\\\"\",\n\"b\": {\"c\": [1]}}",
        ] {
            assert_eq!(records(text), [text.trim()]);
        }
    }

    #[test]
    fn a_list_of_records_under_a_key() {
        let list = ["{\"id\": 1}", "{\"id\": 2, \"image\": null}"];
        for text in [
            "{\"data\":[{\"id\": 1},{\"id\": 2, \"image\": null}]}",
            "{\n\"version\": [1, 2],\n\"annotations\" : [\n{\"id\": 1} ,\n{\"id\": 2, \"image\": null}\n],\n\"n\": 2}",
            "{\"info\": {\"a\": [{}]}, \"data\":[{\"id\": 1}\n,\n{\"id\": 2, \"image\": null}]}\n\n",
        ] {
            assert_eq!(records(text), list, "{text}");
        }
        assert!(records("{\"data\": []}").is_empty());
    }

    /// What is cut or wrong in a file of lines is one bad record, wherever it stands.
    #[test]
    fn lines_whose_first_is_bad() {
        for first in
            ["{\"text\": \"cut", "{\"text\":", "{", "{\"a\": [1,", "{a: 1}", "{\"a\": 1", "{\"a\" 1}"]
        {
            let text = format!("{first}\n{{\"b\": 2}}\n{{\"c\": 3}}\n");
            assert_eq!(records(&text), [first, "{\"b\": 2}", "{\"c\": 3}"]);
        }
        assert_eq!(records("{\"text\": \"cut"), ["{\"text\": \"cut"]);
    }

    #[test]
    fn objects_that_are_no_data_set() {
        for (text, says) in [
            ("{\n\"a\": 1,\n\"b\": {}\n}", "0 lists of objects, and the keys \"a\", \"b\""),
            ("{\"images\": [{\"id\": 1}], \"annotations\": [{\"id\": 2}]}", "2 lists"),
            ("{\n\"text\": 1\n}\n{\n\"text\": 2\n}", "a second one at byte 14"),
            ("{\n\"text\": 1,\n5}", "something else at byte 13"),
        ] {
            let error = try_records(text).unwrap_err().to_string();
            assert!(error.starts_with("x.json is one JSON object") && error.contains(says), "{error}");
        }
    }

    #[test]
    fn lists_by_their_keys() {
        let text = "\u{feff}{\"info\": {\"a\": [{}]}, \"images\": [{\"id\": 1},\n{\"id\": 2}], \"sizes\": [1, 2], \"none\": []}";
        let found = lists(BufReader::with_capacity(3, Cursor::new(text)), Path::new("x.json")).unwrap();
        let texts = |places: &[Place]| -> Vec<&str> {
            places.iter().map(|&(start, length)| &text[start as usize..][..length as usize]).collect()
        };
        assert_eq!(found.keys().collect::<Vec<_>>(), ["images", "none"]);
        assert_eq!(texts(&found["images"]), ["{\"id\": 1}", "{\"id\": 2}"]);
        assert!(found["none"].is_empty());
        for (text, says) in [
            ("[{}]", "'[' at its"),
            (" ", "an empty file"),
            ("{\"a\" 1}", "byte 5"),
            ("{\"a\": [{}", "truncated"),
        ] {
            let error = lists(Cursor::new(text), Path::new("x.json")).unwrap_err();
            let causes = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(causes.contains("x.json") && causes.contains(says), "{causes}");
        }
    }

    #[test]
    fn truncated_files() {
        for text in [r#"[{"a": 1}, {"b"#, "{\n\"data\": [{}", "{\n\"a\": \"b"] {
            let error = try_records(text).unwrap_err();
            assert!(error.to_string().contains("x.json"), "{error}");
        }
    }
}
