//! Every stage of Segment Anything against transformers: pixels exactly, masks but for ties, the rest within 1e-5.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "common/tensor.rs"]
mod tensor;

use std::path::{Path, PathBuf};

use image::RgbImage;
use lmm_prep::Size;
use parity_tests::{Array, Stages, Tensors, Tolerance, relative_error};
use serde::Deserialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tensor::array;
use torch_nn::{DeviceChoice, Weights};
use vision_models::sam::{
    BoxPrompt, PointLabel, PointPrompt, Sam, SamConfig, SamMask, SamProcessorConfig, SamPrompt, SamSizes,
    full_size_masks, parameter_shapes,
};

/// What `masks` holds where a score is so near 0 that its pixel may fall on either side.
const TIE: u8 = 2;

#[derive(Deserialize)]
struct Description {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    image: String,
    /// Left, top, right, bottom.
    boxes: Option<Vec<[f64; 4]>>,
    /// Of each prompt.
    points: Option<Vec<Vec<[f64; 2]>>>,
    labels: Option<Vec<Vec<i32>>>,
    #[serde(default)]
    mask: bool,
    /// Height and width of the image, and as it is resized.
    sizes: [[u32; 2]; 2],
}

impl Case {
    fn sizes(&self) -> SamSizes {
        let [original, resized] = self.sizes.map(|[height, width]| Size { height, width });
        SamSizes { original, resized }
    }

    fn prompts(&self) -> Vec<SamPrompt> {
        let count = self.boxes.as_ref().map(Vec::len).or(self.points.as_ref().map(Vec::len)).unwrap_or(1);
        (0..count)
            .map(|index| {
                let bounds = self.boxes.as_ref().map(|boxes| {
                    let [left, top, right, bottom] = boxes[index];
                    BoxPrompt { left, top, right, bottom }
                });
                let points = self.points.iter().flat_map(|points| &points[index]);
                let labels = self.labels.iter().flat_map(|labels| &labels[index]);
                let point = |(&[x, y], label): (&[f64; 2], &i32)| {
                    let label = match label {
                        1 => PointLabel::Object,
                        0 => PointLabel::Background,
                        -1 => PointLabel::NotAPoint,
                        -10 => PointLabel::Padding,
                        other => panic!("label {other}"),
                    };
                    PointPrompt { x, y, label }
                };
                SamPrompt { points: points.zip(labels).map(point).collect(), bounds }
            })
            .collect()
    }
}

struct Fixture {
    model: PathBuf,
    cases: Vec<Case>,
    tensors: Tensors,
}

impl Fixture {
    fn load() -> Self {
        Self::of("sam")
    }

    fn of(name: &str) -> Self {
        // The model is so small that threads only get in each other's way.
        tch::set_num_threads(1);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let text = std::fs::read(folder.join("case.json")).unwrap();
        let Description { cases } = serde_json::from_slice(&text).unwrap();
        let tensors = Tensors::read(&folder.join("case.safetensors"));
        Self { model: folder.join("model"), cases, tensors }
    }

    fn sam(&self) -> Sam {
        Sam::open(&self.model, Device::Cpu, Kind::Float).unwrap()
    }

    fn picture(&self, case: &Case) -> RgbImage {
        let (height, width, rgb) = self.tensors.image(&case.image);
        RgbImage::from_raw(width, height, rgb).unwrap()
    }

    /// The mask that is a prompt of the case.
    fn mask(&self, case: &Case) -> Option<Tensor> {
        case.mask.then(|| from_array(&self.tensors.array(&format!("{}/mask", case.name))))
    }
}

fn from_array(array: &Array) -> Tensor {
    let shape: Vec<i64> = array.shape.iter().map(|&length| length as i64).collect();
    Tensor::from_slice(&array.values).view(shape.as_slice())
}

/// Masks as 0 and 1, with a tie wherever transformers has one.
fn with_ties(pixels: impl Iterator<Item = bool>, want: &[u8]) -> Vec<u8> {
    let tied = |(at, pixel)| if want.get(at) == Some(&TIE) { TIE } else { u8::from(pixel) };
    pixels.enumerate().map(tied).collect()
}

#[test]
fn every_stage_is_that_of_transformers() {
    let fixture = Fixture::load();
    let (sam, tensors) = (fixture.sam(), &fixture.tensors);
    for case in &fixture.cases {
        let mut stages = Stages::new(format!("sam/{}", case.name), Tolerance::F32);
        let (pixels, sizes) = sam.processor().pixels(&fixture.picture(case)).unwrap();
        stages.exact("sizes", &[sizes], &[case.sizes()]);
        if let Some(want) = tensors.get(&format!("{}/pixels", case.image)) {
            stages.exact("pixels", &array(&pixels).values, &want.values);
        }
        let want = tensors.array(&format!("{}/embedding", case.image));
        stages.close("image embedding", &array(&sam.image_embedding(&pixels)), &want);
        // From here on of what transformers computed, so that each stage is measured on its own.
        let embedding = from_array(&want);

        let prompts = case.prompts();
        let sparse = sam.prompt_encoder().sparse(&prompts, &sizes);
        if let Some(want) = tensors.get(&format!("{}/sparse", case.name)) {
            stages.close("sparse prompt embeddings", &array(&sparse), &want);
        } else {
            assert_eq!(sparse.size(), [1, 0, 32], "no points, no boxes");
        }
        let mask = fixture.mask(case);
        let dense = sam.prompt_encoder().dense(mask.as_ref());
        stages.close(
            "dense prompt embeddings",
            &array(&dense),
            &tensors.array(&format!("{}/dense", case.name)),
        );
        for (count, multimask) in [("one", false), ("several", true)] {
            let want = |stage: &str| tensors.array(&format!("{}/{count}/{stage}", case.name));
            let (scores, quality) = sam.low_res_masks(&embedding, &sparse, &dense, multimask);
            stages.close(&format!("{count}: low-res masks"), &array(&scores), &want("low_res_masks"));
            stages.close(&format!("{count}: IoU scores"), &array(&quality), &want("iou_scores"));
            let (shape, pixels) = tensors.bytes(&format!("{}/{count}/masks", case.name));
            let masks = full_size_masks(&scores.flatten(0, 1), sam.processor().config().pad_size, &sizes);
            assert_eq!(masks.size()[1..], [shape[2] as i64, shape[3] as i64]);
            let got = Vec::<bool>::try_from(masks.contiguous().view(-1)).unwrap();
            stages.exact(&format!("{count}: masks"), &with_ties(got.into_iter(), &pixels), &pixels);
            let ties: usize = pixels.iter().map(|&pixel| usize::from(pixel == TIE)).sum();
            assert!(ties * 500 < pixels.len(), "{ties} ties of {} pixels", pixels.len());
        }
        stages.finish();
    }
}

/// From the picture to the masks by the two functions users call, all stages chained.
#[test]
fn pictures_and_prompts_become_the_masks_of_transformers() {
    let fixture = Fixture::load();
    let (sam, tensors) = (fixture.sam(), &fixture.tensors);
    for case in fixture.cases.iter().filter(|case| !case.mask) {
        let mut stages = Stages::new(format!("sam/{}, end to end", case.name), Tolerance::F32);
        let image = sam.embed(&fixture.picture(case)).unwrap();
        for (count, multimask) in [("one", false), ("several", true)] {
            let masks = sam.masks(&image, &case.prompts(), multimask).unwrap();
            let per_prompt = if multimask { 3 } else { 1 };
            assert_eq!(masks.len(), per_prompt * case.prompts().len());
            let prompts: Vec<usize> = masks.iter().map(|mask| mask.prompt).collect();
            let expected: Vec<usize> = (0..masks.len()).map(|index| index / per_prompt).collect();
            assert_eq!(prompts, expected);
            let size = |mask: &SamMask| [mask.height, mask.width];
            assert!(masks.iter().all(|mask| size(mask) == case.sizes[0]));
            let want = tensors.array(&format!("{}/{count}/iou_scores", case.name));
            let got =
                Array { shape: want.shape.clone(), values: masks.iter().map(|mask| mask.score).collect() };
            stages.close(&format!("{count}: IoU scores"), &got, &want);
            let (_, pixels) = tensors.bytes(&format!("{}/{count}/masks", case.name));
            let got = masks.iter().flat_map(|mask| mask.pixels.iter().copied());
            stages.exact(&format!("{count}: masks"), &with_ties(got, &pixels), &pixels);
        }
        stages.finish();
    }
}

/// 64 x 64 patches, as all published models have: the encoder computes so many rows on other ways than few.
#[test]
fn an_image_of_full_size_has_the_embedding_of_transformers() {
    let fixture = Fixture::of("sam_full_size");
    let (sam, tensors) = (fixture.sam(), &fixture.tensors);
    assert_eq!(sam.config().grid(), 64);
    let [case] = &fixture.cases[..] else { panic!("{} cases", fixture.cases.len()) };
    let mut stages = Stages::new("sam_full_size", Tolerance::F32);
    let image = sam.embed(&fixture.picture(case)).unwrap();
    stages.exact("sizes", &[image.sizes], &[case.sizes()]);
    // Every other row.
    let rows = image.embedding.slice(2, 0, None::<i64>, 2);
    stages.close("image embedding", &array(&rows), &tensors.array("embedding"));
    let encoder = sam.prompt_encoder();
    let (sparse, dense) = (encoder.sparse(&case.prompts(), &image.sizes), encoder.dense(None));
    let (scores, quality) = sam.low_res_masks(&image.embedding, &sparse, &dense, false);
    stages.close("IoU scores", &array(&quality), &tensors.array("iou_scores"));
    // Every fourth row.
    let rows = scores.slice(2, 0, None::<i64>, 4);
    stages.close("low-res masks", &array(&rows), &tensors.array("low_res_masks"));
    stages.finish();
}

/// Where there is a GPU.
#[test]
fn a_gpu_gives_the_same_but_for_the_order_of_sums() {
    let Ok(device) = DeviceChoice::Cuda(0).open() else { return };
    let fixture = Fixture::load();
    let sam = Sam::open(&fixture.model, device, Kind::Float).unwrap();
    for case in fixture.cases.iter().filter(|case| !case.mask) {
        let tolerance = Tolerance { max: 1e-4, rms: 1e-4 };
        let mut stages = Stages::new(format!("sam/{} on a GPU", case.name), tolerance);
        let image = sam.embed(&fixture.picture(case)).unwrap();
        let want = fixture.tensors.array(&format!("{}/embedding", case.image));
        stages.close("image embedding", &array(&image.embedding), &want);
        let masks = sam.masks(&image, &case.prompts(), true).unwrap();
        let want = fixture.tensors.array(&format!("{}/several/iou_scores", case.name));
        let got = Array { shape: want.shape.clone(), values: masks.iter().map(|mask| mask.score).collect() };
        stages.close("IoU scores", &got, &want);
        let (_, pixels) = fixture.tensors.bytes(&format!("{}/several/masks", case.name));
        let got = masks.iter().flat_map(|mask| mask.pixels.iter().copied());
        stages.exact("masks", &with_ties(got, &pixels), &pixels);
        stages.finish();
    }
}

/// The fixture would fail without what it stands for: one changed value at a time, far past the tolerance.
#[test]
fn the_fixture_notices_what_it_is_for() {
    let fixture = Fixture::load();
    let case = |name: &str| fixture.cases.iter().find(|case| case.name == name).unwrap();
    let file = std::fs::read_to_string(fixture.model.join("config.json")).unwrap();
    let read = |file: &serde_json::Value| SamConfig::from_json(&file.to_string()).unwrap();
    let edits = [
        ("/vision_config/global_attn_indexes", json!([1])),
        ("/vision_config/layer_norm_eps", json!(1e-6)),
        ("/vision_config/hidden_act", json!("gelu_new")),
        ("/prompt_encoder_config/image_size", json!(136)),
        ("/prompt_encoder_config/hidden_act", json!("relu")),
        ("/prompt_encoder_config/layer_norm_eps", json!(1e-6)),
        ("/mask_decoder_config/hidden_act", json!("gelu")),
        ("/mask_decoder_config/layer_norm_eps", json!(1e-6)),
        ("/mask_decoder_config/num_attention_heads", json!(1)),
    ];
    for (place, value) in edits {
        let mut config: serde_json::Value = serde_json::from_str(&file).unwrap();
        *config.pointer_mut(place).unwrap() = value.clone();
        let mut weights = Weights::open(&fixture.model, Device::Cpu, Kind::Float).unwrap();
        if place.ends_with("global_attn_indexes") {
            weights =
                with_shorter_tables(&weights, &read(&serde_json::from_str(&file).unwrap()), &read(&config));
        }
        let processor = SamProcessorConfig::load(&fixture.model).unwrap();
        let sam = Sam::from_weights(read(&config), processor, &weights).unwrap();
        let mut worst = 0.0_f64;
        for name in ["boxes and points", "mask"] {
            let case = case(name);
            let image = sam.embed(&fixture.picture(case)).unwrap();
            let sparse = sam.prompt_encoder().sparse(&case.prompts(), &image.sizes);
            let mask = fixture.mask(case);
            let dense = sam.prompt_encoder().dense(mask.as_ref());
            let (got, _) = sam.low_res_masks(&image.embedding, &sparse, &dense, true);
            let want = fixture.tensors.array(&format!("{name}/several/low_res_masks"));
            worst = worst.max(relative_error(&array(&got), &want));
        }
        assert!(worst > 5.0 * Tolerance::F32.max, "{place} = {value} moved masks by {worst:.1e} only");
    }
}

/// The tensors of a model of one configuration for another: a layer's table of relative positions is as long as what the layer
/// attends over, and its middle serves less.
fn with_shorter_tables(weights: &Weights, from: &SamConfig, to: &SamConfig) -> Weights {
    let (from, to) = (parameter_shapes(from), parameter_shapes(to));
    let root = weights.root();
    let fitted = from.iter().map(|(name, shape)| {
        let left_over = shape[0] - to[name][0];
        (name.clone(), root.tensor(name, shape).narrow(0, left_over / 2, to[name][0]))
    });
    Weights::from_tensors(fitted.collect())
}
