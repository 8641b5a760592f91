//! What users of [`Sam`] cannot reach: masks made in several parts, scores that are no numbers.

use std::collections::BTreeSet;

use super::*;

const CONFIG: &str = r#"{
    "model_type": "sam",
    "vision_config": {
        "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
        "window_size": 2, "global_attn_indexes": [], "num_pos_feats": 8, "mlp_ratio": 1.5
    },
    "prompt_encoder_config": { "hidden_size": 16, "image_size": 64 },
    "mask_decoder_config": { "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 24, "iou_head_hidden_dim": 8 }
}"#;

fn sam() -> Sam {
    torch_nn::tch::manual_seed(5);
    torch_nn::tch::set_num_threads(1);
    let config = SamConfig::from_json(CONFIG).unwrap();
    let processor = r#"{"size": {"longest_edge": 64}, "pad_size": 64}"#;
    let processor = SamProcessorConfig::from_json(processor).unwrap();
    // Masks differ much where norms keep their scale.
    let random = |(name, shape): (String, Vec<i64>)| {
        let inputs: i64 = shape.iter().skip(1).product();
        let scale = if name.ends_with("bias") { 0.5 } else { 2.0 / (inputs as f64).sqrt() };
        let base = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        (name, Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale + base)
    };
    let weights = Weights::from_tensors(parameter_shapes(&config).into_iter().map(random).collect());
    Sam::from_weights(config, processor, &weights).unwrap()
}

fn picture() -> RgbImage {
    RgbImage::from_fn(50, 31, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]))
}

fn boxes() -> Vec<BoxPrompt> {
    (0..5)
        .map(|index| f64::from(index) * 6.0)
        .map(|start| BoxPrompt { left: start, top: start / 2.0, right: start + 20.0, bottom: start + 5.0 })
        .collect()
}

/// 1024-pixel images and 8 boxes have 24 masks of which 16 are made at once; here 15 masks are made one, two and four at once.
#[test]
fn masks_made_in_parts_are_those_made_together() {
    let sam = sam();
    let image = sam.embed(&picture()).unwrap();
    let together = sam.masks(&image, &boxes(), true).unwrap();
    assert_eq!(together.len(), 15);
    // Masks that are mixed up show.
    assert!(together.windows(2).all(|pair| pair[0].score != pair[1].score));
    let shapes: BTreeSet<&[bool]> = together.iter().map(|mask| mask.pixels.as_slice()).collect();
    assert!(shapes.len() > 5, "{} different masks", shapes.len());
    for at_once in [1, 2, 4] {
        let mut parts = Vec::new();
        sam.for_each_of(&image, &boxes(), true, at_once, |mask| parts.push(mask)).unwrap();
        assert_eq!(parts, together, "{at_once} at once");
    }
}

#[test]
fn scores_that_are_no_numbers_are_an_error_and_not_empty_masks() {
    let sam = sam();
    let mut image = sam.embed(&picture()).unwrap();
    image.embedding *= f64::NAN;
    let mut shown = 0;
    let error = sam.for_each_mask(&image, &boxes(), true, |_| shown += 1).unwrap_err();
    assert!(matches!(error, VisionError::NotFinite { .. }), "{error}");
    assert_eq!(shown, 0);
}

/// The places of prompts are encoded in f32 whatever the model's dtype.
#[test]
fn frequencies_are_not_rounded_with_the_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let processor = r#"{"size": {"longest_edge": 64}, "pad_size": 64}"#;
    std::fs::write(folder.path().join("preprocessor_config.json"), processor).unwrap();
    torch_nn::tch::manual_seed(6);
    let config = SamConfig::from_json(CONFIG).unwrap();
    let tensors: Vec<(String, Tensor)> = parameter_shapes(&config)
        .into_iter()
        .map(|(name, shape)| (name, Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 3.0))
        .collect();
    Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
    let patches = |kind| Sam::open(folder.path(), Device::Cpu, kind).unwrap().prompt_encoder().patches();
    let (single, half) = (patches(Kind::Float), patches(Kind::BFloat16));
    assert_eq!(half.kind(), Kind::BFloat16);
    assert!(half.equal(&single.to_kind(Kind::BFloat16)));
}
