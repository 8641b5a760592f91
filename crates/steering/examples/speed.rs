//! How fast a steered model writes, beside the same model as it is: `speed [MODEL] LATENTS`, MODEL a folder or else random numbers
//! of hidden size 512 in 8 layers. Both are measured in turns, and the fastest of several rounds counts.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lmm_hooks::{Batch, GenerationOptions, Hooks, LlavaNext, LoadOptions, PaddingSide};
use lmm_prep::{ClipVisionConfig, Inputs, LlavaNextConfig, TextConfig, TextFamily, TokenLayout};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::{Sae, SaeConfig, SaeTensors};
use steering::{Change, ErrorTerm, FeatureId, HookPoint, Mode, Plan, Steerer};
use tch::{Device, Kind, Tensor};
use torch_nn::Weights;

const NEW_TOKENS: usize = 64;
const PROMPT: usize = 32;
const ROUNDS: usize = 3;
const K: usize = 32;
/// A feature that is kept on every token, the worst case, and one like all others.
const ALWAYS: u32 = 3;
const OTHER: u32 = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, layer) = match arguments.as_slice() {
        [folder, _] => (LlavaNext::load(Path::new(folder), &LoadOptions::default()).unwrap(), 2),
        _ => (random_model(), 4),
    };
    let latents: usize = arguments.last().and_then(|text| text.parse().ok()).unwrap_or(16_384);
    let width = model.config().text_config.hidden_size;
    let hook = HookPoint::layer(layer);
    let saes = BTreeMap::from([(hook.clone(), random_sae(width, latents))]);
    let steerer = Steerer::new(&saes, &model, Kind::Float).unwrap();
    let plan =
        |mode, feature| Plan::default().with(hook.clone(), FeatureId(feature), Change { mode, value: 0.1 });
    let drop = Plan { error: ErrorTerm::Drop, ..plan(Mode::Clamp, OTHER) };
    println!(
        "hidden {width}, {latents} latents, k {K}, {NEW_TOKENS} tokens, {} threads",
        tch::get_num_threads()
    );
    for rows in [1, 8] {
        let plans = [
            ("add", plan(Mode::Add, OTHER)),
            ("clamp", plan(Mode::Clamp, OTHER)),
            ("ablate", plan(Mode::Ablate, OTHER)),
            ("clamp, always on", plan(Mode::Clamp, ALWAYS)),
            ("clamp, error dropped", drop.clone()),
        ];
        let mut best = vec![f64::MAX; plans.len() + 1];
        let batch = prompts(&model, rows);
        for _ in 0..ROUNDS {
            best[0] = best[0].min(seconds(&model, &batch, &mut Hooks::new()));
            for (place, (_, plan)) in plans.iter().enumerate() {
                let steering = steerer.steering(&vec![plan.clone(); rows]).unwrap();
                best[place + 1] = best[place + 1].min(seconds(&model, &batch, &mut steering.hooks()));
            }
        }
        let rate = |seconds: f64| (rows * NEW_TOKENS) as f64 / seconds;
        println!("batch {rows}: unsteered {:.0} tokens/s", rate(best[0]));
        for ((name, _), seconds) in plans.iter().zip(&best[1..]) {
            println!("  {name:<22} {:.0} tokens/s, {:.2} of unsteered", rate(*seconds), best[0] / seconds);
        }
    }
}

fn seconds(model: &LlavaNext, batch: &Batch, hooks: &mut Hooks<'_>) -> f64 {
    let options = GenerationOptions::greedy(NEW_TOKENS, Vec::new());
    let start = Instant::now();
    model.generate(batch, &options, hooks).unwrap();
    start.elapsed().as_secs_f64()
}

fn prompts(model: &LlavaNext, rows: usize) -> Batch {
    let vocabulary = model.config().text_config.vocab_size as u32;
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut prompt = || Inputs {
        // The first tokens of a vocabulary are special, an image's placeholder among them.
        input_ids: (0..PROMPT).map(|_| random.random_range(8..vocabulary)).collect(),
        images: Vec::new(),
        layout: TokenLayout { images: Vec::new(), n_tokens: PROMPT },
        turns: Vec::new(),
    };
    let inputs: Vec<Inputs> = (0..rows).map(|_| prompt()).collect();
    let inputs: Vec<&Inputs> = inputs.iter().collect();
    Batch::new(&inputs, 0, Device::Cpu, Kind::Float, PaddingSide::Left).unwrap()
}

fn random_model() -> LlavaNext {
    let mut text = TextConfig::new(TextFamily::Llama);
    (text.vocab_size, text.hidden_size, text.intermediate_size) = (8192, 512, 1376);
    (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) = (8, 8, 8);
    text.head_dim = 64;
    let mut vision = ClipVisionConfig::default();
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (8, 16, 2);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (2, 8, 4);
    let config = LlavaNextConfig::new(text, vision);
    tch::manual_seed(1);
    let tensors: BTreeMap<_, _> = LlavaNext::parameter_shapes(&config)
        .into_iter()
        .map(|(name, shape)| (name, Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.05))
        .collect();
    LlavaNext::from_weights(config, &Weights::from_tensors(tensors)).unwrap()
}

/// Half of its latents have a positive pre-activation on any token.
fn random_sae(width: usize, latents: usize) -> Sae {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut draw = |n: usize| (0..n).map(|_| random.random_range(-0.05..0.05)).collect::<Vec<f32>>();
    let tensors = SaeTensors {
        encoder_weight: draw(latents * width),
        encoder_bias: (0..latents).map(|latent| if latent == ALWAYS as usize { 1e3 } else { 0.0 }).collect(),
        decoder_weight: draw(latents * width),
        decoder_bias: vec![0.0; width],
        skip_weight: None,
    };
    Sae::from_parts(SaeConfig::new(width, latents, K), tensors).unwrap()
}
