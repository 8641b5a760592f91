//! Every stage of every text family against transformers: pixels and tokens exactly, the rest within 1e-5.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeMap;

use common::{Subject, array};
use image::RgbImage;
use lmm_hooks::{GenerationOptions, Hooks, LlavaNext, PaddingSide};
use lmm_prep::{ChatOptions, ImageSpan, Inputs, LlavaNextConfig, Message, Processor};
use parity_tests::{Array, Case, Stages, Tolerance, relative_error};
use sae_types::HookPoint;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use torch_nn::Weights;

/// One rounding to bfloat16 is 2^-9 = 2e-3, and a logit has been through dozens: transformers' own bfloat16 lies 2e-2 from
/// its float32, as the last row of the table shows.
const BF16: Tolerance = Tolerance { max: 0.05, rms: 0.03 };

macro_rules! families {
    ($($family:ident)*) => {$(
        #[test]
        fn $family() {
            family(stringify!($family));
        }
    )*};
}

families!(llama vicuna mistral qwen2 qwen2_window llama_bf16);

fn family(name: &str) {
    let subject = Subject::load(name, Kind::Float);
    let processor = Processor::load(&subject.fixture.model).unwrap();
    chats(name, &subject, &processor);
    for case in &subject.fixture.cases {
        let mut stages = Stages::new(format!("{name}/{}", case.name), Tolerance::F32);
        preparation(&mut stages, &subject, &processor, case);
        forward(&mut stages, &subject, case);
        generation(&mut stages, &subject, &processor, case);
        stages.finish();
    }
    batch(name, &subject);
}

fn chats(name: &str, subject: &Subject, processor: &Processor) {
    let mut stages = Stages::new(format!("{name}: chat template"), Tolerance::F32);
    for (index, chat) in subject.fixture.chats.iter().enumerate() {
        let messages: Vec<Message> = serde_json::from_value(chat.messages.clone()).unwrap();
        let options = ChatOptions { add_generation_prompt: chat.add_generation_prompt };
        let text = processor.chat(&messages, options).unwrap();
        stages.exact(&format!("conversation {index}"), &[text], std::slice::from_ref(&chat.text));
    }
    stages.finish();
}

/// What lmm-prep makes of the raw images and the prompt.
fn preparation(stages: &mut Stages, subject: &Subject, processor: &Processor, case: &Case) {
    let images: Vec<RgbImage> = case
        .images
        .iter()
        .map(|name| {
            let (height, width, rgb) = subject.fixture.image(name);
            RgbImage::from_raw(width, height, rgb).unwrap()
        })
        .collect();
    let got = processor.prepare(&case.prompt, &images).unwrap();
    let want = subject.inputs(case);
    let tiles =
        |inputs: &Inputs| inputs.images.iter().map(|image| image.pixels.shape()[0]).collect::<Vec<_>>();
    let sizes = |inputs: &Inputs| {
        inputs.images.iter().map(|image| [image.original.height, image.original.width]).collect::<Vec<_>>()
    };
    let counts: Vec<usize> = got.layout.images.iter().map(ImageSpan::n_tokens).collect();
    let pixels = |inputs: &Inputs| {
        inputs.images.iter().flat_map(|image| image.pixels.iter().copied()).collect::<Vec<f32>>()
    };
    stages.exact("image sizes", &sizes(&got), &case.image_sizes);
    stages.exact("tiles", &tiles(&got), &case.tiles);
    stages.exact("pixels", &pixels(&got), &pixels(&want));
    stages.exact("features per image", &counts, &case.feature_counts);
    stages.exact("input ids", &got.input_ids, &case.input_ids);
    stages.exact("token layout", &[got.layout], &[want.layout]);
}

fn forward(stages: &mut Stages, subject: &Subject, case: &Case) {
    let (fixture, model) = (&subject.fixture, &subject.model);
    let inputs = subject.inputs(case);
    let batch = subject.batch(&[&inputs], PaddingSide::Right);
    let mut seen = BTreeMap::new();
    let logits = {
        let _guard = tch::no_grad_guard();
        let found = std::cell::RefCell::new(&mut seen);
        let mut hooks = Hooks::new();
        for point in model.hook_points() {
            hooks = hooks.read(point, |context, tensor| {
                found.borrow_mut().insert(context.point.clone(), tensor.shallow_clone());
            });
        }
        model.forward(&batch, &mut hooks).unwrap().logits.unwrap()
    };
    // Text stages lose the batch of one, vision stages keep their tiles.
    let own = |point: &HookPoint| match &seen[point] {
        tensor if point.as_str().starts_with("model.") => array(&tensor.squeeze_dim(0)),
        tensor => array(tensor),
    };
    let mut compared = 0;
    let points = model.hook_points();
    let last_of_tower = points.iter().rfind(|point| point.as_str().starts_with("vision_tower"));
    for point in &points {
        if let Some(want) = fixture.get(&format!("{}/{point}", case.name)) {
            stages.close(point.as_str(), &own(point), &want);
            compared += 1;
        }
        if Some(point) == last_of_tower && !case.images.is_empty() {
            stages.close("tower", &own(point), &fixture.array(&format!("{}/tower", case.name)));
        }
        if point.as_str() == "model.embed_tokens" && !case.images.is_empty() {
            let places: Vec<usize> = inputs.layout.images.iter().flat_map(ImageSpan::positions).collect();
            stages.close(
                "features",
                &own(point).rows(&places),
                &fixture.array(&format!("{}/features", case.name)),
            );
        }
    }
    let is_point = |stage: &&String| stage.contains('.') || *stage == "multi_modal_projector";
    let recorded = fixture.stages(&case.name).iter().filter(is_point).count();
    assert_eq!(compared, recorded, "{}: every recorded hook point is compared", case.name);
    let got = array(&logits.squeeze_dim(0)).rows(&case.logit_positions);
    stages.close("logits", &got, &fixture.array(&format!("{}/logits", case.name)));
}

fn generation(stages: &mut Stages, subject: &Subject, processor: &Processor, case: &Case) {
    let inputs = subject.inputs(case);
    let batch = subject.batch(&[&inputs], PaddingSide::Left);
    let greedy = |eos: Vec<u32>| {
        let options = GenerationOptions::greedy(case.generated.len(), eos);
        subject.model.generate(&batch, &options, &mut Hooks::new()).unwrap().remove(0)
    };
    let generated = greedy(vec![]);
    stages.exact("greedy tokens", &generated, &case.generated);
    stages.exact("greedy tokens to a stop", &greedy(vec![case.stop_token]), &case.stopped);
    let text = processor.tokenizer().decode(&case.generated, true).unwrap();
    stages.exact("text", &[text], std::slice::from_ref(&case.text));
}

/// Prompts of different lengths and numbers of images together.
fn batch(name: &str, subject: &Subject) {
    let fixture = &subject.fixture;
    let want = &fixture.batch;
    let inputs: Vec<Inputs> = want.cases.iter().map(|case| subject.inputs(fixture.case(case))).collect();
    let inputs: Vec<&Inputs> = inputs.iter().collect();
    let mut stages = Stages::new(format!("{name}: batch"), Tolerance::F32);

    let last_logits = |side| {
        let _guard = tch::no_grad_guard();
        let batch = subject.batch(&inputs, side);
        let logits = subject.model.forward(&batch, &mut Hooks::new()).unwrap().logits.unwrap();
        let rows = (0..batch.len()).map(|row| {
            let end = batch.tokens_of(row).end as i64;
            logits.get(row as i64).narrow(0, end - 4, 4)
        });
        array(&Tensor::stack(&rows.collect::<Vec<_>>(), 0))
    };
    let expected: Array = fixture.array("batch/last_logits");
    stages.close("last logits, padded right", &last_logits(PaddingSide::Right), &expected);
    // The same numbers: padding changes nothing.
    stages.close("last logits, padded left", &last_logits(PaddingSide::Left), &expected);

    let batch = subject.batch(&inputs, PaddingSide::Left);
    let greedy = |eos: Vec<u32>| {
        let options = GenerationOptions::greedy(want.generated[0].len(), eos);
        subject.model.generate(&batch, &options, &mut Hooks::new()).unwrap()
    };
    stages.exact("greedy tokens", &greedy(vec![]), &want.generated);
    stages.exact("greedy tokens to a stop", &greedy(vec![want.stop_token]), &want.stopped);
    stages.finish();
}

/// The same checkpoint computed in bfloat16: near transformers' bfloat16 and near the f32 truth.
#[test]
fn bf16_logits_stay_near() {
    let subject = Subject::load("llama_bf16", Kind::BFloat16);
    let case = subject.fixture.case("one");
    let logits = {
        let _guard = tch::no_grad_guard();
        subject.model.forward(&subject.batch_of("one"), &mut Hooks::new()).unwrap().logits.unwrap()
    };
    assert_eq!(logits.kind(), Kind::BFloat16);
    let got = array(&logits.squeeze_dim(0)).rows(&case.logit_positions);
    let mut stages = Stages::new("llama_bf16 in bfloat16", BF16);
    let half = subject.fixture.array("one/half_logits");
    stages.close("logits, transformers in bfloat16", &got, &half);
    stages.close("logits, transformers in float32", &got, &subject.fixture.array("one/logits"));
    stages.close("transformers, bfloat16 against float32", &half, &subject.fixture.array("one/logits"));
    stages.finish();
}

/// Each family would fail without what it stands for: one changed configuration value at a time, far past the tolerance.
#[test]
fn fixtures_notice_what_they_are_for() {
    let text = |key: &str| format!("/text_config/{key}");
    let edits = [
        ("llama", text("rope_scaling"), json!(null)),
        ("llama", text("rope_theta"), json!(10_000.0)),
        ("llama", text("rms_norm_eps"), json!(1e-6)),
        ("llama", "/vision_feature_layer".into(), json!(-3)),
        ("llama", "/projector_hidden_act".into(), json!("gelu_new")),
        ("llama", "/vision_config/hidden_act".into(), json!("gelu")),
        ("vicuna", text("rope_scaling"), json!(null)),
        ("mistral", text("sliding_window"), json!(null)),
        ("mistral", text("sliding_window"), json!(21)),
        ("qwen2", text("use_sliding_window"), json!(true)),
        ("qwen2_window", text("max_window_layers"), json!(0)),
        ("qwen2_window", text("max_window_layers"), json!(2)),
        ("qwen2_window", text("hidden_act"), json!("gelu")),
        ("qwen2_window", "/projector_hidden_act".into(), json!("gelu")),
    ];
    for (family, place, value) in edits {
        let mut subject = Subject::load(family, Kind::Float);
        let folder = &subject.fixture.model;
        let file = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&file).unwrap();
        *config.pointer_mut(&place).unwrap() = value.clone();
        let config = LlavaNextConfig::from_json(&config.to_string()).unwrap();
        let weights = Weights::open(folder, Device::Cpu, Kind::Float).unwrap();
        subject.model = LlavaNext::from_weights(config, &weights).unwrap();
        let _guard = tch::no_grad_guard();
        let batch = subject.batch_of("one");
        let logits = subject.model.forward(&batch, &mut Hooks::new()).unwrap().logits.unwrap();
        let got = array(&logits.squeeze_dim(0)).rows(&subject.fixture.case("one").logit_positions);
        let error = relative_error(&got, &subject.fixture.array("one/logits"));
        assert!(
            error > 5.0 * Tolerance::F32.max,
            "{family}: {place} = {value} moved logits by {error:.1e} only"
        );
    }
}
