//! A small random model, prompts, and autoencoders.

use std::collections::BTreeMap;

use lmm_hooks::{Batch, LlavaNext, PaddingSide, WeightPrecision};
use lmm_prep::{
    ClipVisionConfig, ImageSpan, ImageTiles, Inputs, LlavaNextConfig, Size, TextConfig, TextFamily, TileGrid,
    TokenLayout,
};
use ndarray::Array4;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::{Activation, Sae, SaeConfig, SaeTensors};
use steering::{Change, FeatureId, HookPoint, Mode, Plan, Steerer};
use tch::{Device, Kind, Tensor};
use torch_nn::Weights;

pub(crate) const WIDTH: usize = 16;
const IMAGE_TOKEN: u32 = 30;
const PAD: u32 = 0;
const TILE: usize = 8;
const PATCHES: usize = 2;

fn pinpoints() -> Vec<Size> {
    let (one, two) = (TILE as u32, 2 * TILE as u32);
    vec![Size { height: one, width: two }, Size { height: two, width: one }, Size { height: two, width: two }]
}

/// Weights wide enough for what is replaced to show in the logits.
pub(crate) fn model() -> LlavaNext {
    model_in(Kind::Float, WeightPrecision::Full)
}

/// The same in another dtype, and its layers' matrices in another precision.
pub(crate) fn model_in(kind: Kind, precision: WeightPrecision) -> LlavaNext {
    tch::set_num_threads(1);
    let mut text = TextConfig::new(TextFamily::Llama);
    (text.vocab_size, text.hidden_size, text.intermediate_size) = (32, WIDTH, 24);
    (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) = (3, 4, 2);
    text.head_dim = 6;
    let mut vision = ClipVisionConfig::default();
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (12, 20, 3);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (3, TILE, TILE / PATCHES);
    let mut config = LlavaNextConfig::new(text, vision);
    config.image_token_index = IMAGE_TOKEN;
    config.image_grid_pinpoints = pinpoints();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let tensors: BTreeMap<_, _> = LlavaNext::parameter_shapes(&config)
        .into_iter()
        .map(|(name, shape)| {
            let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let count = shape.iter().product::<i64>();
            let values: Vec<f32> = (0..count).map(|_| centre + random.random_range(-0.5..0.5)).collect();
            (name, Tensor::from_slice(&values).view(shape.as_slice()).to_kind(kind))
        })
        .collect();
    LlavaNext::from_weights_in(config, &Weights::from_tensors(tensors), precision).unwrap()
}

/// `before` words, an image of each size with a word after it, `after` words.
pub(crate) fn inputs(before: usize, sizes: &[(u32, u32)], after: usize, seed: u64) -> Inputs {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut input_ids: Vec<u32> = (0..before).map(|_| random.random_range(1..IMAGE_TOKEN)).collect();
    let (mut images, mut spans) = (Vec::new(), Vec::new());
    for &(height, width) in sizes {
        let original = Size { height, width };
        let grid = TileGrid::new(original, &pinpoints(), TILE, PATCHES);
        let span = ImageSpan { start: input_ids.len(), base: grid.base(), high: grid.high() };
        input_ids.extend(vec![IMAGE_TOKEN; grid.n_tokens()]);
        let shape = (grid.n_tiles(), 3, TILE, TILE);
        let pixels = Array4::from_shape_simple_fn(shape, || random.random_range(-1.0..1.0));
        images.push(ImageTiles { pixels, original, grid });
        spans.push(span);
    }
    input_ids.extend((0..after).map(|_| random.random_range(1..IMAGE_TOKEN)));
    let layout = TokenLayout { images: spans, n_tokens: input_ids.len() };
    Inputs { input_ids, images, layout, turns: Vec::new() }
}

/// Four prompts of different lengths: one image, none, two, one without text after it.
pub(crate) fn prompts() -> Vec<Inputs> {
    vec![
        inputs(2, &[(10, 30)], 3, 1),
        inputs(6, &[], 0, 2),
        inputs(1, &[(16, 16), (40, 9)], 5, 3),
        inputs(3, &[(9, 9)], 0, 4),
    ]
}

/// Random numbers everywhere, `latents` of them, `k` on.
pub(crate) fn random_sae(latents: usize, k: usize, activation: Activation, seed: u64) -> Sae {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |n: usize| (0..n).map(|_| random.random_range(-0.5..0.5)).collect::<Vec<f32>>();
    let tensors = SaeTensors {
        encoder_weight: draw(latents * WIDTH),
        encoder_bias: draw(latents),
        decoder_weight: draw(latents * WIDTH),
        decoder_bias: draw(WIDTH),
        skip_weight: None,
    };
    let mut config = SaeConfig::new(WIDTH, latents, k);
    config.activation = activation;
    Sae::from_parts(config, tensors).unwrap()
}

pub(crate) fn hook() -> HookPoint {
    HookPoint::layer(1)
}

/// An autoencoder of 48 latents, 6 on, at layer 1.
pub(crate) fn steerer(model: &LlavaNext) -> Steerer {
    let sae = random_sae(48, 6, Activation::TopK, 5);
    Steerer::new(&BTreeMap::from([(hook(), sae)]), model, Kind::Float).unwrap()
}

pub(crate) fn plan(mode: Mode, feature: u32, value: f32) -> Plan {
    Plan::default().with(hook(), FeatureId(feature), Change { mode, value })
}

pub(crate) fn batch(prompts: &[&Inputs]) -> Batch {
    batch_in(prompts, Kind::Float)
}

pub(crate) fn batch_in(prompts: &[&Inputs], kind: Kind) -> Batch {
    Batch::new(prompts, PAD, Device::Cpu, kind, PaddingSide::Left).unwrap()
}

/// All numbers of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float).reshape([-1])).unwrap()
}

/// The largest difference, relative to the largest expected value.
pub(crate) fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    let difference = (got - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[])
}
