//! Every stage of CLIP and DINOv2 against transformers: pixels and tokens exactly, the rest within 1e-5.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "common/tensor.rs"]
mod tensor;

use std::path::{Path, PathBuf};

use image::RgbImage;
use lmm_prep::{Dinov2Config, Tokenizer, TokenizerClass};
use parity_tests::{Array, Stages, Tensors, Tolerance};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use tensor::array;
use torch_nn::{DeviceChoice, Weights};
use vision_models::{Clip, Dinov2, ImageEncoder, VisionError};

const GPU: Tolerance = Tolerance { max: 1e-4, rms: 1e-4 };

#[derive(Deserialize)]
struct Case {
    images: Vec<String>,
    #[serde(default)]
    texts: Vec<String>,
    #[serde(default)]
    ids: Vec<Vec<u32>>,
    #[serde(default)]
    decoded: Vec<String>,
}

struct Fixture {
    model: PathBuf,
    case: Case,
    tensors: Tensors,
}

impl Fixture {
    fn load(name: &str) -> Self {
        tch::set_num_threads(1);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/clip").join(name);
        let case = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let tensors = Tensors::read(&folder.join("case.safetensors"));
        Self { model: folder.join("model"), case, tensors }
    }

    fn images(&self) -> Vec<RgbImage> {
        let image = |name: &String| {
            let (height, width, bytes) = self.tensors.image(name);
            RgbImage::from_raw(width, height, bytes).unwrap()
        };
        self.case.images.iter().map(image).collect()
    }

    /// What transformers made of the images, so that a model is measured on its own.
    fn pixels(&self) -> Tensor {
        let Array { shape, values } = self.tensors.array("pixels");
        let shape: Vec<i64> = shape.iter().map(|&side| side as i64).collect();
        Tensor::from_slice(&values).view(&shape[..])
    }

    fn texts(&self) -> Vec<&str> {
        self.case.texts.iter().map(String::as_str).collect()
    }

    fn hidden_layers(&self) -> usize {
        let deepest = self.tensors.names().iter().filter(|name| name.starts_with("vision/")).count();
        // Beside the hidden states: pooled, and where there is a projection, projected.
        deepest - 2 - usize::from(self.tensors.get("vision/projected").is_some())
    }
}

fn pixels_equal(stages: &mut Stages, fixture: &Fixture, got: &[Tensor]) {
    let want = fixture.tensors.array("pixels").values;
    let got: Vec<f32> = got.iter().flat_map(|pixels| array(pixels).values).collect();
    stages.exact("pixels", &got, &want);
}

fn clip(name: &str) {
    let fixture = Fixture::load(name);
    let clip = Clip::open(&fixture.model, Device::Cpu, Kind::Float).unwrap();
    let mut stages = Stages::new(format!("clip/{name}"), Tolerance::F32);
    let want = |stage: &str| fixture.tensors.array(stage);

    let images = fixture.images();
    let pixels: Vec<Tensor> = images.iter().map(|image| clip.pixels(image).unwrap()).collect();
    pixels_equal(&mut stages, &fixture, &pixels);
    let ids: Vec<Vec<u32>> = fixture.texts().iter().map(|text| clip.ids(text).unwrap()).collect();
    stages.exact("ids", &ids, &fixture.case.ids);
    let longest = ids.iter().map(Vec::len).max().unwrap();
    assert_eq!(longest, clip.config().text_config.max_position_embeddings, "no text is cut");
    let tokenizer = Tokenizer::load_or(&fixture.model, TokenizerClass::Clip).unwrap();
    let decoded: Vec<String> = ids.iter().map(|ids| tokenizer.decode(ids, true).unwrap()).collect();
    stages.exact("decoded", &decoded, &fixture.case.decoded);

    let model = clip.model();
    let pixels = fixture.pixels();
    for layer in 0..=fixture.hidden_layers() {
        let hidden = model.vision().tower().hidden_states(&pixels, layer as i64);
        stages.close(&format!("vision/{layer}"), &array(&hidden), &want(&format!("vision/{layer}")));
    }
    stages.close("vision/pooled", &array(&model.vision().pooled(&pixels)), &want("vision/pooled"));
    stages.close("vision/projected", &array(&model.image_features(&pixels)), &want("vision/projected"));

    let batch = model.text().batch(&fixture.case.ids, Device::Cpu);
    let ragged = |hidden: &Tensor| {
        let rows =
            fixture.case.ids.iter().zip(0..).map(|(ids, row)| hidden.get(row).narrow(0, 0, ids.len() as i64));
        array(&Tensor::cat(&rows.collect::<Vec<_>>(), 0))
    };
    for layer in 0..=model.text().depth() {
        let hidden = model.text().hidden_states(&batch, layer);
        stages.close(&format!("text/{layer}"), &ragged(&hidden), &want(&format!("text/{layer}")));
    }
    stages.close("text/last", &ragged(&model.text().normed_tokens(&batch)), &want("text/last"));
    stages.close("text/pooled", &array(&model.text().pooled(&batch)), &want("text/pooled"));
    stages.close("text/projected", &array(&model.text_features(&batch)), &want("text/projected"));

    let (seen, read) = (clip.embed_images(&images).unwrap(), clip.embed_texts(&fixture.texts()).unwrap());
    stages.close("image_embeds", &array(&seen), &want("image_embeds"));
    stages.close("text_embeds", &array(&read), &want("text_embeds"));
    let cosines = seen.matmul(&read.tr());
    stages.close("cosines", &array(&cosines), &want("cosines"));
    let logits = tch::no_grad(|| &cosines * model.logit_scale().exp());
    stages.close("logits_per_image", &array(&logits), &want("logits_per_image"));
    stages.finish();
}

#[test]
fn quick_gelu_pooled_at_the_end_token() {
    clip("modern");
}

#[test]
fn gelu_and_the_conventions_of_old_checkpoints() {
    clip("old");
}

#[test]
fn dinov2() {
    let fixture = Fixture::load("dinov2");
    let mut stages = Stages::new("dinov2", Tolerance::F32);
    let want = |stage: &str| fixture.tensors.array(stage);
    let config = Dinov2Config::load(&fixture.model).unwrap();
    let weights = Weights::open(&fixture.model, Device::Cpu, Kind::Float).unwrap();
    let model = Dinov2::load(&weights.root(), &config, 24);
    let report = weights.finish().unwrap();
    assert_eq!(report.skipped, ["embeddings.mask_token"]);
    assert_eq!(report.applied.len() + 1, Dinov2::parameter_shapes(&config).len());
    let pixels = fixture.pixels();
    for layer in 0..=fixture.hidden_layers() {
        let hidden = model.hidden_states(&pixels, layer);
        stages.close(&format!("vision/{layer}"), &array(&hidden), &want(&format!("vision/{layer}")));
    }
    stages.close("vision/pooled", &array(&model.pooled(&pixels)), &want("vision/pooled"));
    let encoder = ImageEncoder::open(&fixture.model, Device::Cpu, Kind::Float).unwrap();
    let embedded = encoder.embed(&fixture.images()).unwrap();
    stages.close("image_embeds", &array(&embedded), &want("image_embeds"));
    stages.finish();
}

/// Rows of unit length.
fn unit(rows: &Array) -> Array {
    let width = rows.shape[1];
    let values = rows.values.chunks(width).flat_map(|row| {
        let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        row.iter().map(move |&x| (f64::from(x) / length) as f32)
    });
    Array { shape: rows.shape.clone(), values: values.collect() }
}

#[test]
fn an_image_encoder_is_the_projection_or_the_bare_tower_of_a_folder() {
    let fixture = Fixture::load("modern");
    let images = fixture.images();
    let mut stages = Stages::new("image encoders", Tolerance::F32);
    let open = |folder: &Path| ImageEncoder::open(folder, Device::Cpu, Kind::Float).unwrap();
    let open_tower = |folder: &Path| ImageEncoder::open_tower(folder, Device::Cpu, Kind::Float).unwrap();

    let projected = open(&fixture.model);
    assert_eq!(projected.width(), 14);
    stages.close("clip", &array(&projected.embed(&images).unwrap()), &fixture.tensors.array("image_embeds"));
    let bare = open_tower(&fixture.model);
    assert_eq!(bare.width(), 24);
    let want = unit(&fixture.tensors.array("vision/pooled"));
    stages.close("bare tower of clip", &array(&bare.embed(&images).unwrap()), &want);
    stages.finish();

    // Both key layouts of LLaVA-NeXT; its tower ends at post_layernorm, which the language model does not read.
    for family in ["mistral", "llama"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(family).join("model");
        let embedded = open(&folder).embed(&images).unwrap();
        assert_eq!(embedded.size()[0], images.len() as i64, "{family}");
        let lengths = embedded.square().sum_dim_intlist(-1, false, Kind::Float);
        assert!((lengths - 1.0).abs().max().double_value(&[]) < 1e-6, "{family}");
        assert!(embedded.equal(&open_tower(&folder).embed(&images).unwrap()), "{family}");
    }
}

/// Where there is a GPU.
#[test]
fn a_gpu_gives_the_same_but_for_the_order_of_sums() {
    let Ok(device) = DeviceChoice::Cuda(0).open() else { return };
    for name in ["modern", "old"] {
        let fixture = Fixture::load(name);
        let clip = Clip::open(&fixture.model, device, Kind::Float).unwrap();
        let mut stages = Stages::new(format!("clip/{name} on a GPU"), GPU);
        let (seen, read) =
            (clip.embed_images(&fixture.images()).unwrap(), clip.embed_texts(&fixture.texts()).unwrap());
        stages.close("image_embeds", &array(&seen), &fixture.tensors.array("image_embeds"));
        stages.close("text_embeds", &array(&read), &fixture.tensors.array("text_embeds"));
        stages.finish();
    }
}

/// Pictures need neither the text tower nor a tokenizer.
#[test]
fn an_image_encoder_needs_no_tokenizer() {
    let fixture = Fixture::load("modern");
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "preprocessor_config.json", "model.safetensors"] {
        std::fs::copy(fixture.model.join(file), copy.path().join(file)).unwrap();
    }
    let encoder = ImageEncoder::open(copy.path(), Device::Cpu, Kind::Float).unwrap();
    let mut stages = Stages::new("image encoder without texts", Tolerance::F32);
    let got = array(&encoder.embed(&fixture.images()).unwrap());
    stages.close("image_embeds", &got, &fixture.tensors.array("image_embeds"));
    stages.finish();
    let error = Clip::open(copy.path(), Device::Cpu, Kind::Float).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn how_many_come_at_once_changes_nothing() {
    let fixture = Fixture::load("modern");
    let clip = Clip::open(&fixture.model, Device::Cpu, Kind::Float).unwrap();
    let images: Vec<RgbImage> = fixture.images().into_iter().cycle().take(37).collect();
    let together = clip.embed_images(&images).unwrap();
    assert_eq!(together.size(), [37, 14]);
    // Models stay on their thread, so the pool of one gets its own.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let one_thread = pool.install(|| {
        let clip = Clip::open(&fixture.model, Device::Cpu, Kind::Float).unwrap();
        array(&clip.embed_images(&images).unwrap())
    });
    assert_eq!(array(&together), one_thread);
    let apart: Vec<Tensor> =
        images.iter().map(|image| clip.embed_images(std::slice::from_ref(image)).unwrap()).collect();
    let difference = (&together - Tensor::cat(&apart, 0)).abs().max().double_value(&[]);
    assert!(difference < 1e-6, "{difference:e}");
    let texts: Vec<&str> = fixture.texts().into_iter().cycle().take(40).collect();
    let together = clip.embed_texts(&texts).unwrap();
    let apart: Vec<Tensor> = texts.iter().map(|text| clip.embed_texts(&[text]).unwrap()).collect();
    let difference = (&together - Tensor::cat(&apart, 0)).abs().max().double_value(&[]);
    assert!(difference < 1e-6, "{difference:e}");
    assert_eq!(clip.embed_images(&[]).unwrap().size(), [0, 14]);
    assert_eq!(clip.embed_texts(&[]).unwrap().size(), [0, 14]);
    let error = clip.embed_images(&[images[0].clone(), RgbImage::new(0, 3)]).unwrap_err();
    assert!(matches!(error, VisionError::Prep { .. }), "{error}");
}

#[test]
fn a_folder_that_contradicts_itself_is_refused() {
    let fixture = Fixture::load("modern");
    let refused = |file: &str, from: &str, to: &str| {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&fixture.model).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        let text = std::fs::read_to_string(copy.path().join(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        std::fs::write(copy.path().join(file), text.replace(from, to)).unwrap();
        let error = Clip::open(copy.path(), Device::Cpu, Kind::Float).unwrap_err();
        let mut chain = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            chain = format!("{chain}: {error}");
            cause = error.source();
        }
        chain
    };
    let error = refused("preprocessor_config.json", "\"height\": 24", "\"height\": 25");
    assert!(error.contains("expected 24x24") && error.contains("got 25x24"), "{error}");
    let error = refused("config.json", "\"vocab_size\": 618", "\"vocab_size\": 600");
    assert!(error.contains("more than 614") && error.contains("got 600"), "{error}");
    // Each would pool every text at its first token, which sees no other; the second is the class's default, 49,407.
    for edit in ["\"eos_token_id\": 613,", ""] {
        let error = refused("config.json", "\"eos_token_id\": 614,", edit);
        assert!(error.contains("expected 614, with which the tokenizer ends texts"), "{error}");
    }
    let error = refused("config.json", "\"projection_dim\": 14", "\"projection_dim\": 15");
    assert!(error.contains("visual_projection.weight (expected [15, 24], got [14, 24]"), "{error}");
    let error = refused("config.json", "\"model_type\": \"clip\"", "\"model_type\": \"clap\"");
    assert!(error.contains("model_type") && error.contains("clap"), "{error}");
    let error = refused("config.json", "\"max_position_embeddings\": 16", "\"max_position_embeddings\": 1");
    assert!(error.contains("2 of them are added to every text"), "{error}");
}
