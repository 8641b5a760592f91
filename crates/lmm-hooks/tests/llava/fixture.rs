//! Small random models and inputs.

use std::collections::BTreeMap;

use lmm_hooks::{Batch, LlavaNext, PaddingSide};
use lmm_prep::{
    ClipVisionConfig, ImageSpan, ImageTiles, Inputs, LlavaNextConfig, RopeScaling, Size, TextConfig,
    TextFamily, TileGrid, TokenLayout,
};
use ndarray::Array4;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use torch_nn::Weights;
use torch_nn::tch::{Device, Kind, Tensor};

pub(crate) const IMAGE_TOKEN: u32 = 30;
pub(crate) const PAD: u32 = 0;
const TILE: usize = 8;
const PATCHES: usize = 2;

/// A model of every family, small and with each peculiarity of its own switched on.
pub(crate) fn config(family: TextFamily) -> LlavaNextConfig {
    let mut text = TextConfig::new(family);
    (text.vocab_size, text.hidden_size, text.intermediate_size) = (32, 16, 24);
    (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) = (3, 4, 2);
    text.head_dim = 6; // not hidden_size / heads
    match family {
        TextFamily::Llama => {
            (text.attention_bias, text.mlp_bias) = (true, true);
            text.rope_scaling = Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 64,
            });
        }
        TextFamily::Mistral => text.sliding_window = Some(5),
        TextFamily::Qwen2 => {
            text.tie_word_embeddings = true;
            (text.sliding_window, text.max_window_layers) = (Some(7), 1);
            text.rope_scaling = Some(RopeScaling::Linear { factor: 2.0 });
        }
    }
    let mut vision = ClipVisionConfig::default();
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (12, 20, 3);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (3, TILE, TILE / PATCHES);
    let mut config = LlavaNextConfig::new(text, vision);
    config.image_token_index = IMAGE_TOKEN;
    config.image_grid_pinpoints = pinpoints();
    config
}

pub(crate) fn families() -> [TextFamily; 3] {
    [TextFamily::Llama, TextFamily::Mistral, TextFamily::Qwen2]
}

fn pinpoints() -> Vec<Size> {
    let (one, two) = (TILE as u32, 2 * TILE as u32);
    vec![Size { height: one, width: two }, Size { height: two, width: one }, Size { height: two, width: two }]
}

/// Seeded tensors of the saved layout: norms near one, the rest wide enough for outputs to differ visibly.
pub(crate) fn tensors(config: &LlavaNextConfig, seed: u64) -> BTreeMap<String, Tensor> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    LlavaNext::parameter_shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let count = shape.iter().product::<i64>();
            let values: Vec<f32> = (0..count).map(|_| centre + random.random_range(-0.3..0.3)).collect();
            (name, Tensor::from_slice(&values).view(shape.as_slice()))
        })
        .collect()
}

pub(crate) fn model(family: TextFamily) -> LlavaNext {
    let config = config(family);
    let weights = Weights::from_tensors(tensors(&config, 1));
    LlavaNext::from_weights(config, &weights).unwrap()
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
        input_ids.push(random.random_range(1..IMAGE_TOKEN));
        let shape = (grid.n_tiles(), 3, TILE, TILE);
        let pixels = Array4::from_shape_simple_fn(shape, || random.random_range(-1.0..1.0));
        images.push(ImageTiles { pixels, original, grid });
        spans.push(span);
    }
    input_ids.extend((0..after).map(|_| random.random_range(1..IMAGE_TOKEN)));
    let layout = TokenLayout { images: spans, n_tokens: input_ids.len() };
    Inputs { input_ids, images, layout, turns: Vec::new() }
}

/// Three prompts of different lengths: one image, none, two.
pub(crate) fn prompts() -> [Inputs; 3] {
    [inputs(2, &[(10, 30)], 3, 1), inputs(6, &[], 0, 2), inputs(1, &[(16, 16), (40, 9)], 5, 3)]
}

pub(crate) fn batch(samples: &[&Inputs], side: PaddingSide) -> Batch {
    Batch::new(samples, PAD, Device::Cpu, Kind::Float, side).unwrap()
}

/// The largest difference, relative to the largest expected value.
pub(crate) fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    let difference = (got - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[])
}
