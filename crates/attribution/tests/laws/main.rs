//! The laws of attribution, on functions whose effects are known and on a small random model.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod function;
mod model;

use std::num::NonZeroUsize;

use attribution::{
    Ablation, AttributionError, Clean, Downstream, Effects, integrated, integrated_each, msae, one_pass,
};
use sae_core::{Activation, SaeConfig};
use sae_torch::{Parameters, TorchSae};
use sae_types::{FeatureId, HookPoint};
use tch::{Device, Kind, Tensor};

use crate::function::Function;

const TOKENS: i64 = 5;
const WIDTH: i64 = 8;

fn n(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

pub(crate) fn clean<D: Downstream>(downstream: &D) -> Clean<'_, D> {
    Clean::new(downstream).unwrap()
}

/// Numbers without a pattern, in -1 .. 1.
pub(crate) fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    let phase = (Tensor::arange(count, (Kind::Double, Device::Cpu)) + 1.0) * 12.9898 + seed;
    let unit = (phase.sin() * 43758.547).frac();
    unit.reshape(shape).to_kind(Kind::Float)
}

pub(crate) fn sae(width: i64, latents: i64, k: usize, seed: f64) -> TorchSae {
    let parameters = Parameters {
        encoder_weight: numbers(&[latents, width], seed),
        encoder_bias: numbers(&[latents], seed + 0.1) * 0.1,
        decoder_weight: numbers(&[latents, width], seed + 0.2),
        decoder_bias: numbers(&[width], seed + 0.3),
        skip_weight: None,
    };
    TorchSae::from_parameters(SaeConfig::new(width as usize, latents as usize, k), parameters).unwrap()
}

fn linear() -> Function {
    let weight = numbers(&[TOKENS, WIDTH], 0.9);
    Function::new(sae(WIDTH, 24, 6, 0.4), numbers(&[TOKENS, WIDTH], 0.7) * 2.0, move |x| {
        (x * &weight).sum_dim_intlist([1, 2].as_slice(), false, Kind::Float) + 3.0
    })
}

/// Curved, and mixing tokens.
fn curved() -> Function {
    let (first, second) = (numbers(&[WIDTH, 10], 0.2), numbers(&[10 * TOKENS], 0.3));
    Function::new(sae(WIDTH, 24, 6, 0.4), numbers(&[TOKENS, WIDTH], 0.7) * 2.0, move |x| {
        let rows = x.size()[0];
        let mixed = x + x.mean_dim([1].as_slice(), true, Kind::Float);
        mixed.matmul(&first).tanh().reshape([rows, -1]).matmul(&second)
    })
}

fn on(effects: &Effects) -> Vec<FeatureId> {
    let mut features: Vec<FeatureId> = effects.entries().iter().map(|entry| entry.feature).collect();
    features.dedup();
    features
}

fn near(got: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((got - expected).abs() <= tolerance, "{what}: {got} against {expected}");
}

/// The score with all features off, bias and error kept.
fn without_features(function: &Function) -> f64 {
    let x = function.state();
    let codes = function.sae().encode(&x);
    let state = &x - function.sae().decode_without_bias(&codes);
    function.scores(0, &state.unsqueeze(0)).unwrap().double_value(&[0])
}

#[test]
fn on_a_linear_score_one_pass_is_exact() {
    let function = linear();
    let fast = one_pass(&clean(&function)).unwrap().remove(0);
    let passed = clean(&function);
    let exact = Ablation::new(&passed, n(7));
    let features = on(&fast);
    assert!(features.len() > 8, "{features:?}");
    for (feature, effect) in features.iter().zip(exact.features(0, &features).unwrap()) {
        let said: f64 = fast.of(*feature).iter().map(|entry| f64::from(entry.value)).sum();
        near(said, effect, 1e-5, &feature.to_string());
    }
    let per_token = exact.per_token(0, None).unwrap();
    assert_eq!(per_token.entries().len(), fast.entries().len());
    for (said, exact) in fast.entries().iter().zip(per_token.entries()) {
        assert_eq!((said.feature, said.token), (exact.feature, exact.token));
        near(f64::from(said.value), f64::from(exact.value), 1e-5, "per token");
    }
    near(fast.error.iter().map(|&value| f64::from(value)).sum(), exact.error(0).unwrap(), 1e-5, "error");
    let check = exact.check(0, &[&fast], 100).unwrap().remove(0);
    near(check.agreement.spearman.unwrap(), 1.0, 1e-9, "rank correlation");
    near(check.agreement.slope.unwrap(), 1.0, 1e-5, "slope");
    // Features, errors and biases make up the state, and the score is linear in it: 3 is what it adds of its own.
    near(fast.total(), passed.score() - 3.0, 1e-4, "the sum of all effects");
}

#[test]
fn off_features_have_no_effect() {
    let function = curved();
    let fast = one_pass(&clean(&function)).unwrap().remove(0);
    let on = on(&fast);
    let off = (0..24).map(FeatureId).find(|feature| !on.contains(feature)).expect("a feature that is off");
    assert_eq!(Ablation::new(&clean(&function), n(3)).features(0, &[off]).unwrap(), [0.0]);
    assert!(fast.of(off).is_empty());
}

#[test]
fn integrated_gradients_are_complete_and_begin_as_one_pass() {
    let function = curved();
    assert_eq!(integrated(&clean(&function), n(1)).unwrap(), one_pass(&clean(&function)).unwrap());
    let passed = clean(&function);
    let expected = passed.score() - without_features(&function);
    near(Ablation::new(&passed, n(3)).all_features(0).unwrap(), expected, 1e-5, "all features at once");
    let sum = |steps| {
        let effects = integrated(&clean(&function), n(steps)).unwrap().remove(0);
        effects.entries().iter().map(|entry| f64::from(entry.value)).sum::<f64>()
    };
    assert!(expected.abs() > 0.3, "{expected}");
    near(sum(300), expected, 0.02 * expected.abs(), "300 steps");
    let (few, one) = ((sum(10) - expected).abs(), (sum(1) - expected).abs());
    assert!(few < one, "{few} {one}");
}

#[test]
fn a_feature_that_goes_alone_is_complete_alone_and_begins_as_one_pass() {
    let function = curved();
    let fast = one_pass(&clean(&function)).unwrap().remove(0);
    let features = on(&fast);
    let each = |steps| integrated_each(&clean(&function), 0, &features, n(steps), n(7)).unwrap();
    let first = each(1);
    assert_eq!(first.entries().len(), fast.entries().len());
    for (first, fast) in first.entries().iter().zip(fast.entries()) {
        assert_eq!((first.feature, first.token), (fast.feature, fast.token));
        near(f64::from(first.value), f64::from(fast.value), 1e-5, "one step");
    }
    let exact = Ablation::new(&clean(&function), n(7)).features(0, &features).unwrap();
    let many = each(200);
    for (&feature, exact) in features.iter().zip(exact) {
        let sum: f64 = many.of(feature).iter().map(|entry| f64::from(entry.value)).sum();
        near(sum, exact, 0.02 * exact.abs().max(0.2), &feature.to_string());
    }
    assert!(integrated_each(&clean(&function), 0, &[FeatureId(24)], n(1), n(1)).is_err());
}

#[test]
fn exact_effects_do_not_depend_on_the_rows_of_a_pass() {
    let function = curved();
    let all: Vec<FeatureId> = (0..24).map(FeatureId).collect();
    let by = |rows| Ablation::new(&clean(&function), n(rows)).features(0, &all).unwrap();
    let (one, many) = (by(1), by(24));
    for (one, many) in one.iter().zip(many) {
        near(*one, many, 5e-6, "rows");
    }
}

/// What multimodal-sae computes, written out densely, feature by feature.
fn reference(function: &Function, k: usize) -> Tensor {
    let (sae, x) = (function.sae(), function.state());
    let latents = sae.num_latents() as i64;
    let dense = ((&x - sae.decoder_bias()).matmul(&sae.encoder_weight().tr()) + sae.encoder_bias()).relu();
    let reconstruct = |dense: &Tensor| {
        let (values, indices) = dense.topk(k as i64, 1, true, true);
        let kept = dense.zeros_like().scatter(1, &indices, &values);
        kept.matmul(sae.decoder_weight()) + sae.decoder_bias()
    };
    let clean = reconstruct(&dense);
    let row = |feature: i64| {
        let mask = Tensor::ones([1, latents], (Kind::Float, Device::Cpu));
        let _ = mask.narrow(1, feature, 1).fill_(0.0);
        let corrupted = reconstruct(&(&dense * mask)).set_requires_grad(true);
        let score = function.score(&corrupted.unsqueeze(0)).sum(Kind::Float);
        let gradient = Tensor::run_backward(&[score], &[&corrupted], false, false).remove(0);
        ((&clean - corrupted.detach()) * gradient).sum_dim_intlist(1, false, Kind::Float)
    };
    Tensor::stack(&(0..latents).map(row).collect::<Vec<_>>(), 0)
}

#[test]
fn msae_is_the_dense_loop() {
    let function = curved();
    let expected = reference(&function, 6);
    let got = msae(&clean(&function), 0, None, n(5)).unwrap();
    let dense = Tensor::from_slice(&got.dense()).view([24, TOKENS]);
    let off = (&dense - &expected).abs().max().double_value(&[]);
    assert!(off < 1e-5, "{off:e}");
    let dissent = (Tensor::from_slice(&one_pass(&clean(&function)).unwrap()[0].dense()).view([24, TOKENS])
        - expected)
        .abs();
    assert!(dissent.max().double_value(&[]) > 0.01, "it is not what one pass computes");
    let chosen = got.entries()[0].feature;
    let some = msae(&clean(&function), 0, Some(&[chosen]), n(1)).unwrap();
    assert_eq!(some.entries().len(), got.of(chosen).len());
    for (some, all) in some.entries().iter().zip(got.of(chosen)) {
        near(f64::from(some.value), f64::from(all.value), 1e-6, "a shortlist");
    }
}

#[test]
fn a_threshold_lets_no_other_latent_in() {
    let mut config = SaeConfig::new(WIDTH as usize, 24, 6);
    config.activation = Activation::BatchTopK { threshold: 0.8 };
    let plain = sae(WIDTH, 24, 6, 0.4);
    let parameters = Parameters {
        encoder_weight: plain.encoder_weight().shallow_clone(),
        encoder_bias: plain.encoder_bias().shallow_clone(),
        decoder_weight: plain.decoder_weight().shallow_clone(),
        decoder_bias: plain.decoder_bias().shallow_clone(),
        skip_weight: None,
    };
    let sae = TorchSae::from_parameters(config, parameters).unwrap();
    let weight = numbers(&[TOKENS, WIDTH], 0.9);
    let function = Function::new(sae, numbers(&[TOKENS, WIDTH], 0.7) * 2.0, move |x| {
        (x * &weight).sum_dim_intlist([1, 2].as_slice(), false, Kind::Float)
    });
    // On a linear score without refill, the error does not matter: all methods agree.
    let fast = one_pass(&clean(&function)).unwrap().remove(0);
    let slow = msae(&clean(&function), 0, None, n(4)).unwrap();
    assert_eq!(fast.entries().len(), slow.entries().len());
    for (fast, slow) in fast.entries().iter().zip(slow.entries()) {
        near(f64::from(fast.value), f64::from(slow.value), 1e-5, "linear");
    }
}

#[test]
fn what_is_not_there_is_named() {
    let function = linear();
    let passed = clean(&function);
    let exact = Ablation::new(&passed, n(1));
    let error = exact.features(0, &[FeatureId(3), FeatureId(24)]).unwrap_err().to_string();
    assert!(error.contains("feature 24") && error.contains("0 to 23"), "{error}");
    assert!(msae(&clean(&function), 0, Some(&[FeatureId(99)]), n(1)).is_err());
    let infinite = Function::new(sae(WIDTH, 24, 6, 0.4), numbers(&[TOKENS, WIDTH], 0.7), |x| {
        (x * f64::INFINITY).sum_dim_intlist([1, 2].as_slice(), false, Kind::Float)
    });
    let error = Clean::new(&infinite).err().unwrap();
    assert!(matches!(error, AttributionError::Score { .. }), "{error}");
}

#[test]
fn what_is_not_finite_is_no_effect() {
    let x = || numbers(&[TOKENS, WIDTH], 0.7) * 2.0;
    let names_the_place = |error: AttributionError| {
        let text = error.to_string();
        assert!(text.contains("not finite") && text.contains(HookPoint::layer(0).as_str()), "{text}");
    };
    // A score that is finite where its gradient is not.
    let steep = Function::new(sae(WIDTH, 24, 6, 0.4), x(), |x| {
        (x * 0.0).abs().sqrt().sum_dim_intlist([1, 2].as_slice(), false, Kind::Float)
    });
    names_the_place(one_pass(&clean(&steep)).unwrap_err());
    // One that is finite at the clean state alone.
    let fragile = Function::new(sae(WIDTH, 24, 6, 0.4), x(), move |states| {
        let moved = (states - x()).abs().sum_dim_intlist([1, 2].as_slice(), false, Kind::Float).gt(0.0);
        states.sum_dim_intlist([1, 2].as_slice(), false, Kind::Float).masked_fill(&moved, f64::NAN)
    });
    let passed = clean(&fragile);
    let features = on(&one_pass(&passed).unwrap()[0]);
    let exact = Ablation::new(&passed, n(3));
    names_the_place(exact.features(0, &features).unwrap_err());
    names_the_place(exact.per_token(0, None).unwrap_err());
    names_the_place(exact.error(0).unwrap_err());
    names_the_place(exact.all_features(0).unwrap_err());
}

#[test]
fn several_methods_are_checked_against_the_same_ablations() {
    let function = curved();
    let passed = clean(&function);
    let (fast, path) = (one_pass(&passed).unwrap(), integrated(&passed, n(10)).unwrap());
    let exact = Ablation::new(&passed, n(4));
    let both = exact.check(0, &[&fast[0], &path[0]], 5).unwrap();
    for (both, alone) in both.iter().zip([&fast[0], &path[0]]) {
        assert_eq!(both.pairs.len(), 5);
        let alone = exact.check(0, &[alone], 5).unwrap().remove(0);
        for (both, alone) in both.pairs.iter().zip(alone.pairs) {
            assert_eq!((both.0, both.1), (alone.0, alone.1));
            near(both.2, alone.2, 1e-6, "exact");
        }
    }
}
