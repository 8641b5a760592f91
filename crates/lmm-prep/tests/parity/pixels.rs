//! Pixel values against transformers' `LlavaNextImageProcessor`, bit for bit.

use image::RgbImage;
use lmm_prep::{ImageProcessor, PreprocessorConfig, Size, decode_image_upright};
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
