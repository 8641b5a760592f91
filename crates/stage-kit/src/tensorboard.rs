//! [`EventWriter`]: curves for TensorBoard.
//!
//! An event file is a row of records in TFRecord framing: length (u64), masked CRC-32C of the length (u32), the bytes,
//! their masked CRC-32C (u32), all little-endian; mask(c) = rotate_right(c, 15) + 0xa282ead8
//! (tensorflow/core/lib/io/record_writer.h, lib/hash/crc32c.h). The bytes are protobuf messages `Event`, of which five fields
//! are written: `wall_time = 1` (double), `step = 2` (int64), `file_version = 3`, `summary = 5` and `session_log = 7`
//! (tensorflow/core/util/event.proto, framework/summary.proto).

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::KitError;

/// The version of event files that knows restarts.
const FILE_VERSION: &str = "brain.Event:2";
const PREFIX: &str = "events.out.tfevents.";

/// Writes scalars into an event file of its own, `events.out.tfevents.<unix time>.<host>.<pid>`.
///
/// A folder is one run to TensorBoard, which reads its files in order of their names: a resumed run's file follows those
/// there, whatever the clock says, and starts with the step it resumed from, so that later points of the run before it are
/// dropped and each curve is one line.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a file in `folder`, which is made where missing, for a run from its start.
    ///
    /// # Errors
    /// When the folder or the file cannot be made.
    pub fn create(folder: &Path) -> Result<Self, KitError> {
        fs::create_dir_all(folder).map_err(KitError::io("make the folder", folder))?;
        let path = folder.join(next_name(folder)?);
        let file = File::create_new(&path).map_err(KitError::io("create", &path))?;
        let mut writer = Self { file: BufWriter::new(file), path };
        let mut event = Message::event(0);
        event.bytes(3, FILE_VERSION.as_bytes());
        writer.write(&event)?;
        writer.flush()?;
        Ok(writer)
    }

    /// Begins a file for a run that goes on and will write `step` next: whatever earlier files of the folder hold of this
    /// step and later ones is no longer shown.
    ///
    /// # Errors
    /// As [`EventWriter::create`].
    pub fn resume(folder: &Path, step: u64) -> Result<Self, KitError> {
        let mut writer = Self::create(folder)?;
        let mut event = Message::event(step);
        // SessionLog { status = 1: START = 1 }.
        event.bytes(7, &[1 << 3, 1]);
        writer.write(&event)?;
        writer.flush()?;
        Ok(writer)
    }

    /// A point of the curve `tag`, such as `model.layers.2/fvu`. What stands before a slash names a group of curves.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<(), KitError> {
        // Summary { value = 1: Value { tag = 1, simple_value = 2 } }.
        let mut point = Message::default();
        point.bytes(1, tag.as_bytes());
        point.float(2, value);
        let mut summary = Message::default();
        summary.bytes(1, &point.0);
        let mut event = Message::event(step);
        event.bytes(5, &summary.0);
        self.write(&event)
    }

    /// Hands everything written so far to the system, so that a TensorBoard that is open shows it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> Result<(), KitError> {
        self.file.flush().map_err(KitError::io("write", &self.path))
    }

    /// The file written to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, event: &Message) -> Result<(), KitError> {
        let length = (event.0.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.0.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(&event.0);
        record.extend_from_slice(&masked_crc(&event.0).to_le_bytes());
        self.file.write_all(&record).map_err(KitError::io("write", &self.path))
    }
}

/// A name that sorts after those of the event files in the folder.
fn next_name(folder: &Path) -> Result<String, KitError> {
    let mut time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let entries = fs::read_dir(folder).map_err(KitError::io("read the folder", folder))?;
    for entry in entries {
        let name = entry.map_err(KitError::io("read the folder", folder))?.file_name();
        let of_file =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok());
        time = time.max(of_file.map_or(0, |of_file: u64| of_file.saturating_add(1)));
    }
    Ok(format!("{PREFIX}{time:010}.{}.{}", crate::resources::host_name(), std::process::id()))
}

/// The bytes of a protobuf message.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    /// The start of an event: when and at which step.
    fn event(step: u64) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut event = Self::default();
        event.key(1, 1);
        event.0.extend_from_slice(&seconds.to_le_bytes());
        event.key(2, 0);
        event.varint(step);
        event
    }

    /// A field's number and wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
    fn key(&mut self, field: u8, wire: u8) {
        self.0.push(field << 3 | wire);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u8, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn float(&mut self, field: u8, value: f32) {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli; polynomial 0x1edc6f41, here bit-reversed), a bit at a time: events are a hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1));
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Step and what it says, of every record of a file; checks the framing.
    fn read(path: &Path) -> Vec<(u64, String)> {
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(masked_crc(&rest[..8]).to_le_bytes(), rest[8..12]);
            let data = &rest[12..12 + length];
            assert_eq!(masked_crc(data).to_le_bytes(), rest[12 + length..16 + length]);
            rest = &rest[16 + length..];
            events.push(event(data));
        }
        events
    }

    fn event(data: &[u8]) -> (u64, String) {
        let (mut step, mut says) = (0, String::new());
        for (field, value) in fields(data) {
            match (field, value) {
                (1, Value::Number(time)) => assert!(f64::from_bits(time) > 1.7e9),
                (2, Value::Number(number)) => step = number,
                (3, Value::Bytes(version)) => says = String::from_utf8(version).unwrap(),
                (5, Value::Bytes(summary)) => {
                    let [(1, Value::Bytes(point))] = &fields(&summary)[..] else { panic!("{summary:?}") };
                    let [(1, Value::Bytes(tag)), (2, Value::Number(bits))] = &fields(point)[..] else {
                        panic!("{point:?}")
                    };
                    let value = f32::from_bits(*bits as u32);
                    says = format!("{} = {value}", String::from_utf8_lossy(tag));
                }
                (7, Value::Bytes(log)) => {
                    assert!(matches!(fields(&log)[..], [(1, Value::Number(1))]));
                    says = "start".to_owned();
                }
                other => panic!("{other:?}"),
            }
        }
        (step, says)
    }

    #[derive(Debug)]
    enum Value {
        Number(u64),
        Bytes(Vec<u8>),
    }

    fn fields(mut data: &[u8]) -> Vec<(u8, Value)> {
        let mut found = Vec::new();
        while let [key, rest @ ..] = data {
            data = rest;
            let wide =
                |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
            let value = match key & 7 {
                0 => Value::Number(varint(&mut data)),
                1 => Value::Number(wide(data.split_off(..8).unwrap())),
                2 => {
                    let length = varint(&mut data) as usize;
                    Value::Bytes(data.split_off(..length).unwrap().to_vec())
                }
                5 => Value::Number(wide(data.split_off(..4).unwrap())),
                wire => panic!("wire type {wire}"),
            };
            found.push((key >> 3, value));
        }
        found
    }

    fn varint(data: &mut &[u8]) -> u64 {
        let end = data.iter().position(|byte| byte & 0x80 == 0).unwrap();
        let bytes = data.split_off(..=end).unwrap();
        bytes.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f))
    }

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn records_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&folder.path().join("made/here")).unwrap();
        writer.scalar("layer/fvu", 0, 0.5).unwrap();
        writer.scalar(&"ü".repeat(100), 1 << 40, f32::MAX).unwrap();
        assert_eq!(read(writer.path()).len(), 1, "not yet flushed");
        writer.flush().unwrap();
        let expected = [
            (0, "brain.Event:2".to_owned()),
            (0, "layer/fvu = 0.5".to_owned()),
            (1 << 40, format!("{} = {}", "ü".repeat(100), f32::MAX)),
        ];
        assert_eq!(read(writer.path()), expected);
    }

    #[test]
    fn a_resumed_run_says_from_where_in_a_file_that_follows() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("events.out.tfevents.99999999990.elsewhere.1"), "").unwrap();
        fs::write(folder.path().join("events.out.tfevents.other"), "").unwrap();
        let first = EventWriter::create(folder.path()).unwrap();
        let mut second = EventWriter::resume(folder.path(), 300).unwrap();
        second.scalar("x", 300, 1.0).unwrap();
        second.flush().unwrap();
        assert!(first.path() < second.path(), "{first:?} {second:?}");
        let events: Vec<_> =
            read(second.path()).into_iter().map(|(step, says)| format!("{step} {says}")).collect();
        assert_eq!(events, ["0 brain.Event:2", "300 start", "300 x = 1"]);
        drop(first);
    }
}
