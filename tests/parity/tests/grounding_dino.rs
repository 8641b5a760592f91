//! Every stage of GroundingDINO against transformers: pixels, tokens, masks, selected places and phrases exactly, the rest
//! within 3e-5 of the stage's largest value and 1e-5 of its root mean square.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::RgbImage;
use lmm_prep::Tokenizer;
use parity_tests::{Array, Stages, Tolerance, relative_error};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use torch_nn::{DeviceChoice, NnError, Weights};
use vision_models::VisionError;
use vision_models::grounding_dino::{
    Detection, GroundingDino, GroundingDinoConfig, GroundingDinoModel, ImageBatch, TextBatch, Thresholds,
    detections, parameter_shapes, prompt,
};

/// Most stages lie within 5e-6. The coarsest map has so few places that its norm divides by the deviation of two or four numbers,
/// which magnifies their roundings.
const PARITY: Tolerance = Tolerance { max: 3e-5, rms: 1e-5 };

/// What `fixtures/grounding_dino/generate.py` writes of one family.
struct Fixture {
    model: PathBuf,
    description: Description,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Deserialize)]
struct Description {
    cases: Vec<Case>,
    tokens: Vec<Tokens>,
}

#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    images: Vec<String>,
    texts: Vec<String>,
    /// Rows and columns that are image, of each image.
    pixel_mask: Vec<Vec<i64>>,
    input_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    text_attention: Vec<Vec<Vec<i64>>>,
    text_positions: Vec<Vec<i64>>,
    selected: Vec<Vec<i64>>,
    detections: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    box_threshold: f32,
    text_threshold: f32,
    found: Vec<FoundInImage>,
}

#[derive(Deserialize)]
struct FoundInImage {
    scores: Vec<f32>,
    boxes: Vec<[f32; 4]>,
    phrases: Vec<String>,
}

impl Fixture {
    fn load(family: &str) -> Self {
        // The models are so small that threads only get in each other's way.
        tch::set_num_threads(1);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/grounding_dino").join(family);
        let description = std::fs::read(folder.join("case.json")).unwrap();
        let tensors = Tensor::read_safetensors(folder.join("case.safetensors")).unwrap();
        Self {
            model: folder.join("model"),
            description: serde_json::from_slice(&description).unwrap(),
            tensors: tensors.into_iter().collect(),
        }
    }

    fn case(&self, name: &str) -> &Case {
        self.description.cases.iter().find(|case| case.name == name).unwrap()
    }

    fn array(&self, case: &Case, stage: &str) -> Option<Array> {
        self.tensors.get(&format!("{}/{stage}", case.name)).map(array)
    }

    fn images(&self, case: &Case) -> Vec<RgbImage> {
        let image = |name: &String| {
            let tensor = &self.tensors[&format!("image/{name}")];
            let size = tensor.size();
            let bytes = Vec::<u8>::try_from(tensor.flatten(0, -1)).unwrap();
            RgbImage::from_raw(size[1] as u32, size[0] as u32, bytes).unwrap()
        };
        case.images.iter().map(image).collect()
    }

    fn config(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.model.join("config.json")).unwrap()).unwrap()
    }
}

fn array(tensor: &Tensor) -> Array {
    let shape = tensor.size().iter().map(|&length| length as usize).collect();
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Array { shape, values: Vec::<f32>::try_from(&flat).unwrap() }
}

fn open(fixture: &Fixture) -> GroundingDino {
    GroundingDino::open(&fixture.model, Device::Cpu, Kind::Float).unwrap()
}

fn texts(dino: &GroundingDino, case: &Case) -> TextBatch {
    let texts: Vec<&str> = case.texts.iter().map(String::as_str).collect();
    TextBatch::new(&texts, dino.tokenizer(), dino.config().max_text_len, Device::Cpu).unwrap()
}

fn images(fixture: &Fixture, dino: &GroundingDino, case: &Case) -> ImageBatch {
    let images = fixture.images(case);
    dino.prepare_images(&images.iter().collect::<Vec<_>>()).unwrap()
}

#[test]
fn tied() {
    family("tied");
}

#[test]
fn untied() {
    family("untied");
}

/// A picture so wide that the first and last column of its finest map are too near the edge to be proposed, and a text of as many
/// tokens as there may be.
#[test]
fn edges() {
    family("edges");
    let fixture = Fixture::load("edges");
    let dino = open(&fixture);
    let case = fixture.case("wide");
    assert_eq!(case.input_ids[0].len(), dino.config().max_text_len);
}

fn family(name: &str) {
    let fixture = Fixture::load(name);
    let dino = open(&fixture);
    tokens(name, &fixture, dino.tokenizer());
    for case in &fixture.description.cases {
        let mut stages = Stages::new(format!("{name}/{}", case.name), PARITY);
        let (images, texts) = (images(&fixture, &dino, case), texts(&dino, case));
        inputs(&mut stages, &fixture, case, &images, &texts);
        tch::no_grad(|| network(&mut stages, &fixture, case, dino.model(), &images, &texts));
        found(&mut stages, &fixture, case, &dino, &images, &texts);
        stages.finish();
    }
}

fn tokens(name: &str, fixture: &Fixture, tokenizer: &Tokenizer) {
    let mut stages = Stages::new(format!("{name}: tokenizer"), PARITY);
    for Tokens { text, ids, decoded } in &fixture.description.tokens {
        stages.exact(&format!("ids of {text:?}"), &tokenizer.encode(text, true).unwrap(), ids);
        let got = tokenizer.decode(ids, false).unwrap();
        stages.exact(&format!("text of {text:?}"), &[got], std::slice::from_ref(decoded));
    }
    stages.finish();
}

fn inputs(stages: &mut Stages, fixture: &Fixture, case: &Case, images: &ImageBatch, texts: &TextBatch) {
    if let Some(pixels) = fixture.array(case, "pixel_values") {
        let got = array(&images.pixels);
        stages.exact("pixel shape", &got.shape, &pixels.shape);
        stages.exact("pixels", &got.values, &pixels.values);
    }
    let lines = |axis: i64| images.mask.select(axis, 0).sum_dim_intlist(1, false, Kind::Int64);
    let sizes: Vec<Vec<i64>> = Vec::try_from(Tensor::stack(&[lines(2), lines(1)], 1)).unwrap();
    stages.exact("pixel mask", &sizes, &case.pixel_mask);
    let filled: i64 = case.pixel_mask.iter().map(|sides| sides[0] * sides[1]).sum();
    stages.exact("pixels in the mask", &[images.mask.sum(Kind::Int64).int64_value(&[])], &[filled]);

    let rows = |x: &Tensor| Vec::<Vec<i64>>::try_from(x).unwrap();
    stages.exact("input ids", &rows(&texts.tokens), &case.input_ids);
    stages.exact("text mask", &rows(&texts.mask), &case.attention_mask);
    let attention = Vec::<Vec<Vec<i64>>>::try_from(&texts.attention).unwrap();
    stages.exact("text attention", &attention, &case.text_attention);
    stages.exact("text positions", &rows(&texts.positions), &case.text_positions);
}

fn network(
    stages: &mut Stages,
    fixture: &Fixture,
    case: &Case,
    model: &GroundingDinoModel,
    images: &ImageBatch,
    texts: &TextBatch,
) {
    let mut compared = 0;
    let mut close = |stages: &mut Stages, stage: &str, got: &Tensor| {
        if let Some(want) = fixture.array(case, stage) {
            stages.close(stage, &array(got), &want);
            compared += 1;
        }
    };
    let states = model.text_states(texts);
    close(stages, "bert", &states);
    let text = model.project_text(&states);
    close(stages, "text_features", &text);
    let backbone = model.backbone_maps(&images.pixels);
    for (level, map) in backbone.iter().enumerate() {
        close(stages, &format!("backbone/{level}"), map);
    }
    let projected = model.project_maps(&backbone);
    for (level, map) in projected.iter().enumerate() {
        close(stages, &format!("source/{level}"), map);
    }
    let maps = model.lay_out(&projected, &images.mask);
    close(stages, "positions", &maps.positions);
    let encoded = model.encode(&maps, &text, texts, |layer, state| {
        close(stages, &format!("encoder/{layer}/vision"), &state.vision);
        close(stages, &format!("encoder/{layer}/text"), &state.text);
    });
    let selection = model.select(&encoded, &maps, texts);
    stages.exact("selected", &Vec::<Vec<i64>>::try_from(&selection.places).unwrap(), &case.selected);
    close(stages, "reference_points", &selection.boxes);
    let decoded = model.decode(&selection, &encoded, &maps, texts);
    close(stages, "decoder", &Tensor::stack(&decoded.hidden, 1));
    // transformers also corrects the boxes after the last layer, and has no use for them.
    if let Some(want) = fixture.tensors.get(&format!("{}/decoder_reference_points", case.name)) {
        let corrected = Tensor::stack(&decoded.reference[1..], 1);
        let want = want.narrow(1, 0, want.size()[1] - 1);
        stages.close("decoder_reference_points", &array(&corrected), &array(&want));
    }
    let filling = texts.mask.logical_not().unsqueeze(1).expand_as(&decoded.logits);
    stages.exact("logits of filling", &[decoded.logits.isneginf().equal(&filling)], &[true]);
    close(stages, "logits", &decoded.logits.masked_fill(&filling, 0.0));
    close(stages, "boxes", &decoded.boxes);

    let whole = model.forward(images, texts);
    stages.exact(
        "all at once",
        &[whole.logits.equal(&decoded.logits), whole.boxes.equal(&decoded.boxes)],
        &[true; 2],
    );
    let apart = ["pixel_values", "decoder_reference_points"];
    let prefix = format!("{}/", case.name);
    let recorded = fixture.tensors.keys().filter_map(|key| key.strip_prefix(&prefix));
    let recorded = recorded.filter(|stage| !apart.contains(stage)).count();
    assert_eq!(compared, recorded, "{}: every recorded stage is compared", case.name);
}

/// Detections: of the network's output, and the same from images and phrases.
fn found(
    stages: &mut Stages,
    fixture: &Fixture,
    case: &Case,
    dino: &GroundingDino,
    images: &ImageBatch,
    texts: &TextBatch,
) {
    let decoded = tch::no_grad(|| dino.model().forward(images, texts));
    let pictures = fixture.images(case);
    let pictures: Vec<&RgbImage> = pictures.iter().collect();
    // Upper case and a missing full stop do not matter.
    let spoken: Vec<String> =
        case.texts.iter().map(|text| text.trim_end_matches('.').to_uppercase()).collect();
    let spoken: Vec<&str> = spoken.iter().map(String::as_str).collect();
    for want in &case.detections {
        let thresholds =
            Thresholds { box_threshold: want.box_threshold, text_threshold: want.text_threshold };
        let (limit, tokenizer) = (dino.config().max_text_len, dino.tokenizer());
        let got = detections(&decoded, texts, &images.originals, thresholds, limit, tokenizer).unwrap();
        for (image, (got, want)) in got.iter().zip(&want.found).enumerate() {
            compare(stages, &format!("above {} in image {image}", thresholds.box_threshold), got, want);
        }
        if case.texts.iter().all(|text| prompt(text) == *text) {
            let whole = dino.detect_batch(&pictures, &spoken, thresholds).unwrap();
            stages.exact("from images and phrases", &whole, &got);
            if let ([picture], [spoken]) = (&pictures[..], &spoken[..]) {
                stages.exact("one alone", &[dino.detect(picture, spoken, thresholds).unwrap()], &got);
            }
        }
    }
}

fn compare(stages: &mut Stages, what: &str, got: &[Detection], want: &FoundInImage) {
    let mut order: Vec<usize> = (0..want.scores.len()).collect();
    order.sort_by(|&one, &other| want.scores[other].total_cmp(&want.scores[one]));
    let phrases: Vec<String> = order.iter().map(|&index| want.phrases[index].clone()).collect();
    let own: Vec<String> = got.iter().map(|found| found.phrase.clone()).collect();
    stages.exact(&format!("phrases {what}"), &own, &phrases);
    if order.is_empty() {
        return;
    }
    let flat = |values: Vec<f32>| Array { shape: vec![values.len()], values };
    let scores = flat(got.iter().map(|found| found.score).collect());
    let boxes = flat(got.iter().flat_map(corners).collect());
    let wanted_scores = flat(order.iter().map(|&index| want.scores[index]).collect());
    let wanted_boxes = flat(order.iter().flat_map(|&index| want.boxes[index]).collect());
    stages.close(&format!("scores {what}"), &scores, &wanted_scores);
    stages.close(&format!("boxes {what}"), &boxes, &wanted_boxes);
}

fn corners(found: &Detection) -> [f32; 4] {
    [found.x0, found.y0, found.x1, found.y1]
}

/// The checkpoint holds what the network asks for, and buffers that follow from the configuration.
#[test]
fn shapes_are_those_that_transformers_writes() {
    for family in ["tied", "untied", "edges"] {
        let fixture = Fixture::load(family);
        let config = GroundingDinoConfig::load(&fixture.model).unwrap();
        let asked = parameter_shapes(&config);
        let mut stored = BTreeMap::new();
        for file in std::fs::read_dir(&fixture.model).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let bytes = std::fs::read(path).unwrap();
                let tensors = SafeTensors::deserialize(&bytes).unwrap();
                for (name, view) in tensors.tensors() {
                    stored
                        .insert(name, view.shape().iter().map(|&length| length as i64).collect::<Vec<i64>>());
                }
            }
        }
        stored.retain(|name, _| !name.ends_with("relative_position_index"));
        if family == "untied" {
            // transformers writes the second layer's head under its other name.
            let renamed = |name: &str| name.replace("model.decoder.bbox_embed.1", "bbox_embed.1");
            stored = stored.into_iter().map(|(name, shape)| (renamed(&name), shape)).collect();
        }
        assert_eq!(asked, stored, "{family}");
    }
}

fn stored(fixture: &Fixture) -> BTreeMap<String, Tensor> {
    let file = fixture.model.join("model.safetensors");
    let tensors = Tensor::read_safetensors(file).unwrap().into_iter();
    tensors
        .map(|(name, tensor)| {
            let integer = name.ends_with("relative_position_index");
            (name, if integer { tensor } else { tensor.to_kind(Kind::Float) })
        })
        .collect()
}

fn model_of(fixture: &Fixture, tensors: BTreeMap<String, Tensor>) -> Result<GroundingDinoModel, NnError> {
    let config = GroundingDinoConfig::load(&fixture.model).unwrap();
    let weights = Weights::from_tensors(tensors);
    let model = GroundingDinoModel::load(&weights.root(), &config);
    weights.finish().map(|_| model)
}

/// Published files and other versions of transformers have shared heads under other names, or all of them.
#[test]
fn heads_are_found_under_all_their_names() {
    let fixture = Fixture::load("tied");
    let dino = open(&fixture);
    let case = fixture.case("one");
    let (images, texts) = (images(&fixture, &dino, case), texts(&dino, case));
    let want = tch::no_grad(|| dino.model().forward(&images, &texts));
    let head = "bbox_embed.0.";
    let everywhere =
        ["bbox_embed.0.", "bbox_embed.1.", "model.decoder.bbox_embed.0.", "model.decoder.bbox_embed.1."];
    for names in [&everywhere[1..2], &everywhere[2..3], &everywhere[3..], &everywhere[..], &everywhere[1..3]]
    {
        let mut tensors = stored(&fixture);
        let own: Vec<String> = tensors.keys().filter(|name| name.starts_with(head)).cloned().collect();
        assert_eq!(own.len(), 6);
        for old in own {
            let tensor = tensors.remove(&old).unwrap();
            for name in names {
                tensors.insert(old.replace(head, name), tensor.shallow_clone());
            }
        }
        let model = model_of(&fixture, tensors).unwrap();
        let got = tch::no_grad(|| model.forward(&images, &texts));
        assert!(got.boxes.equal(&want.boxes) && got.logits.equal(&want.logits), "{names:?}");
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let fixture = Fixture::load("tied");
    let mut tensors = stored(&fixture);
    tensors.remove("model.level_embed");
    tensors.insert(
        "model.encoder.layers.9.fusion_layer.text_param".into(),
        Tensor::zeros([32], (Kind::Float, Device::Cpu)),
    );
    let Err(NnError::Weights { missing, unused, .. }) = model_of(&fixture, tensors) else { panic!("loaded") };
    assert_eq!(missing, ["model.level_embed"]);
    assert_eq!(unused, ["model.encoder.layers.9.fusion_layer.text_param"]);
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let fixture = Fixture::load("tied");
    let dino = open(&fixture);
    let image = RgbImage::new(40, 30);
    let error = dino.detect(&image, &"red circle ".repeat(20), Thresholds::default()).unwrap_err();
    assert!(matches!(error, VisionError::TextLength { tokens: 43, limit: 32, .. }), "{error}");
    let error = dino.detect(&RgbImage::new(0, 3), "red", Thresholds::default()).unwrap_err();
    assert!(matches!(error, VisionError::ImageSize { height: 3, width: 0, .. }), "{error}");

    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&fixture.model).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut config = fixture.config();
    config["text_config"]["vocab_size"] = json!(1000);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = GroundingDino::open(folder.path(), Device::Cpu, Kind::Float).unwrap_err().to_string();
    assert!(error.contains("1031") && error.contains("vocab_size is 1000"), "{error}");

    std::fs::write(folder.path().join("config.json"), fixture.config().to_string()).unwrap();
    let size = json!({"size": {"height": 8, "width": 8}});
    std::fs::write(folder.path().join("preprocessor_config.json"), size.to_string()).unwrap();
    let dino = GroundingDino::open(folder.path(), Device::Cpu, Kind::Float).unwrap();
    let error = dino.detect(&image, "red", Thresholds::default()).unwrap_err().to_string();
    assert!(error.contains("30 x 40") && error.contains("4 places for 20 queries"), "{error}");
}

/// transformers reads a folder that names no class of tokenizer by the type of the model.
#[test]
fn the_tokenizer_is_berts_where_the_folder_does_not_say() {
    for family in ["tied", "untied"] {
        let fixture = Fixture::load(family);
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(&fixture.model).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap();
            if name != "tokenizer_config.json" && name != "special_tokens_map.json" {
                std::fs::copy(&path, folder.path().join(name)).unwrap();
            }
        }
        let dino = GroundingDino::open(folder.path(), Device::Cpu, Kind::Float).unwrap();
        tokens(family, &fixture, dino.tokenizer());
    }
}

/// In f16 scores beyond 65,504 overflow, of which a softmax makes NaN: not to be taken for nothing found.
#[test]
fn a_network_that_overflows_finds_an_error() {
    let fixture = Fixture::load("tied");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.model.join(file), folder.path().join(file)).unwrap();
    }
    let mut tensors = stored(&fixture);
    let name = "model.encoder.layers.0.fusion_layer.attn.vision_proj.weight";
    let sharp = &tensors[name] * 3e4;
    tensors.insert(name.to_owned(), sharp);
    let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
    let thresholds = Thresholds { box_threshold: 0.0, text_threshold: 0.0 };
    let picture = &fixture.images(fixture.case("one"))[0];
    let detect = |kind| {
        let dino = GroundingDino::open(folder.path(), Device::Cpu, kind).unwrap();
        dino.detect(picture, "a red circle", thresholds)
    };
    assert_eq!(detect(Kind::Float).unwrap().len(), 20);
    let error = detect(Kind::Half).unwrap_err();
    assert!(matches!(error, VisionError::NotFinite { .. }), "{error}");
}

/// The fixtures would fail without what they stand for: one changed configuration value at a time, far past the tolerance.
#[test]
fn fixtures_notice_what_they_are_for() {
    let edits = [
        ("tied", "/positional_embedding_temperature", json!(10_000)),
        ("tied", "/layer_norm_eps", json!(1e-3)),
        ("tied", "/activation_function", json!("gelu")),
        ("tied", "/text_config/hidden_act", json!("relu")),
        ("tied", "/text_config/layer_norm_eps", json!(1e-3)),
        ("tied", "/backbone_config/hidden_act", json!("relu")),
        ("tied", "/backbone_config/layer_norm_eps", json!(1e-3)),
        ("untied", "/layer_norm_eps", json!(1e-3)),
        ("untied", "/backbone_config/hidden_act", json!("gelu")),
        ("untied", "/text_config/layer_norm_eps", json!(1e-3)),
    ];
    for (family, place, value) in edits {
        let fixture = Fixture::load(family);
        let dino = open(&fixture);
        let mut config = fixture.config();
        *config.pointer_mut(place).unwrap() = value.clone();
        let config = GroundingDinoConfig::from_json(&config.to_string()).unwrap();
        let weights = Weights::open(&fixture.model, Device::Cpu, Kind::Float).unwrap();
        let model = GroundingDinoModel::load(&weights.root(), &config);
        weights.finish().unwrap();
        let case = fixture.case("one");
        let (images, texts) = (images(&fixture, &dino, case), texts(&dino, case));
        let got = tch::no_grad(|| model.forward(&images, &texts));
        let error = relative_error(&array(&got.logits), &fixture.array(case, "logits").unwrap());
        assert!(error > 5.0 * PARITY.max, "{family}: {place} = {value} moved logits by {error:.1e} only");
    }
}

/// Where there is a GPU.
#[test]
fn a_gpu_gives_the_same_but_for_the_order_of_sums() {
    let Ok(device) = DeviceChoice::Cuda(0).open() else { return };
    for family in ["tied", "untied", "edges"] {
        let fixture = Fixture::load(family);
        let dino = GroundingDino::open(&fixture.model, device, Kind::Float).unwrap();
        for case in &fixture.description.cases {
            let pictures = fixture.images(case);
            let images = dino.prepare_images(&pictures.iter().collect::<Vec<_>>()).unwrap();
            let texts: Vec<&str> = case.texts.iter().map(String::as_str).collect();
            let texts = TextBatch::new(&texts, dino.tokenizer(), dino.config().max_text_len, device).unwrap();
            let decoded = tch::no_grad(|| dino.model().forward(&images, &texts));
            let tolerance = Tolerance { max: 2e-4, rms: 1e-4 };
            let mut stages = Stages::new(format!("{family}/{} on a GPU", case.name), tolerance);
            let filling = texts.mask.logical_not().unsqueeze(1).expand_as(&decoded.logits);
            let logits = decoded.logits.masked_fill(&filling, 0.0);
            stages.close("logits", &array(&logits), &fixture.array(case, "logits").unwrap());
            stages.close("boxes", &array(&decoded.boxes), &fixture.array(case, "boxes").unwrap());
            stages.finish();
        }
    }
}

/// Every stage lets gradients through, which also takes sampling through libtorch's own operations.
#[test]
fn gradients_reach_the_pixels_and_change_nothing() {
    let fixture = Fixture::load("tied");
    let dino = open(&fixture);
    let case = fixture.case("batch");
    let (mut images, texts) = (images(&fixture, &dino, case), texts(&dino, case));
    let plain = tch::no_grad(|| dino.model().forward(&images, &texts));
    images.pixels = images.pixels.set_requires_grad(true);
    let traced = dino.model().forward(&images, &texts);
    let mut stages = Stages::new("tied, with gradients", PARITY);
    stages.close("boxes", &array(&traced.boxes), &array(&plain.boxes));
    stages.finish();
    traced.boxes.sum(Kind::Float).backward();
    let gradient = images.pixels.grad().abs().sum(Kind::Float).double_value(&[]);
    assert!(gradient > 1e-3 && gradient.is_finite(), "{gradient}");
}

/// In bfloat16 every stage finds the dtypes it needs, and the encoder stays near.
#[test]
fn bf16_stays_near() {
    let fixture = Fixture::load("tied");
    let dino = GroundingDino::open(&fixture.model, Device::Cpu, Kind::BFloat16).unwrap();
    let case = fixture.case("batch");
    let (images, texts) = (images(&fixture, &dino, case), texts(&dino, case));
    let _guard = tch::no_grad_guard();
    let model = dino.model();
    let decoded = model.forward(&images, &texts);
    assert_eq!((decoded.logits.kind(), decoded.boxes.kind()), (Kind::Float, Kind::Float));
    assert!(decoded.boxes.isfinite().all().int64_value(&[]) == 1);
    let maps = model.lay_out(&model.project_maps(&model.backbone_maps(&images.pixels)), &images.mask);
    let text = model.project_text(&model.text_states(&texts));
    let encoded = model.encode(&maps, &text, &texts, |_, _| ());
    let mut stages = Stages::new("tied in bfloat16", Tolerance { max: 0.2, rms: 0.05 });
    stages.close("vision", &array(&encoded.vision), &fixture.array(case, "encoder/1/vision").unwrap());
    stages.close("text", &array(&encoded.text), &fixture.array(case, "encoder/1/text").unwrap());
    stages.finish();
}
