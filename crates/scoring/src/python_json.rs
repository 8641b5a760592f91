//! JSON to the byte as Python's `json.dump(value, file, indent=4)` writes it, and read back with its `NaN`.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Writes a value, with no newline at the end. What serde_json would write as null because it is no number becomes `NaN`, and so
/// does null.
pub(crate) fn to_string(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    let python = Python(PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut Serializer::with_formatter(&mut bytes, python))?;
    Ok(String::from_utf8(bytes).expect("only ASCII is written"))
}

/// The text with every `NaN` that stands outside of strings as `null`.
pub(crate) fn without_nan(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut is_string) = (text, false);
    while let Some(at) = rest.find(['"', '\\', 'N']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = if let Some(escaped) = rest.strip_prefix('\\') {
            // With what it escapes.
            1 + escaped.chars().next().map_or(0, char::len_utf8)
        } else if rest.starts_with('"') {
            is_string = !is_string;
            1
        } else if !is_string && rest.starts_with("NaN") {
            out.push_str("null");
            rest = &rest[3..];
            continue;
        } else {
            1
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// A number as Python's `repr` writes it: the fewest digits that are read back as the same number, with an exponent below 1e-4 and from
/// 1e16 on.
fn float(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        let text = value.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

struct Python(PrettyFormatter<'static>);

impl Formatter for Python {
    fn write_null<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"NaN")
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for character in fragment.chars() {
            if (' '..='~').contains(&character) {
                writer.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_repr_does() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (23.456_7, "23.4567"),
            (1.0 / 3.0, "0.3333333333333333"),
            (0.0001, "0.0001"),
            (0.000_099, "9.9e-05"),
            (1e-5, "1e-05"),
            (1.5e-110, "1.5e-110"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e16, "1e+16"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn texts_are_ascii_and_lists_are_indented() {
        let text =
            to_string(&serde_json::json!([{"a": "\u{e9}\u{1f600}\u{7f}\n\"", "b": [], "c": [1, 0.5]}]))
                .unwrap();
        let want = "[\n    {\n        \"a\": \"\\u00e9\\ud83d\\ude00\\u007f\\n\\\"\",\n        \"b\": [],\n        \"c\": [\n            \
                    1,\n            0.5\n        ]\n    }\n]";
        assert_eq!(text, want);
        assert_eq!(to_string(&[f64::NAN]).unwrap(), "[\n    NaN\n]");
    }

    #[test]
    fn only_bare_nans_are_replaced() {
        assert_eq!(without_nan(r#"[NaN, "NaN", "a\"NaN", NaN]"#), r#"[null, "NaN", "a\"NaN", null]"#);
        assert_eq!(without_nan(r#"{"N\\": NaN, "é": "N"}"#), r#"{"N\\": null, "é": "N"}"#);
        assert!(matches!(without_nan("[1]"), Cow::Borrowed("[1]")));
    }
}
