//! Reads JSON configuration files field by field, so that every complaint names file and field.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::PrepError;

/// The object of one configuration file, or of one object inside it. Fields are taken out; what stays is `extra`.
pub(crate) struct Fields {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object a file holds.
    pub(crate) fn open(path: &Path) -> Result<Self, PrepError> {
        let text =
            fs::read_to_string(path).map_err(|source| PrepError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// The object a file holds, or `None` where there is no such file.
    pub(crate) fn open_optional(path: &Path) -> Result<Option<Self>, PrepError> {
        if path.is_file() { Self::open(path).map(Some) } else { Ok(None) }
    }

    /// The object `text` holds; `path` is for messages only.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, PrepError> {
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
    pub(crate) fn error(&self, name: &str, expected: impl Into<String>, got: impl Into<String>) -> PrepError {
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
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name)
    }

    /// The object under `name`; absent and `null` are `None`.
    pub(crate) fn nullable_object(&mut self, name: &str) -> Result<Option<Self>, PrepError> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Self::of(self.path.clone(), self.dotted(name), value).map(Some),
        }
    }

    /// A value that must be there and not `null`.
    pub(crate) fn required<T: FromJson>(&mut self, name: &str) -> Result<T, PrepError> {
        match self.map.remove(name) {
            None => Err(self.error(name, T::EXPECTED, "nothing (the key is missing)")),
            Some(value) => self.convert(name, &value),
        }
    }

    /// A value, or `default` where the key is absent. `null` is refused: Python would carry `None` into arithmetic.
    pub(crate) fn or<T: FromJson>(&mut self, name: &str, default: T) -> Result<T, PrepError> {
        match self.map.remove(name) {
            None => Ok(default),
            Some(value) => self.convert(name, &value),
        }
    }

    /// A value that may be `null`; an absent key gives `default`.
    pub(crate) fn nullable<T: FromJson>(
        &mut self,
        name: &str,
        default: Option<T>,
    ) -> Result<Option<T>, PrepError> {
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
    pub(crate) fn into_extra(self) -> Map<String, Value> {
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
pub(crate) trait FromJson: Sized {
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
