//! Reads JSON configuration files field by field, so that every complaint names file and field.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::PrepError;

/// The object of one configuration file, or of one object inside it. Fields are taken out; what stays is `extra`.
#[derive(Debug)]
pub struct Fields {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object a file holds.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] where the file holds no object.
    pub fn open(path: &Path) -> Result<Self, PrepError> {
        let text =
            fs::read_to_string(path).map_err(|source| PrepError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// The object a file holds, or `None` where there is no such file.
    pub(crate) fn open_optional(path: &Path) -> Result<Option<Self>, PrepError> {
        if path.is_file() { Self::open(path).map(Some) } else { Ok(None) }
    }

    /// The object `text` holds; `path` is for messages only.
    ///
    /// # Errors
    /// As [`Fields::open`], but for reading.
    pub fn parse(text: &str, path: &Path) -> Result<Self, PrepError> {
        let value =
            serde_json::from_str(text).map_err(|source| PrepError::Json { path: path.into(), source })?;
        Self::of(path.into(), String::new(), value)
    }

    fn of(path: PathBuf, prefix: String, value: Value) -> Result<Self, PrepError> {
        match value {
            Value::Object(map) => Ok(Self { path, prefix, map }),
            other => Err(PrepError::Field {
                path,
                field: if prefix.is_empty() { "(whole file)".into() } else { prefix },
                expected: "a JSON object".into(),
                got: shown(&other),
            }),
        }
    }

    /// A complaint about the field `name`.
    pub fn error(&self, name: &str, expected: impl Into<String>, got: impl Into<String>) -> PrepError {
        PrepError::Field {
            path: self.path.clone(),
            field: self.dotted(name),
            expected: expected.into(),
            got: got.into(),
        }
    }

    fn dotted(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.into() } else { format!("{}.{name}", self.prefix) }
    }

    /// The raw value, taken out; `None` where the key is absent.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name)
    }

    /// The object under `name`; absent and `null` are `None`.
    ///
    /// # Errors
    /// [`PrepError::Field`] where the value is no object.
    pub fn nullable_object(&mut self, name: &str) -> Result<Option<Self>, PrepError> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Self::of(self.path.clone(), self.dotted(name), value).map(Some),
        }
    }

    /// A value that must be there and not `null`.
    ///
    /// # Errors
    /// [`PrepError::Field`] where it is not, or not of this type.
    pub fn required<T: FromJson>(&mut self, name: &str) -> Result<T, PrepError> {
        match self.map.remove(name) {
            None => Err(self.error(name, T::EXPECTED, "nothing (the key is missing)")),
            Some(value) => self.convert(name, &value),
        }
    }

    /// A value, or `default` where the key is absent. `null` is refused: Python would carry `None` into arithmetic.
    ///
    /// # Errors
    /// [`PrepError::Field`] where the value is not of this type.
    pub fn or<T: FromJson>(&mut self, name: &str, default: T) -> Result<T, PrepError> {
        match self.map.remove(name) {
            None => Ok(default),
            Some(value) => self.convert(name, &value),
        }
    }

    /// A number from `range`, or `default` where the key is absent.
    ///
    /// # Errors
    /// [`PrepError::Field`] where the value is no such number.
    pub fn within(
        &mut self,
        name: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, PrepError> {
        let value = self.or(name, default)?;
        if range.contains(&value) {
            return Ok(value);
        }
        let expected = format!("{} to {}", range.start(), range.end());
        Err(self.error(name, expected, value.to_string()))
    }

    /// A number above 0, or `default` where the key is absent.
    ///
    /// # Errors
    /// [`PrepError::Field`] where the value is no such number.
    pub fn positive(&mut self, name: &str, default: f64) -> Result<f64, PrepError> {
        let value = self.or(name, default)?;
        if value > 0.0 { Ok(value) } else { Err(self.error(name, "a number above 0", value.to_string())) }
    }

    /// A value that may be `null`; an absent key gives `default`.
    ///
    /// # Errors
    /// [`PrepError::Field`] where the value is not of this type.
    pub fn nullable<T: FromJson>(&mut self, name: &str, default: Option<T>) -> Result<Option<T>, PrepError> {
        match self.map.remove(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => self.convert(name, &value).map(Some),
        }
    }

    fn convert<T: FromJson>(&self, name: &str, value: &Value) -> Result<T, PrepError> {
        T::from_json(value).ok_or_else(|| self.error(name, T::EXPECTED, shown(value)))
    }

    /// What nobody asked for, kept so that nothing is lost.
    pub fn into_extra(self) -> Map<String, Value> {
        if !self.map.is_empty() {
            let keys: Vec<&str> = self.map.keys().map(String::as_str).collect();
            tracing::debug!(path = %self.path.display(), prefix = %self.prefix, ?keys, "fields kept but not used");
        }
        self.map
    }
}

/// A value as it is quoted in a message: JSON, shortened.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Types a field can have. No coercion: a string is not a number, 1.5 is not an integer.
pub trait FromJson: Sized {
    /// What to say when the value does not fit.
    const EXPECTED: &'static str;
    /// The value, if it fits.
    fn from_json(value: &Value) -> Option<Self>;
}

impl FromJson for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_json(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl FromJson for usize {
    const EXPECTED: &'static str = "a non-negative integer";
    fn from_json(value: &Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }
}

impl FromJson for u32 {
    const EXPECTED: &'static str = "a non-negative integer below 2^32";
    fn from_json(value: &Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }
}

impl FromJson for i64 {
    const EXPECTED: &'static str = "an integer";
    fn from_json(value: &Value) -> Option<Self> {
        value.as_i64()
    }
}

impl FromJson for f64 {
    const EXPECTED: &'static str = "a number";
    fn from_json(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl FromJson for [f64; 3] {
    const EXPECTED: &'static str = "one number or three";
    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Array(_) => Vec::<f64>::from_json(value)?.try_into().ok(),
            number => f64::from_json(number).map(|number| [number; 3]),
        }
    }
}

impl FromJson for String {
    const EXPECTED: &'static str = "a string";
    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl<T: FromJson> FromJson for Vec<T> {
    const EXPECTED: &'static str = "a list, every item of its proper type";
    fn from_json(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_json).collect()
    }
}

/// One id, or a list of them, as `eos_token_id` comes.
pub(crate) struct Ids(pub(crate) Vec<u32>);

impl FromJson for Ids {
    const EXPECTED: &'static str = "a token id or a list of token ids";
    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Array(_) => Vec::from_json(value).map(Ids),
            _ => u32::from_json(value).map(|id| Ids(vec![id])),
        }
    }
}
