//! Pixel values against transformers' `LlavaNextImageProcessor`, bit for bit.

use image::RgbImage;
use lmm_prep::{Filter, ImageProcessor, PrepError, PreprocessorConfig, Size, decode_image_upright, resize};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{json, picture, read, sha256};

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

#[test]
fn every_tile_has_the_pixel_values_of_the_python_processor() {
    let (fixture, tensors) = (json("pixels/case.json"), read("pixels/case.safetensors"));
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    let files = read("decode/case.safetensors");
    let files = SafeTensors::deserialize(&files).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 50, "{} cases", cases.len());
    for (index, case) in cases.iter().enumerate() {
        let name = format!(
            "case {index} {} {}x{} {}",
            case["settings"], case["height"], case["width"], case["file"]
        );
        let settings = &fixture["settings"][case["settings"].as_str().unwrap()];
        let processor = ImageProcessor::new(PreprocessorConfig::from_json(&settings.to_string()).unwrap());
        let image: RgbImage = match case.get("file") {
            Some(file) => {
                let file = files.tensor(&format!("{}/file", file.as_str().unwrap())).unwrap();
                decode_image_upright(file.data()).unwrap()
            }
            None => picture(number(&case["height"]), number(&case["width"]), number(&case["seed"])),
        };
        let tiles = processor.tiles(&image, 1).unwrap();
        let shape: Vec<u32> = tiles.pixels.shape().iter().map(|&side| side as u32).collect();
        let expected: Vec<u32> = case["shape"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(shape, expected, "{name}: shape");
        let original = Size { height: number(&case["original"][0]), width: number(&case["original"][1]) };
        assert_eq!(tiles.original, original, "{name}: size");
        assert_eq!(tiles.grid.n_tiles(), tiles.pixels.shape()[0], "{name}: grid");

        let pixels = tiles.pixels.as_slice().unwrap();
        if let Ok(expected) = tensors.tensor(&format!("pixels.{index}")) {
            let expected = expected.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            for (place, (got, want)) in pixels.iter().zip(expected).enumerate() {
                assert_eq!(got.to_bits(), want.to_bits(), "{name}: value {place}: {got} instead of {want}");
            }
        }
        for sample in case["samples"].as_array().into_iter().flatten() {
            let (place, want) = (number(&sample[0]) as usize, sample[1].as_f64().unwrap() as f32);
            assert_eq!(pixels[place], want, "{name}: value {place}");
        }
        let bytes: Vec<u8> = pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(sha256(&bytes), case["sha256"].as_str().unwrap(), "{name}: some value differs");
    }
}

#[test]
fn settings_that_do_not_tile_are_refused() {
    let refused = |settings: &str| {
        let config = PreprocessorConfig::from_json(settings).unwrap();
        ImageProcessor::new(config).tiles(&picture(30, 40, 1), 4).unwrap_err().to_string()
    };
    let base = r#""image_grid_pinpoints": [[24, 48]], "crop_size": 24"#;
    let error =
        refused(&format!(r#"{{{base}, "size": {{"height": 24, "width": 30}}, "do_center_crop": false}}"#));
    assert!(error.contains("comes out 24x30") && error.contains("preprocessor_config.json"), "{error}");
    let error = refused(&format!(r#"{{{base}, "size": 12, "do_center_crop": false}}"#));
    assert!(error.contains("cut into 2 tiles of 24 pixels, but holds 8 of 12"), "{error}");
    let error = refused(r#"{"image_grid_pinpoints": [[2, 4]], "crop_size": 2, "size": 2}"#);
    assert!(error.contains("smaller than a patch"), "{error}");
}

#[test]
fn an_image_without_pixels_is_refused() {
    let processor = ImageProcessor::new(PreprocessorConfig::default());
    let error = processor.tiles(&RgbImage::new(0, 5), 14).unwrap_err();
    assert!(error.to_string().contains("5 x 0 pixels"), "{error}");
}

/// A row of 60,000 pixels is 256 x 15,360,000 once its shorter side is 256: 12 GB of which the crop shows 192 KiB.
#[test]
fn of_a_thin_image_only_what_the_crop_shows_is_made() {
    let settings =
        r#"{"size": {"shortest_edge": 256}, "crop_size": 256, "do_rescale": false, "do_normalize": false}"#;
    let processor = ImageProcessor::new(PreprocessorConfig::from_json(settings).unwrap());
    let colour = |at: u32| image::Rgb([(at * 37) as u8, (at * 91) as u8, (at * at) as u8]);
    let middle = 29_900..30_100;
    for lies in [true, false] {
        let of = |length: u32, first: u32| {
            if lies {
                RgbImage::from_fn(length, 1, |x, _| colour(x + first))
            } else {
                RgbImage::from_fn(1, length, |_, y| colour(y + first))
            }
        };
        let got = processor.whole(&of(60_000, 0)).unwrap();
        assert_eq!(got.shape(), [3, 256, 256]);
        // Scaled by 256 exactly, the pixels around the middle do not depend on those far from it.
        let (long, count) = (256 * middle.len() as u32, middle.len() as u32);
        let (height, width) = if lies { (256, long) } else { (long, 256) };
        let whole = resize(&of(count, middle.start), height, width, Filter::Bicubic);
        let (top, left) = ((height - 256) / 2, (width - 256) / 2);
        for ((channel, y, x), &value) in got.indexed_iter() {
            let pixel = whole.get_pixel(left + x as u32, top + y as u32);
            assert_eq!(value, f32::from(pixel.0[channel]), "channel {channel}, row {y}, column {x}");
        }
    }
}

#[test]
fn an_image_too_thin_for_any_resize_is_refused() {
    let refused = |settings: &str, image: &RgbImage| {
        let processor = ImageProcessor::new(PreprocessorConfig::from_json(settings).unwrap());
        processor.whole(image).unwrap_err()
    };
    // 16,384 times as long: more pixels in a row than a u32 counts.
    let error = refused(r#"{"size": {"shortest_edge": 16384}}"#, &RgbImage::new(300_000, 1));
    assert!(matches!(error, PrepError::ThinImage { height: 1, width: 300_000, .. }), "{error}");
    // All of it wanted.
    let uncropped = r#"{"size": {"shortest_edge": 224}, "do_center_crop": false}"#;
    let error = refused(uncropped, &RgbImage::new(2, 8_000)).to_string();
    assert!(error.contains("8000 x 2 pixels") && error.contains("896000x224"), "{error}");
}
