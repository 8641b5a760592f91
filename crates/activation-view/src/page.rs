//! [`Page`]: a self-contained HTML page.

use std::fmt::Write as _;
use std::ops::Range;

use image::{ImageFormat, RgbImage};

use crate::{colour, data_url, escaped, framed};

const STYLE: &str = "body{font:15px/1.6 system-ui,sans-serif;color:#1c1c1c;background:#fff;max-width:64rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2rem 0 .3rem;border-top:1px solid #ddd;padding-top:.8rem}\
p{margin:.3rem 0}.note{color:#555}.tokens{white-space:pre-wrap;overflow-wrap:anywhere}.tokens span{border-radius:3px}\
.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:.5rem 0}figcaption{color:#555;font-size:.85rem}\
img{max-width:100%;min-width:12rem;image-rendering:auto;border:1px solid #ddd}\
.legend span{padding:.1rem .6rem;border-radius:3px;margin-right:.4rem}";

/// A token of a text and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    text: String,
    value: f32,
}

impl Token {
    /// A token as the reader is to see it, white space included.
    pub fn new(text: impl Into<String>, value: f32) -> Self {
        Self { text: text.into(), value }
    }

    /// The tokens of a prompt: `texts` and `values` of every position, those of an image, which lie at `images` (ascending), as one
    /// `[image]` with the value that `of_image` makes of theirs.
    ///
    /// # Panics
    /// When there are not as many values as texts, or an image lies beyond them.
    #[track_caller]
    pub fn of_prompt(
        texts: &[String],
        values: &[f32],
        images: &[Range<usize>],
        of_image: impl Fn(&[f32]) -> f32,
    ) -> Vec<Self> {
        assert_eq!(texts.len(), values.len(), "texts against values");
        let mut tokens = Vec::new();
        let mut at = 0;
        let end = texts.len()..texts.len();
        for image in images.iter().filter(|image| !image.is_empty()).chain([&end]) {
            let words = texts[at..image.start].iter().zip(&values[at..image.start]);
            tokens.extend(words.map(|(text, &value)| Self::new(text.clone(), value)));
            if !image.is_empty() {
                tokens.push(Self::new(" [image]", of_image(&values[image.clone()])));
            }
            at = image.end;
        }
        tokens
    }
}

/// An HTML page in one file: a title, a legend, and sections of coloured text and pictures.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), body: String::new() }
    }

    /// Begins a section with a heading and a note below it, which may be empty.
    pub fn section(&mut self, heading: &str, note: &str) -> &mut Self {
        let _ = writeln!(self.body, "<h2>{}</h2>", escaped(heading));
        if !note.is_empty() {
            let _ = writeln!(self.body, "<p class=\"note\">{}</p>", escaped(note));
        }
        self
    }

    /// A text whose tokens are coloured by their share of the largest absolute value among them; the value shows in the
    /// tooltip.
    pub fn tokens(&mut self, tokens: &[Token]) -> &mut Self {
        let finite = tokens.iter().map(|token| token.value.abs()).filter(|value| value.is_finite());
        let peak = finite.fold(0.0, f32::max);
        self.body.push_str("<p class=\"tokens\">");
        for token in tokens {
            let style = if peak > 0.0 { background(token.value / peak) } else { String::new() };
            let text = escaped(&token.text);
            let _ = write!(self.body, "<span{style} title=\"{}\">{text}</span>", token.value);
        }
        self.body.push_str("</p>\n");
        self
    }

    /// Pictures side by side with their captions, embedded as PNG.
    ///
    /// # Errors
    /// When a picture cannot be encoded: it is empty.
    pub fn pictures(&mut self, pictures: &[(RgbImage, String)]) -> Result<&mut Self, image::ImageError> {
        self.body.push_str("<div class=\"row\">");
        for (picture, caption) in pictures {
            let (url, caption) = (data_url(picture, ImageFormat::Png)?, escaped(caption));
            let _ = write!(
                self.body,
                "<figure><img alt=\"{caption}\" src=\"{url}\"><figcaption>{caption}</figcaption></figure>"
            );
        }
        self.body.push_str("</div>\n");
        Ok(self)
    }

    /// Pictures side by side with their captions, from files beside the page: each by its path from the page's folder on, with `/`
    /// between the parts.
    pub fn linked(&mut self, pictures: &[(String, String)]) -> &mut Self {
        self.body.push_str("<div class=\"row\">");
        for (path, caption) in pictures {
            let (path, caption) = (percent_encoded(path), escaped(caption));
            let _ = write!(
                self.body,
                "<figure><img loading=\"lazy\" alt=\"{caption}\" src=\"{path}\"><figcaption>{caption}</figcaption></figure>"
            );
        }
        self.body.push_str("</div>\n");
        self
    }

    /// The whole page.
    pub fn html(&self) -> String {
        let title = escaped(&self.title);
        let mark = |share: f32, text: &str| format!("<span{}>{text}</span>", background(share));
        let legend = [mark(-1.0, "opposes"), mark(0.0, "0"), mark(1.0, "supports or is on")].concat();
        let body = format!(
            "<h1>{title}</h1>\n<p class=\"legend\">{legend} Colours go by the largest value of each text and picture; \
             values are in the tooltips.</p>\n{}",
            self.body
        );
        framed(&self.title, STYLE, &body)
    }
}

/// The attribute that colours a token; none for 0.
fn background(share: f32) -> String {
    let ([red, green, blue], strength) = colour(share);
    if strength == 0.0 {
        return String::new();
    }
    // Dark text stays readable on three quarters of a colour.
    format!(" style=\"background:rgba({red},{green},{blue},{:.3})\"", strength * 0.75)
}

/// A path as a relative URL.
fn percent_encoded(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for &byte in path.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn texts_are_escaped_and_coloured_by_sign() {
        let mut page = Page::new("<b>");
        page.section("a & b", "\"note\"").tokens(&[
            Token::new("<script>", 2.0),
            Token::new(" it's\n", -1.0),
            Token::new("none", 0.0),
            Token::new("nan", f32::NAN),
        ]);
        let html = page.html();
        assert!(html.contains("<title>&lt;b&gt;</title>") && html.contains("<h2>a &amp; b</h2>"));
        assert!(!html.contains("<script>"));
        assert!(html.contains("rgba(235,70,30,0.750)\" title=\"2\">&lt;script&gt;</span>"), "{html}");
        assert!(html.contains("rgba(40,100,235,0.375)\" title=\"-1\"> it&#39;s\n</span>"));
        assert!(html.contains("<span title=\"0\">none</span>"));
        assert!(html.contains("<span title=\"NaN\">nan</span>"));
    }

    #[test]
    fn an_image_is_one_token_of_a_prompt() {
        let texts = ["a", "", "", " b", ""].map(str::to_owned);
        let sum = |values: &[f32]| values.iter().sum();
        let tokens = Token::of_prompt(&texts, &[1.0, 2.0, 3.0, 4.0, 5.0], &[1..3, 4..5], sum);
        let expected = [("a", 1.0), (" [image]", 5.0), (" b", 4.0), (" [image]", 5.0)];
        assert_eq!(tokens, expected.map(|(text, value)| Token::new(text, value)));
        assert_eq!(Token::of_prompt(&texts[..1], &[1.0], &[], sum), [Token::new("a", 1.0)]);
    }

    #[test]
    fn linked_pictures_are_not() {
        let mut page = Page::new("x");
        page.linked(&[("images/a b\"#1.png".to_owned(), "<one>".to_owned())]);
        let html = page.html();
        assert!(
            html.contains("src=\"images/a%20b%22%231.png\"") && html.contains("alt=\"&lt;one&gt;\""),
            "{html}"
        );
        assert!(!html.contains("base64"));
    }

    #[test]
    fn pictures_are_part_of_the_page() {
        let mut page = Page::new("x");
        page.pictures(&[(RgbImage::from_pixel(2, 1, Rgb([1, 2, 3])), "one".to_owned())]).unwrap();
        let html = page.html();
        let data = html.split("base64,").nth(1).unwrap().split('"').next().unwrap();
        use base64::Engine as _;
        let png = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().into_rgb8().get_pixel(1, 0).0, [1, 2, 3]);
        assert!(page.pictures(&[(RgbImage::new(0, 0), String::new())]).is_err());
    }
}
