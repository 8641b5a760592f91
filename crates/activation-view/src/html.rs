//! What every page is made of: escaped text, pictures in place, and the frame around it all.

use std::io::Cursor;

use image::{ImageFormat, RgbImage};

/// Colours and type for pages that follow the reader's choice of light or dark. Colours are variables: `--ink` and `--paper`,
/// `--quiet` for what matters less, `--line`, `--soft` for surfaces, `--first` and `--other` for what is compared. It has rules for
/// tables, [`Histogram`](crate::Histogram)s, and `.scroll`, which holds what may be wider than a phone.
pub const PAGE_STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1d21;--paper:#fff;--quiet:#5b6069;--line:#d8dbe0;--soft:#f5f6f8;--first:#1f6fb2;--other:#8a9099}\
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#16181c;--quiet:#a2a8b2;--line:#373c44;--soft:#1e2126;--first:#5aa9e6;--other:#7d848e}}\
*{box-sizing:border-box}\
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}\
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .6rem}h2{font-size:1.25rem;margin:2.6rem 0 .4rem;border-top:1px solid var(--line);padding-top:1.2rem}\
h3{font-size:1.05rem;margin:1.8rem 0 .5rem}p{margin:.4rem 0;max-width:75ch}small,.note{color:var(--quiet);font-size:.85rem}\
.scroll{overflow-x:auto}.scroll:focus-visible{outline:2px solid var(--first)}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.8rem 0;font-size:.92rem}\
th,td{padding:.35rem .8rem .35rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}\
th:first-child,td:first-child{text-align:left}thead th{font-weight:600;vertical-align:bottom;white-space:normal}\
td small{display:block}figure{margin:1rem 0}figcaption{color:var(--quiet);font-size:.85rem}\
svg.histogram{display:block;width:100%;max-width:44rem;height:auto;font:15px system-ui,sans-serif}\
.histogram text{fill:var(--ink)}.histogram .quiet{fill:var(--quiet)}.histogram .first{fill:var(--first)}.histogram .other{fill:var(--other)}\
.histogram line{stroke:var(--line)}.histogram .mean{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:3 2}";

/// Text as it may stand in a page, in an element or between quotes of an attribute.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // What cannot stand in a page.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A picture as a URL that holds it.
///
/// # Errors
/// When it cannot be encoded: it is empty, or `format` is not one that can be written.
pub fn data_url(picture: &RgbImage, format: ImageFormat) -> Result<String, image::ImageError> {
    use base64::Engine as _;
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format)?;
    let data = base64::engine::general_purpose::STANDARD.encode(file.get_ref());
    Ok(format!("data:{};base64,{data}", format.to_mime_type()))
}

/// A page in one file: a title, which is text, a style sheet and a body, which are CSS and HTML.
pub fn framed(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{style}</style></head><body>\n\
         {body}</body></html>\n",
        escaped(title)
    )
}
