//! Each mode, worked by hand in a plane.

use std::collections::BTreeMap;

use lmm_hooks::{Batch, Hooks, LlavaNext, PaddingSide};
use lmm_prep::{ClipVisionConfig, Inputs, LlavaNextConfig, TextConfig, TextFamily, TokenLayout};
use sae_core::{Sae, SaeConfig, SaeTensors};
use steering::{Change, ErrorTerm, FeatureId, HookPoint, Mode, Plan, Stage, Steerer};
use tch::{Device, Kind, Tensor};
use torch_nn::Weights;

use crate::fixture::numbers;

/// A model whose embeddings, two numbers each, are what hooks at `model.embed_tokens` see.
fn plane(embeddings: &[[f32; 2]]) -> LlavaNext {
    let mut text = TextConfig::new(TextFamily::Llama);
    (text.vocab_size, text.hidden_size, text.intermediate_size) = (embeddings.len(), 2, 2);
    (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) = (1, 1, 1);
    text.head_dim = 2;
    let mut vision = ClipVisionConfig::default();
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (2, 2, 1);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (2, 4, 2);
    let config = LlavaNextConfig::new(text, vision);
    let tensors: BTreeMap<_, _> = LlavaNext::parameter_shapes(&config)
        .into_iter()
        .map(|(name, shape)| {
            let tensor = if name.ends_with("embed_tokens.weight") {
                Tensor::from_slice(&embeddings.concat()).view([-1, 2])
            } else {
                Tensor::ones(shape, (Kind::Float, Device::Cpu))
            };
            (name, tensor)
        })
        .collect();
    LlavaNext::from_weights(config, &Weights::from_tensors(tensors)).unwrap()
}

/// Latents that look right, up, left and down, of which one is on; decoded twice as long up as it looked.
fn compass() -> Sae {
    let tensors = SaeTensors {
        encoder_weight: vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0],
        encoder_bias: vec![0.0; 4],
        decoder_weight: vec![1.0, 0.0, 0.0, 2.0, -1.0, 0.0, 0.0, -1.0],
        decoder_bias: vec![0.0; 2],
        skip_weight: None,
    };
    Sae::from_parts(SaeConfig::new(2, 4, 1), tensors).unwrap()
}

/// What becomes of the vectors `(3, -1)` and `(0.5, 2)`.
fn moved(plan: &Plan) -> [[f32; 2]; 2] {
    tch::set_num_threads(1);
    let model = plane(&[[3.0, -1.0], [0.5, 2.0]]);
    let hook: HookPoint = "model.embed_tokens".parse().unwrap();
    let steerer = Steerer::new(&BTreeMap::from([(hook.clone(), compass())]), &model, Kind::Float).unwrap();
    let layout = TokenLayout { images: Vec::new(), n_tokens: 2 };
    let inputs = Inputs { input_ids: vec![0, 1], images: Vec::new(), layout, turns: Vec::new() };
    let batch = Batch::new(&[&inputs], 0, Device::Cpu, Kind::Float, PaddingSide::Left).unwrap();
    let steering = steerer.steering(std::slice::from_ref(plan)).unwrap();
    let mut found = Tensor::new();
    let mut hooks: Hooks<'_> = steering.hooks().read(hook, |_, tensor| found = tensor.copy());
    tch::no_grad(|| model.forward(&batch, &mut hooks)).unwrap();
    drop(hooks);
    let numbers = numbers(&found);
    [[numbers[0], numbers[1]], [numbers[2], numbers[3]]]
}

fn plan(changes: &[(Mode, u32, f32)]) -> Plan {
    let hook: HookPoint = "model.embed_tokens".parse().unwrap();
    changes.iter().fold(Plan::default(), |plan, &(mode, feature, value)| {
        plan.with(hook.clone(), FeatureId(feature), Change { mode, value })
    })
}

/// On token 0 latent 0 has 3, on token 1 latent 1 has 2 and is decoded to 4.
#[test]
fn after_topk_with_the_error_kept() {
    let plain = [[3.0, -1.0], [0.5, 2.0]];
    for (changes, want) in [
        (&[][..], plain),
        (&[(Mode::Clamp, 0, 7.0)], [[7.0, -1.0], [7.5, 2.0]]),
        (&[(Mode::Clamp, 1, -1.0)], [[3.0, -3.0], [0.5, -4.0]]),
        (&[(Mode::Clamp, 0, 0.0), (Mode::Clamp, 1, 1.0)], [[0.0, 1.0], [0.5, 0.0]]),
        (&[(Mode::Add, 0, 1.5)], [[4.5, -1.0], [2.0, 2.0]]),
        (&[(Mode::Add, 1, 1.5)], [[3.0, 2.0], [0.5, 5.0]]),
        (&[(Mode::Scale, 0, 2.0)], [[6.0, -1.0], [0.5, 2.0]]),
        (&[(Mode::Scale, 1, -1.0)], [[3.0, -1.0], [0.5, -6.0]]),
        (&[(Mode::Ablate, 1, 9.0)], [[3.0, -1.0], [0.5, -2.0]]),
        (&[(Mode::Ablate, 3, 0.0)], plain),
        (&[(Mode::Cap, 0, 1.0)], [[1.0, -1.0], [0.5, 2.0]]),
        (&[(Mode::Cap, 1, 5.0)], plain),
        // Below 0, what is off is pushed as well.
        (&[(Mode::Cap, 0, -1.0)], [[-1.0, -1.0], [-0.5, 2.0]]),
        (&[(Mode::Orthogonal, 1, 0.0)], [[3.0, 0.0], [0.5, 0.0]]),
        // The row is twice as long as its direction, and the value is along the direction.
        (&[(Mode::Orthogonal, 1, 5.0)], [[3.0, 5.0], [0.5, 5.0]]),
        (&[(Mode::Orthogonal, 2, 1.0)], [[-1.0, -1.0], [-1.0, 2.0]]),
        // Directions come after all else.
        (&[(Mode::Orthogonal, 0, 1.0), (Mode::Add, 2, 4.0)], [[1.0, -1.0], [1.0, 2.0]]),
    ] {
        assert_eq!(moved(&plan(changes)), want, "{changes:?}");
    }
}

#[test]
fn the_other_ways() {
    let with = |stage, error, changes: &[(Mode, u32, f32)]| moved(&Plan { stage, error, ..plan(changes) });
    let drop = |changes: &[(Mode, u32, f32)]| with(Stage::AfterTopK, ErrorTerm::Drop, changes);
    assert_eq!(drop(&[(Mode::Add, 0, 0.0)]), [[3.0, 0.0], [0.0, 4.0]]);
    assert_eq!(drop(&[(Mode::Clamp, 0, 7.0)]), [[7.0, 0.0], [7.0, 4.0]]);
    assert_eq!(drop(&[(Mode::Orthogonal, 0, 1.0)]), [[1.0, 0.0], [1.0, 4.0]]);
    // Only one may be on: what is raised drives the other out, what is put out lets another in.
    let before = |error, changes: &[(Mode, u32, f32)]| with(Stage::BeforeTopK, error, changes);
    assert_eq!(before(ErrorTerm::Drop, &[(Mode::Clamp, 0, 7.0)]), [[7.0, 0.0], [7.0, 0.0]]);
    assert_eq!(before(ErrorTerm::Keep, &[(Mode::Clamp, 0, 7.0)]), [[7.0, -1.0], [7.5, -2.0]]);
    assert_eq!(before(ErrorTerm::Drop, &[(Mode::Ablate, 0, 0.0)]), [[0.0, -1.0], [0.0, 4.0]]);
    assert_eq!(before(ErrorTerm::Keep, &[(Mode::Ablate, 0, 0.0)]), [[0.0, -2.0], [0.5, 2.0]]);
    assert_eq!(before(ErrorTerm::Drop, &[(Mode::Add, 3, 3.0)]), [[0.0, -4.0], [0.0, -3.0]]);
    // Too small for its place.
    assert_eq!(before(ErrorTerm::Drop, &[(Mode::Clamp, 2, 1.0)]), [[3.0, 0.0], [0.0, 4.0]]);
}
