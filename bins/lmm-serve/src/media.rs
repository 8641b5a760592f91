//! Images in messages: data URLs to pixels.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use image::{ImageReader, RgbImage};

/// The picture in a `data:` URL, turned upright. The file's own bytes decide what format it has, not the URL. `left` is how
/// many pixels it may have.
///
/// # Errors
/// What is wrong with it, for the client to read.
pub(crate) fn decode(url: &str, left: u64) -> Result<RgbImage, String> {
    let bytes = bytes_of(url)?;
    let no_image = |reason: &dyn std::fmt::Display| {
        format!("its data is no image (PNG, JPEG, WebP, GIF, BMP, TIFF, PNM): {reason}")
    };
    let reader =
        ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(|error| no_image(&error))?;
    // Of the header alone: nothing is unpacked before its size is known.
    let (width, height) = reader.into_dimensions().map_err(|error| no_image(&error))?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > left {
        return Err(format!(
            "it has {width} x {height} pixels, more than the {left} left of what a request may have (--max-pixels)"
        ));
    }
    lmm_prep::decode_image_upright(&bytes).map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => no_image(&cause),
        None => error.to_string(),
    })
}

fn bytes_of(url: &str) -> Result<Vec<u8>, String> {
    const FORM: &str = "images are data URLs: data:image/png;base64,...";
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "data" {
        return Err(match scheme.as_str() {
            "http" | "https" => format!("this server fetches nothing from the network; {FORM}"),
            _ => format!("{FORM}; this is none"),
        });
    }
    let Some((head, data)) = rest.split_once(',') else {
        return Err(format!("{FORM}; this one has no comma"));
    };
    if !head.rsplit(';').next().unwrap_or_default().eq_ignore_ascii_case("base64") {
        return Err(format!("{FORM}; this one is not in base64"));
    }
    let decoded = if data.ends_with('=') { STANDARD.decode(data) } else { STANDARD_NO_PAD.decode(data) };
    decoded.map_err(|error| format!("its base64 is broken: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_pixel(width, height, image::Rgb([9, 8, 7]))
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    #[test]
    fn data_urls_with_or_without_padding_and_under_any_name() {
        let bytes = png(3, 2);
        let padded = STANDARD.encode(&bytes);
        for url in [
            format!("data:image/png;base64,{padded}"),
            format!("DATA:image/jpeg;name=x.png;BASE64,{padded}"),
            format!("data:;base64,{}", padded.trim_end_matches('=')),
        ] {
            let image = decode(&url, 6).unwrap();
            assert_eq!((image.dimensions(), image.get_pixel(2, 1).0), ((3, 2), [9, 8, 7]), "{url}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        let large = format!("data:image/png;base64,{}", STANDARD.encode(png(3, 3)));
        let mut cut = png(40, 40);
        cut.truncate(60);
        let cut = format!("data:image/png;base64,{}", STANDARD.encode(cut));
        for (url, reason) in [
            ("https://example.com/x.png", "fetches nothing"),
            ("HTTP://example.com/x.png", "fetches nothing"),
            ("file:///etc/passwd", "this is none"),
            ("cat.png", "this is none"),
            ("data", "this is none"),
            ("data:image/png;base64", "no comma"),
            ("data:image/svg+xml,<svg/>", "not in base64"),
            ("data:image/png;base64,ab*d", "base64 is broken"),
            ("data:image/png;base64,aGVsbG8=", "no image"),
            ("", "this is none"),
            (&large, "more than the 8 left"),
            (&cut, "no image"),
        ] {
            let error = decode(url, 8_u64.max(if url == cut { 1600 } else { 8 })).unwrap_err();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
