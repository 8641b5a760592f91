//! `decode_image` against PIL for every layout of pixels a file can have.

use image::RgbImage;
use lmm_prep::{decode_image, decode_image_upright, read_image_upright};
use safetensors::SafeTensors;

use crate::support::read;

#[test]
fn every_file_decodes_to_pils_pixels() {
    let bytes = read("decode/case.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut files: Vec<&str> =
        tensors.names().into_iter().filter_map(|name| name.strip_suffix("/file")).collect();
    files.sort_unstable();
    assert!(files.len() > 60);
    let mut wrong = Vec::new();
    for name in files {
        let file = tensors.tensor(&format!("{name}/file")).unwrap();
        let mut compare = |kind: &str, result: Result<RgbImage, lmm_prep::PrepError>| {
            let Ok(expected) = tensors.tensor(&format!("{name}/{kind}")) else { return };
            let image = match result {
                Ok(image) => image,
                Err(error) => return wrong.push(format!("{name} {kind}: {error}")),
            };
            let shape = [image.height() as usize, image.width() as usize, 3];
            if shape != *expected.shape() {
                return wrong
                    .push(format!("{name} {kind}: shape {shape:?} instead of {:?}", expected.shape()));
            }
            let differences =
                image.as_raw().iter().zip(expected.data()).map(|(&got, &want)| got.abs_diff(want));
            let worst = differences.clone().max().unwrap();
            let mean = differences.map(f64::from).sum::<f64>() / expected.data().len() as f64;
            // The figures in the documentation of `decode_image`.
            let (allowed, allowed_mean) = match name.split(' ').take(2).collect::<Vec<_>>()[..] {
                ["jpeg", "420"] => (4, 0.4),
                ["jpeg", "422"] => (3, 0.2),
                ["jpeg", _] => (2, 0.03),
                _ => (0, 0.0),
            };
            if worst > allowed || mean > allowed_mean {
                wrong.push(format!("{name} {kind}: differs by {worst} at most, {mean} on average"));
            }
        };
        compare("rgb", decode_image(file.data()));
        compare("upright", decode_image_upright(file.data()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_named_where_they_are_no_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.png");
    let says = |part: &str| {
        let error = read_image_upright(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(part) && text.contains("picture.png"), "{text}");
    };
    says("cannot read ");
    std::fs::write(&path, "not an image").unwrap();
    says("cannot read the image ");
    RgbImage::from_pixel(3, 2, image::Rgb([7, 8, 9])).save(&path).unwrap();
    assert_eq!(read_image_upright(&path).unwrap().dimensions(), (3, 2));
}

#[test]
fn what_is_no_image_is_an_error() {
    for bytes in [&b""[..], b"not an image", b"\x89PNG\r\n\x1a\n", &[0xff, 0xd8, 0xff]] {
        let error = decode_image(bytes).unwrap_err();
        assert_eq!(error.to_string(), "cannot decode the image");
    }
}

#[test]
fn a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded() {
    let bytes = read("decode/case.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut file = tensors.tensor("bmp rgb/file").unwrap().data().to_vec();
    for side in [18..22, 22..26] {
        file[side].copy_from_slice(&30_000_i32.to_le_bytes());
    }
    let error = decode_image(&file).unwrap_err().to_string();
    assert!(error.contains("30000 x 30000 pixels are more than"), "{error}");
}
