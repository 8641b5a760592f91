//! A small random model, inputs, and autoencoders.

use std::collections::BTreeMap;

use lmm_hooks::{Batch, LlavaNext, PaddingSide};
use lmm_prep::{
    ClipVisionConfig, ImageSpan, ImageTiles, Inputs, LlavaNextConfig, Size, TextConfig, TextFamily, TileGrid,
    TokenLayout,
};
use ndarray::Array4;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::{Sae, SaeConfig, SaeTensors};
use sae_eval::{Evaluation, Evaluator, Subject};
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
            (name, Tensor::from_slice(&values).view(shape.as_slice()))
        })
        .collect();
    LlavaNext::from_weights(config, &Weights::from_tensors(tensors)).unwrap()
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

/// All tokens but the first of each prompt, and every fifth.
pub(crate) fn counted(prompts: &[&Inputs]) -> Vec<Vec<usize>> {
    let of = |prompt: &&Inputs| (1..prompt.input_ids.len()).filter(|position| position % 5 != 4).collect();
    prompts.iter().map(of).collect()
}

/// Evaluates over batches of `size`.
pub(crate) fn evaluate(
    model: &LlavaNext,
    subjects: Vec<Subject<'_>>,
    prompts: &[Inputs],
    size: usize,
    side: PaddingSide,
) -> Vec<Evaluation> {
    let mut evaluator = Evaluator::new(model, subjects).unwrap();
    for prompts in prompts.chunks(size) {
        let prompts: Vec<_> = prompts.iter().collect();
        let batch = Batch::new(&prompts, PAD, Device::Cpu, Kind::Float, side).unwrap();
        evaluator.push(model, &batch, &prompts, &counted(&prompts)).unwrap();
    }
    evaluator.finish()
}

/// Random numbers everywhere, of the configuration's kind.
pub(crate) fn random_sae(config: SaeConfig, seed: u64) -> Sae {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |n: usize| (0..n).map(|_| random.random_range(-0.5..0.5)).collect::<Vec<f32>>();
    let (latents, d_in) = (config.num_latents, config.d_in);
    let tensors = SaeTensors {
        encoder_weight: draw(latents * d_in),
        encoder_bias: draw(latents),
        decoder_weight: draw(latents * d_in),
        decoder_bias: draw(d_in),
        skip_weight: config.skip_connection.then(|| draw(d_in * d_in)),
    };
    Sae::from_parts(config, tensors).unwrap()
}

/// Latents `±e_i`, decoded by `scale` times themselves.
pub(crate) fn directions(scale: f32) -> Sae {
    let mut encoder_weight = vec![0.0; 2 * WIDTH * WIDTH];
    for axis in 0..WIDTH {
        encoder_weight[axis * WIDTH + axis] = 1.0;
        encoder_weight[(WIDTH + axis) * WIDTH + axis] = -1.0;
    }
    let tensors = SaeTensors {
        decoder_weight: encoder_weight.iter().map(|number| number * scale).collect(),
        encoder_weight,
        encoder_bias: vec![0.0; 2 * WIDTH],
        decoder_bias: vec![0.0; WIDTH],
        skip_weight: None,
    };
    Sae::from_parts(SaeConfig::new(WIDTH, 2 * WIDTH, WIDTH), tensors).unwrap()
}
