//! Segment Anything against itself: what is computed together equals what is computed alone, files are read strictly.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made should fail its test")]

use std::collections::BTreeMap;

use image::RgbImage;
use lmm_prep::{PrepError, Size};
use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{NnError, Weights};
use vision_models::VisionError;
use vision_models::sam::{
    BoxPrompt, PointLabel, PointPrompt, Sam, SamConfig, SamProcessorConfig, SamPrompt, parameter_shapes,
};

const CONFIG: &str = r#"{
    "model_type": "sam",
    "vision_config": {
        "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 80,
        "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8, "mlp_ratio": 1.5
    },
    "prompt_encoder_config": { "hidden_size": 16, "image_size": 80, "num_point_embeddings": 5 },
    "mask_decoder_config": { "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 24, "iou_head_hidden_dim": 8 }
}"#;

fn processor() -> SamProcessorConfig {
    SamProcessorConfig::from_json(r#"{"size": {"longest_edge": 80}, "pad_size": 80}"#).unwrap()
}

fn tensors() -> BTreeMap<String, Tensor> {
    let numbers = |(seed, (name, shape)): (usize, (String, Vec<i64>))| {
        let count: i64 = shape.iter().product();
        let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed as f64;
        // Uniform from -1 to 1, as good as random.
        let noise = (angles.sin() * 43_758.545).frac().to_kind(Kind::Float);
        let inputs = (count / shape[0]).max(1) as f64;
        let scale = if name.ends_with("bias") { 0.5 } else { 3.0 / inputs.sqrt() };
        // Norms keep their scale, so that nothing dies out.
        let base = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        (name, (noise * scale + base).view(shape.as_slice()))
    };
    let config = SamConfig::from_json(CONFIG).unwrap();
    parameter_shapes(&config).into_iter().enumerate().map(numbers).collect()
}

fn of(tensors: BTreeMap<String, Tensor>) -> Result<Sam, VisionError> {
    torch_nn::tch::set_num_threads(1);
    let config = SamConfig::from_json(CONFIG).unwrap();
    Sam::from_weights(config, processor(), &Weights::from_tensors(tensors))
}

fn picture(height: u32, width: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]))
}

fn box_at(index: usize) -> BoxPrompt {
    let start = index as f64;
    BoxPrompt { left: start, top: 2.0 * start, right: start + 20.0, bottom: 2.0 * start + 9.5 }
}

/// Together and alone may go through kernels of other shapes, whose sums differ in the last bits.
fn assert_close(got: &Tensor, want: &Tensor) {
    assert_eq!(got.size(), want.size());
    let error = (got - want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn many_prompts_of_several_shapes_are_answered_one_by_one_and_in_order() {
    let sam = of(tensors()).unwrap();
    let image = sam.embed(&picture(33, 60)).unwrap();
    let mut prompts: Vec<SamPrompt> = (0..19).map(|index| box_at(index).into()).collect();
    let point = |x: f64, label| PointPrompt { x, y: x / 2.0, label };
    prompts.insert(3, point(8.0, PointLabel::Object).into());
    prompts.push(SamPrompt {
        points: vec![point(5.0, PointLabel::Object), point(30.0, PointLabel::Background)],
        bounds: Some(box_at(4)),
    });
    for (multimask, per_prompt) in [(false, 1), (true, 3)] {
        let masks = sam.masks(&image, &prompts, multimask).unwrap();
        assert_eq!(masks.len(), per_prompt * prompts.len());
        for (index, mask) in masks.iter().enumerate() {
            assert_eq!((mask.prompt, mask.height, mask.width), (index / per_prompt, 33, 60));
            assert_eq!(mask.pixels.len(), 33 * 60);
        }
        for (index, prompt) in prompts.iter().enumerate() {
            let alone = sam.masks(&image, std::slice::from_ref(prompt), multimask).unwrap();
            for (together, alone) in masks[index * per_prompt..].iter().zip(&alone) {
                assert!((together.score - alone.score).abs() < 1e-5, "prompt {index}");
                let differing = together.pixels.iter().zip(&alone.pixels).filter(|(a, b)| a != b).count();
                assert!(differing <= 2, "prompt {index}: {differing} pixels");
            }
        }
        // The masks depend on the prompts at all.
        assert!(masks.iter().any(|mask| mask.pixels != masks[0].pixels));
    }
    assert!(sam.masks(&image, &[] as &[SamPrompt], true).unwrap().is_empty());
}

#[test]
fn images_embedded_together_are_those_embedded_alone() {
    let sam = of(tensors()).unwrap();
    let pictures = [picture(33, 60), picture(90, 20), picture(80, 80)];
    let together = sam.embed_batch(&pictures).unwrap();
    for (picture, image) in pictures.iter().zip(&together) {
        let alone = sam.embed(picture).unwrap();
        assert_eq!(image.sizes, alone.sizes);
        assert_eq!(alone.embedding.size(), [1, 16, 5, 5]);
        assert_close(&image.embedding, &alone.embedding);
    }
    assert!(sam.embed_batch(&[]).unwrap().is_empty());
    let thin = sam.embed_batch(&[picture(33, 60), picture(1, 200)]);
    assert!(matches!(thin, Err(VisionError::ImageSize { height: 1, width: 200, .. })), "{thin:?}");
    let empty = sam.embed(&RgbImage::new(0, 4));
    assert!(matches!(empty, Err(VisionError::Prep(PrepError::EmptyImage { height: 4, width: 0 }))));
}

#[test]
fn half_precision_stays_near() {
    let single = of(tensors()).unwrap();
    let halves = tensors().into_iter().map(|(name, tensor)| (name, tensor.to_kind(Kind::BFloat16)));
    let half = of(halves.collect()).unwrap();
    let [single, half] = [&single, &half].map(|sam| sam.embed(&picture(33, 60)).unwrap().embedding);
    assert_eq!(half.kind(), Kind::BFloat16);
    let error = (half.to_kind(Kind::Float) - &single).norm() / single.norm();
    assert!(error.double_value(&[]) < 0.05, "{error:?}");
}

#[test]
fn the_shared_encoding_may_go_by_either_name_or_by_both() {
    const SHARED: &str = "shared_image_embedding.positional_embedding";
    const COPY: &str = "prompt_encoder.shared_embedding.positional_embedding";
    let places = |sam: &Sam| sam.prompt_encoder().patches();
    let expected = places(&of(tensors()).unwrap());

    let mut both = tensors();
    // transformers ties the second to the first.
    both.insert(COPY.to_owned(), Tensor::zeros([2, 8], (Kind::Float, Device::Cpu)));
    assert!(places(&of(both).unwrap()).equal(&expected));

    let mut moved = tensors();
    let encoding = moved.remove(SHARED).unwrap();
    moved.insert(COPY.to_owned(), encoding);
    assert!(places(&of(moved).unwrap()).equal(&expected));

    let mut neither = tensors();
    neither.remove(SHARED);
    neither.insert("vision_encoder.layers.2.layer_norm1.weight".to_owned(), Tensor::from(1.0));
    let Err(VisionError::Weights(NnError::Weights { missing, unused, mismatched, .. })) = of(neither) else {
        panic!()
    };
    assert_eq!(missing, [SHARED]);
    assert_eq!(unused, ["vision_encoder.layers.2.layer_norm1.weight"]);
    assert!(mismatched.is_empty());
}

#[test]
fn a_folder_is_read_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let open = || Sam::open(folder.path(), Device::Cpu, Kind::Float);
    assert!(matches!(open(), Err(VisionError::Prep(PrepError::Read { .. }))));
    write("config.json", CONFIG);
    write("preprocessor_config.json", "{}");
    let error = open().unwrap_err().to_string();
    assert!(error.contains("image_size = 80") && error.contains("1024x1024"), "{error}");
    write("preprocessor_config.json", r#"{"size": {"longest_edge": 64}, "pad_size": 80}"#);
    assert!(matches!(open(), Err(VisionError::Weights(NnError::NoWeights { .. }))));
    let named: Vec<(String, Tensor)> = tensors().into_iter().collect();
    Tensor::write_safetensors(&named, folder.path().join("model.safetensors")).unwrap();
    let sam = open().unwrap();
    let image = sam.embed(&picture(10, 20)).unwrap();
    assert_eq!(image.sizes.resized, Size { height: 32, width: 64 });
    assert_eq!(sam.masks(&image, &[box_at(0)], false).unwrap()[0].pixels.len(), 200);
}

#[test]
fn the_configuration_has_pythons_defaults_and_refuses_what_does_not_fit() {
    let bare = SamConfig::from_json(r#"{"model_type": "sam"}"#).unwrap();
    assert_eq!(bare, SamConfig::default());
    assert_eq!((bare.grid(), bare.vision_config.mlp_dim), (64, 3072));
    // As the Hub's files are: huge, written by an older version.
    let huge = r#"{"model_type": "sam", "vision_config": {"model_type": "", "hidden_size": 1280, "mlp_dim": 5120,
        "num_hidden_layers": 32, "num_attention_heads": 16, "global_attn_indexes": [7, 15, 23, 31], "projection_dim": 512}}"#;
    let huge = SamConfig::from_json(huge).unwrap();
    assert_eq!(huge.vision_config.global_attn_indexes, [7, 15, 23, 31]);
    assert_eq!(huge.vision_config.extra.len(), 1);

    let refused = |section: &str, edit: &str, field: &str| {
        let text = format!(r#"{{"model_type": "sam", "{section}": {edit}}}"#);
        let error = SamConfig::from_json(&text).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(&format!("`{field}`")), "{text}: {error}");
    };
    let vision = "vision_config";
    refused(vision, r#"{"hidden_act": "mish"}"#, "vision_config.hidden_act");
    refused(vision, r#"{"layer_norm_eps": 0}"#, "vision_config.layer_norm_eps");
    refused(vision, r#"{"hidden_size": 100}"#, "vision_config.num_attention_heads");
    refused(vision, r#"{"hidden_size": 100000000}"#, "vision_config.hidden_size");
    refused(vision, r#"{"num_attention_heads": 0}"#, "vision_config.num_attention_heads");
    refused(vision, r#"{"num_channels": 1}"#, "vision_config.num_channels");
    refused(vision, r#"{"patch_size": 2000}"#, "vision_config.image_size");
    refused(vision, r#"{"patch_size": 1}"#, "vision_config.image_size");
    refused(vision, r#"{"mlp_ratio": 0.0}"#, "vision_config.mlp_dim");
    refused(vision, r#"{"model_type": "clip_vision_model"}"#, "vision_config.model_type");
    refused(vision, r#"{"output_channels": 128}"#, "vision_config.output_channels");
    refused(vision, r#"{"num_pos_feats": 64}"#, "vision_config.num_pos_feats");
    refused(vision, "7", "vision_config");
    let prompts = "prompt_encoder_config";
    refused(prompts, r#"{"image_size": 512}"#, "prompt_encoder_config.image_size");
    refused(prompts, r#"{"num_point_embeddings": 3}"#, "prompt_encoder_config.num_point_embeddings");
    refused(prompts, r#"{"mask_input_channels": 6}"#, "prompt_encoder_config.mask_input_channels");
    let decoder = "mask_decoder_config";
    refused(decoder, r#"{"hidden_size": 128}"#, "mask_decoder_config.hidden_size");
    refused(decoder, r#"{"attention_downsample_rate": 64}"#, "mask_decoder_config.num_attention_heads");
    refused(decoder, r#"{"iou_head_depth": 1}"#, "mask_decoder_config.iou_head_depth");
    let error = SamConfig::from_json(r#"{"model_type": "sam2"}"#).unwrap_err().to_string();
    assert!(error.contains("`model_type`") && error.contains("sam2"), "{error}");
}

#[test]
#[should_panic(expected = "pixels [1, 3, 64, 80] given to an encoder for [n, 3, 80, 80]")]
fn pixels_of_another_size_are_a_mistake() {
    let _ =
        of(tensors()).unwrap().image_embedding(&Tensor::zeros([1, 3, 64, 80], (Kind::Float, Device::Cpu)));
}

#[test]
#[should_panic(expected = "a prompt at [NaN")]
fn a_box_that_is_nowhere_is_a_mistake() {
    let sam = of(tensors()).unwrap();
    let image = sam.embed(&picture(33, 60)).unwrap();
    let _ = sam.masks(&image, &[BoxPrompt { left: f64::NAN, ..box_at(0) }], false);
}
