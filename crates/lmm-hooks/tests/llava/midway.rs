//! Passes taken up between two layers, and gradients with and without quantised matrices.

use std::collections::BTreeMap;

use lmm_hooks::{HookError, HookPoint, Hooks, LlavaNext, PaddingSide, WeightPrecision};
use lmm_prep::{LlavaNextConfig, TextFamily};
use torch_nn::tch::{Kind, Tensor, no_grad};
use torch_nn::{QuantisedMatrix, Weights};

use crate::fixture::{batch, config, families, model, prompts, tensors};

fn points(names: &[&str]) -> Vec<HookPoint> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

const WITHIN: [&str; 6] = [
    "model.embed_tokens",
    "model.layers.0.mlp",
    "model.layers.1",
    "model.layers.1.self_attn",
    "model.layers.2",
    "model.norm",
];

/// Largest difference, relative to the largest entry of `expected`.
fn difference(got: &Tensor, expected: &Tensor) -> f64 {
    let largest = |tensor: &Tensor| tensor.to_kind(Kind::Double).abs().max().double_value(&[]);
    largest(&(got - expected)) / largest(expected).max(f64::MIN_POSITIVE)
}

#[test]
fn the_rest_of_a_pass_is_the_pass() {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    for family in families() {
        let model = model(family);
        let whole = no_grad(|| model.last_hidden(&batch, &mut Hooks::new()).unwrap().unwrap());
        let points = points(&WITHIN);
        for (point, midway) in points.iter().zip(model.run_up_to(&batch, &points).unwrap()) {
            let mut calls = 0;
            let rest = no_grad(|| {
                let mut hooks = Hooks::new().read(point.clone(), |_, _| calls += 1);
                model.run_on(&batch, &midway, &mut hooks).unwrap().unwrap()
            });
            assert_eq!(rest, whole, "{family:?} {point}");
            assert_eq!(calls, 1, "{family:?} {point}");
        }
    }
}

fn score(model: &LlavaNext, hidden: &Tensor) -> Tensor {
    model.lm_head(&hidden.select(1, hidden.size()[1] - 1)).square().sum_dim_intlist(1, false, Kind::Float)
}

fn gradients(model: &LlavaNext, from: &str, names: &[&str]) -> BTreeMap<HookPoint, Tensor> {
    let prompts = prompts();
    let batch = batch(&[&prompts[0]], PaddingSide::Right);
    let points = points(names);
    let first = model.run_up_to(&batch, &[from.parse().unwrap()]).unwrap().remove(0);
    // A hook that changes what passes, so that it is seen to be run.
    let hooks = Hooks::new().replace("model.norm".parse().unwrap(), |_, tensor| tensor * 1.5);
    let found = model.gradients(&batch, &first, hooks, &points, |hidden| score(model, hidden)).unwrap();
    assert_eq!(found.states.keys().collect::<Vec<_>>(), found.gradients.keys().collect::<Vec<_>>());
    assert_eq!(found.gradients.len(), points.len());
    found.gradients
}

#[test]
fn gradients_of_many_points_are_those_of_each() {
    let model = model(TextFamily::Llama);
    let all = gradients(&model, WITHIN[0], &WITHIN);
    for name in WITHIN {
        let one = gradients(&model, WITHIN[0], &[name]);
        let point: HookPoint = name.parse().unwrap();
        assert!(difference(&one[&point], &all[&point]) < 1e-6, "{name}");
    }
}

/// The full model of what the quantised one stands for.
fn dequantised(config: LlavaNextConfig) -> LlavaNext {
    let layers = "language_model.model.layers.";
    let tensors = tensors(&config, 1).into_iter().map(|(name, tensor)| {
        let is_matrix = name.starts_with(layers) && tensor.dim() == 2;
        let stored =
            if is_matrix { QuantisedMatrix::new(&tensor, Kind::Float).0.dequantised() } else { tensor };
        (name, stored)
    });
    LlavaNext::from_weights(config, &Weights::from_tensors(tensors.collect())).unwrap()
}

#[test]
fn gradients_through_quantised_matrices_are_those_of_the_dequantised_model() {
    for family in families() {
        let weights = Weights::from_tensors(tensors(&config(family), 1));
        let small = LlavaNext::from_weights_in(config(family), &weights, WeightPrecision::Int8).unwrap();
        let full = dequantised(config(family));
        for names in [&WITHIN[..], &["model.layers.1", "model.layers.2.mlp"], &["model.norm"]] {
            let (got, expected) = (gradients(&small, names[0], names), gradients(&full, names[0], names));
            for (point, expected) in &expected {
                let off = difference(&got[point], expected);
                assert!(off < 1e-5, "{family:?} {point}: {off:e}");
            }
        }
    }
}

#[test]
fn a_replaced_state_is_where_the_graph_begins() {
    let prompts = prompts();
    let batch = batch(&[&prompts[0]], PaddingSide::Right);
    let weights = Weights::from_tensors(tensors(&config(TextFamily::Llama), 1));
    let small =
        LlavaNext::from_weights_in(config(TextFamily::Llama), &weights, WeightPrecision::Int8).unwrap();
    for model in [model(TextFamily::Llama), small] {
        let points = points(&["model.layers.0", "model.layers.1"]);
        let first = model.run_up_to(&batch, &points[..1]).unwrap().remove(0);
        let zeros = first.hidden().zeros_like();
        let hooks = Hooks::new().replace(points[1].clone(), |_, _| zeros.shallow_clone());
        let found = model.gradients(&batch, &first, hooks, &points, |hidden| score(&model, hidden)).unwrap();
        assert_eq!(found.states[&points[1]], zeros);
        assert_eq!(found.gradients[&points[0]], zeros, "nothing of it is left");
        assert!(found.gradients[&points[1]].abs().max().double_value(&[]) > 0.0);
    }
}

#[test]
fn points_out_of_reach_are_named() {
    let prompts = prompts();
    let batch = batch(&[&prompts[0]], PaddingSide::Right);
    let model = model(TextFamily::Llama);
    let vision = points(&["multi_modal_projector"]);
    let error = model.run_up_to(&batch, &vision).unwrap_err();
    assert!(matches!(&error, HookError::VisionPoint { point } if *point == vision[0]), "{error}");
    let later = model.run_up_to(&batch, &points(&["model.layers.1"])).unwrap().remove(0);
    let before = points(&["model.layers.0"]);
    let error = model.gradients(&batch, &later, Hooks::new(), &before, |x| score(&model, x)).unwrap_err();
    assert!(matches!(&error, HookError::Passed { point } if *point == before[0]), "{error}");
    // So is a hook that would never be called.
    let hook = || Hooks::new().replace(before[0].clone(), |_, tensor| tensor * 2.0);
    for error in [
        model.run_on(&batch, &later, &mut hook()).unwrap_err(),
        model
            .gradients(&batch, &later, hook(), &points(&["model.layers.1"]), |x| score(&model, x))
            .unwrap_err(),
    ] {
        assert!(matches!(&error, HookError::Passed { point } if *point == before[0]), "{error}");
    }
    let twice = later.repeated(2);
    assert_eq!(twice.hidden().size()[0], 2);
}
