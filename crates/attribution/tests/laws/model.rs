//! The same on a small random LLaVA-NeXT with an image, against plain passes of the model.

use std::collections::BTreeMap;

use attribution::{
    Ablation, Asked, AttributionError, Combine, Effects, Place, Question, Tokens, integrated, one_pass,
};
use lmm_hooks::{Batch, HookPoint, Hooks, LlavaNext, PaddingSide, WeightPrecision};
use lmm_prep::{
    ClipVisionConfig, ImageSpan, ImageTiles, Inputs, LlavaNextConfig, Size, TextConfig, TextFamily, TileGrid,
    TokenLayout,
};
use ndarray::Array4;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::SaeConfig;
use sae_torch::{Parameters, TorchSae};
use sae_types::FeatureId;
use tch::{Device, Kind, Tensor};
use torch_nn::{QuantisedMatrix, Weights};

use crate::{clean, n, near, numbers, on, sae};

const WIDTH: i64 = 16;
const IMAGE_TOKEN: u32 = 30;
const SIDE: usize = 8;

fn config() -> LlavaNextConfig {
    tch::set_num_threads(1);
    let mut text = TextConfig::new(TextFamily::Llama);
    (text.vocab_size, text.hidden_size, text.intermediate_size) = (32, WIDTH as usize, 24);
    (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) = (3, 4, 2);
    text.head_dim = 6;
    let mut vision = ClipVisionConfig::default();
    (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (12, 20, 3);
    (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (3, SIDE, SIDE / 2);
    let mut config = LlavaNextConfig::new(text, vision);
    config.image_token_index = IMAGE_TOKEN;
    config.image_grid_pinpoints = vec![Size { height: 8, width: 16 }];
    config
}

fn tensors() -> BTreeMap<String, Tensor> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let count = shape.iter().product::<i64>();
        let values: Vec<f32> = (0..count).map(|_| centre + random.random_range(-0.5..0.5)).collect();
        (name, Tensor::from_slice(&values).view(shape.as_slice()))
    };
    LlavaNext::parameter_shapes(&config()).into_iter().map(tensor).collect()
}

fn model() -> LlavaNext {
    LlavaNext::from_weights(config(), &Weights::from_tensors(tensors())).unwrap()
}

/// Its weights rounded to `rounded` and held as `kind`.
fn model_of(rounded: Kind, kind: Kind) -> LlavaNext {
    let tensors = tensors().into_iter().map(|(name, tensor)| (name, tensor.to_kind(rounded).to_kind(kind)));
    LlavaNext::from_weights(config(), &Weights::from_tensors(tensors.collect())).unwrap()
}

/// Three words, an image, four words.
fn question() -> Question {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let original = Size { height: 10, width: 30 };
    let grid = TileGrid::new(original, &[Size { height: 8, width: 16 }], SIDE, 2);
    let mut input_ids = vec![1, 7, 3];
    input_ids.extend(vec![IMAGE_TOKEN; grid.n_tokens()]);
    input_ids.extend([9, 4, 11, 2]);
    let span = ImageSpan { start: 3, base: grid.base(), high: grid.high() };
    let shape = (grid.n_tiles(), 3, SIDE, SIDE);
    let pixels = Array4::from_shape_simple_fn(shape, || random.random_range(-1.0..1.0));
    let layout = TokenLayout { images: vec![span], n_tokens: input_ids.len() };
    let images = vec![ImageTiles { pixels, original, grid }];
    let inputs = Inputs { input_ids, images, layout, turns: Vec::new() };
    Question { inputs, answers: vec![5, 6], baselines: vec![12], combine: Combine::Mean }
}

fn place(model: &LlavaNext, point: &str, seed: f64) -> Place {
    Place::new(model, point.parse().unwrap(), sae(WIDTH, 48, 6, seed)).unwrap()
}

/// The score by an ordinary forward pass over prompt and image, with `change` at a hook point.
fn plain(
    model: &LlavaNext,
    question: &Question,
    point: &HookPoint,
    change: impl Fn(Tensor) -> Tensor,
) -> f64 {
    let batch = Batch::new(&[&question.inputs], 0, Device::Cpu, Kind::Float, PaddingSide::Right).unwrap();
    let mut hooks = Hooks::new().replace(point.clone(), |_, tensor| change(tensor));
    let logits = tch::no_grad(|| model.forward(&batch, &mut hooks).unwrap().logits.unwrap());
    let last = logits.get(0).get(-1);
    let at = |token: i64| last.double_value(&[token]);
    f64::midpoint(at(5), at(6)) - at(12)
}

#[test]
fn ablations_are_those_of_an_ordinary_pass() {
    let (model, question) = (model(), question());
    for name in ["model.embed_tokens", "model.layers.0", "model.layers.1.mlp", "model.layers.2", "model.norm"]
    {
        let places = [place(&model, name, 0.5)];
        let asked = Asked::new(&model, &question, &places).unwrap();
        let passed = clean(&asked);
        let exact = Ablation::new(&passed, n(4));
        let (point, sae) = (places[0].point(), places[0].sae());
        near(passed.score(), plain(&model, &question, point, |x| x), 1e-5, "clean");
        near(asked.score().unwrap(), passed.score(), 1e-5, "the same without a graph");
        let fast = one_pass(&clean(&asked)).unwrap().remove(0);
        let features = on(&fast);
        let effects = exact.features(0, &features).unwrap();
        for (feature, effect) in features.iter().zip(effects).step_by(5) {
            let score = plain(&model, &question, point, |x| {
                let codes = sae.encode(&x.squeeze_dim(0));
                let values = &codes.values * codes.indices.eq(i64::from(feature.0));
                let gone = values
                    .sum_dim_intlist(1, false, Kind::Float)
                    .outer(&sae.decoder_weight().get(i64::from(feature.0)));
                x - gone.unsqueeze(0)
            });
            near(effect, passed.score() - score, 2e-5, &format!("{name} {feature}"));
        }
        let dropped = plain(&model, &question, point, |x| sae.reconstruct(&x.squeeze_dim(0)).1.unsqueeze(0));
        near(exact.error(0).unwrap(), passed.score() - dropped, 2e-5, "the error dropped");
    }
}

#[test]
fn a_small_feature_has_the_effect_that_its_gradient_says() {
    let (model, question) = (model(), question());
    let places = [place(&model, "model.layers.1", 0.5)];
    let asked = Asked::new(&model, &question, &places).unwrap();
    let fast = one_pass(&clean(&asked)).unwrap().remove(0);
    let (point, sae) = (places[0].point(), places[0].sae());
    for entry in fast.entries().iter().step_by(17) {
        // By central differences over a fiftieth of the code.
        let moved = |by: f64| {
            plain(&model, &question, point, |x| {
                let codes = sae.encode(&x.squeeze_dim(0));
                let token = i64::from(entry.token.0);
                let (indices, values) = (codes.indices.get(token), codes.values.get(token));
                let own = (values * indices.eq(i64::from(entry.feature.0))).sum(Kind::Float) * by;
                let _ =
                    x.get(0).get(token).g_add_(&(own * sae.decoder_weight().get(i64::from(entry.feature.0))));
                x
            })
        };
        let slope = (moved(0.02) - moved(-0.02)) / 0.04;
        near(f64::from(entry.value), slope, 0.01 * slope.abs().max(0.1), "slope");
    }
}

#[test]
fn several_hook_points_at_once_are_each_alone() {
    let (model, question) = (model(), question());
    let names = ["model.layers.2", "model.embed_tokens", "model.layers.1.mlp"];
    let places = names.map(|name| place(&model, name, 0.5));
    let all = Asked::new(&model, &question, &places).unwrap();
    let close = |got: &Effects, expected: &Effects| {
        assert_eq!((&got.point, got.entries().len()), (&expected.point, expected.entries().len()));
        for (got, expected) in got.entries().iter().zip(expected.entries()) {
            assert_eq!((got.feature, got.token), (expected.feature, expected.token));
            near(f64::from(got.value), f64::from(expected.value), 1e-5, "alone");
        }
    };
    let (together, path) = (one_pass(&clean(&all)).unwrap(), integrated(&clean(&all), n(3)).unwrap());
    for (number, place) in places.iter().enumerate() {
        let alone = Asked::new(&model, &question, std::slice::from_ref(place)).unwrap();
        close(&together[number], &one_pass(&clean(&alone)).unwrap()[0]);
        close(&path[number], &integrated(&clean(&alone), n(3)).unwrap()[0]);
    }
}

#[test]
fn integrated_gradients_of_a_model_are_complete() {
    let (model, question) = (model(), question());
    let places = [place(&model, "model.layers.1", 0.5)];
    let asked = Asked::new(&model, &question, &places).unwrap();
    let exact = Ablation::new(&clean(&asked), n(1)).all_features(0).unwrap();
    let effects = integrated(&clean(&asked), n(200)).unwrap().remove(0);
    let sum: f64 = effects.entries().iter().map(|entry| f64::from(entry.value)).sum();
    // Large effects of either sign make up a small sum.
    let sizes: f64 = effects.entries().iter().map(|entry| f64::from(entry.value).abs()).sum();
    near(sum, exact, 0.01 * sizes, "the sum of the effects");
}

#[test]
fn quantised_models_are_traced_as_what_they_stand_for() {
    let question = question();
    let small = Weights::from_tensors(tensors());
    let small = LlavaNext::from_weights_in(config(), &small, WeightPrecision::Int8).unwrap();
    let stored = tensors().into_iter().map(|(name, tensor)| {
        let is_matrix = name.starts_with("language_model.model.layers.") && tensor.dim() == 2;
        let stored =
            if is_matrix { QuantisedMatrix::new(&tensor, Kind::Float).0.dequantised() } else { tensor };
        (name, stored)
    });
    let full = LlavaNext::from_weights(config(), &Weights::from_tensors(stored.collect())).unwrap();
    let effects = |model: &LlavaNext| {
        let places = [place(model, "model.layers.0", 0.5), place(model, "model.layers.1", 0.6)];
        let asked = Asked::new(model, &question, &places).unwrap();
        [one_pass(&clean(&asked)).unwrap(), integrated(&clean(&asked), n(3)).unwrap()].concat()
    };
    for (got, expected) in effects(&small).iter().zip(effects(&full)) {
        assert_eq!(got.entries().len(), expected.entries().len());
        let largest = expected.entries().iter().map(|entry| entry.value.abs()).fold(0.0, f32::max);
        for (got, expected) in got.entries().iter().zip(expected.entries()) {
            near(f64::from(got.value), f64::from(expected.value), 1e-5 * f64::from(largest), "quantised");
        }
    }
}

/// Effects in 16 bits are those of the same weights in f32 but for the rounding of states: logits of this size are multiples of
/// 2^-6 in bf16, many effects are smaller.
#[test]
fn effects_in_sixteen_bits_are_no_steps_of_the_logits_rounding() {
    let question = question();
    for (kind, tolerance) in [(Kind::BFloat16, 0.1), (Kind::Half, 0.02)] {
        let effects = |model: &LlavaNext| {
            // Long decoder rows would leave nothing small.
            let sae = sae(WIDTH, 48, 6, 0.5);
            let places = [Place::new(model, HookPoint::layer(1), sae).unwrap()];
            let asked = Asked::new(model, &question, &places).unwrap();
            let passed = clean(&asked);
            let fast = one_pass(&passed).unwrap().remove(0);
            let exact = Ablation::new(&passed, n(16)).per_token(0, None).unwrap();
            [fast, exact].map(|effects| effects.entries().to_vec())
        };
        let (got, wanted) = (effects(&model_of(kind, kind)), effects(&model_of(kind, Kind::Float)));
        for (what, (got, wanted)) in ["one pass", "exact"].into_iter().zip(got.iter().zip(&wanted)) {
            let at = |entry: &attribution::Effect| (entry.feature, entry.token);
            let known: BTreeMap<_, f32> = wanted.iter().map(|entry| (at(entry), entry.value)).collect();
            // A code at the edge of the k largest may be another.
            let pairs: Vec<(f64, f64)> = got
                .iter()
                .filter_map(|entry| Some((f64::from(entry.value), f64::from(*known.get(&at(entry))?))))
                .collect();
            assert!(pairs.len() * 10 > wanted.len() * 9, "{what}: {} of {}", pairs.len(), wanted.len());
            let size =
                |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
            let off = size(&mut pairs.iter().map(|(got, wanted)| got - wanted));
            let all = size(&mut pairs.iter().map(|(_, wanted)| *wanted));
            assert!(off < tolerance * all, "{kind:?} {what}: {off} of {all}");
            let mut values: Vec<u32> = got.iter().map(|entry| entry.value.to_bits()).collect();
            values.sort_unstable();
            values.dedup();
            assert!(
                values.len() * 10 > got.len() * 9,
                "{kind:?} {what}: {} values of {}",
                values.len(),
                got.len()
            );
        }
    }
}

#[test]
fn a_transcoder_reads_the_input_of_its_module() {
    let (model, question) = (model(), question());
    let mut config = SaeConfig::new(WIDTH as usize, 48, 6);
    (config.transcode, config.skip_connection) = (true, true);
    let plain_sae = sae(WIDTH, 48, 6, 0.5);
    let parameters = Parameters {
        encoder_weight: plain_sae.encoder_weight().shallow_clone(),
        encoder_bias: plain_sae.encoder_bias().shallow_clone(),
        decoder_weight: plain_sae.decoder_weight().shallow_clone(),
        decoder_bias: plain_sae.decoder_bias().shallow_clone(),
        skip_weight: Some(numbers(&[WIDTH, WIDTH], 0.8)),
    };
    let sae = TorchSae::from_parameters(config, parameters).unwrap();
    let places = [Place::new(&model, "model.layers.1.mlp".parse().unwrap(), sae).unwrap()];
    let asked = Asked::new(&model, &question, &places).unwrap();
    let passed = clean(&asked);
    let exact = Ablation::new(&passed, n(2));
    let fast = one_pass(&clean(&asked)).unwrap().remove(0);
    let batch = Batch::new(&[&question.inputs], 0, Device::Cpu, Kind::Float, PaddingSide::Right).unwrap();
    let reads: HookPoint = "model.layers.1.post_attention_layernorm".parse().unwrap();
    let input = model.hidden_states(&batch, std::slice::from_ref(&reads)).unwrap().remove(&reads).unwrap();
    let expected = places[0].sae().encode(&input.squeeze_dim(0)).to_codes(48).unwrap();
    assert_eq!(fast.entries().len(), expected.n_codes());
    let feature = fast.entries()[0].feature;
    let effect = exact.features(0, &[feature]).unwrap()[0];
    let score = plain(&model, &question, places[0].point(), |x| {
        let gone: Vec<f32> = (0..expected.n_rows()).map(|row| expected.row(row).value(feature)).collect();
        let direction = places[0].sae().decoder_weight().get(i64::from(feature.0));
        x - Tensor::from_slice(&gone).outer(&direction).unsqueeze(0)
    });
    near(effect, passed.score() - score, 2e-5, "a feature of the transcoder");
    assert!(matches!(
        attribution::msae(&clean(&asked), 0, None, n(1)),
        Err(AttributionError::Transcoder { .. })
    ));
}

#[test]
fn images_and_text_are_told_apart_and_bad_questions_refused() {
    let (model, question) = (model(), question());
    let places = [place(&model, "model.layers.1", 0.5)];
    let asked = Asked::new(&model, &question, &places).unwrap();
    let effects = one_pass(&clean(&asked)).unwrap().remove(0);
    let layout = &question.inputs.layout;
    let (images, text) = (Tokens::images(layout), Tokens::text(layout));
    assert_eq!(images.len() + text.len(), layout.n_tokens);
    let sum = |tokens| effects.pooled(tokens, attribution::Pool::Sum).iter().map(|pair| pair.1).sum::<f64>();
    near(sum(&images) + sum(&text), sum(&Tokens::all(layout.n_tokens)), 1e-9, "the sum over both");

    let bad = Question { answers: Vec::new(), ..question.clone() };
    assert!(matches!(Asked::new(&model, &bad, &places), Err(AttributionError::NoAnswer)));
    let bad = Question { baselines: vec![32], ..question.clone() };
    assert!(matches!(Asked::new(&model, &bad, &places), Err(AttributionError::Token { token: 32, .. })));
    let twice = [place(&model, "model.layers.1", 0.5), place(&model, "model.layers.1", 0.6)];
    assert!(matches!(Asked::new(&model, &question, &twice), Err(AttributionError::Twice { .. })));
    let wide = sae(WIDTH + 1, 48, 6, 0.1);
    assert!(matches!(Place::new(&model, HookPoint::layer(1), wide), Err(AttributionError::Width { .. })));
    let vision = "multi_modal_projector".parse().unwrap();
    let error = Place::new(&model, vision, sae(WIDTH, 48, 6, 0.1)).unwrap_err();
    assert!(matches!(error, AttributionError::VisionPoint { .. }), "{error}");
    let alone = Question { baselines: Vec::new(), combine: Combine::Sum, ..question.clone() };
    let asked = Asked::new(&model, &alone, &places).unwrap();
    assert!(Ablation::new(&clean(&asked), n(1)).features(0, &[FeatureId(48)]).is_err());
}
