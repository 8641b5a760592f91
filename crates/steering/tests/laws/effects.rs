//! Effects against what the model's logits say token by token.

use std::collections::BTreeMap;

use lmm_hooks::{GenerationOptions, Hooks};
use sae_core::Activation;
use steering::{Change, Effects, FeatureId, HookPoint, Mode, Plan, Steerer, divergences};
use tch::Kind;

use crate::fixture::{batch, inputs, model, plan, random_sae, steerer};

/// More tokens than are looked at together.
const ANSWER: usize = 40;

#[test]
fn effects_are_those_of_the_logits() {
    let model = model();
    let steerer = steerer(&model);
    let prompt = inputs(2, &[(10, 30)], 3, 1);
    let batch = batch(&[&prompt]);
    let options = GenerationOptions { logprobs: Some(0), ..GenerationOptions::greedy(ANSWER, Vec::new()) };
    let mut own = Hooks::new();
    let mut generation = model.start_generation(&batch, std::slice::from_ref(&options), &mut own).unwrap();
    let (mut original, mut surprise) = (Vec::new(), Vec::new());
    while let Some(tokens) = generation.step().unwrap() {
        let token = tokens[0].clone().unwrap();
        original.push(token.id);
        surprise.push(f64::from(token.logprob.unwrap()));
    }
    drop(generation);
    let effects = Effects::new(&model, &prompt, 0, &original).unwrap();
    let wanted = (-surprise.iter().sum::<f64>() / ANSWER as f64).exp();
    assert!((effects.original_perplexity().unwrap() / wanted - 1.0).abs() < 1e-4);

    let plans = [Plan::default(), plan(Mode::Clamp, 3, 6.0)];
    let steering = steerer.steering(&plans).unwrap();
    let texts = vec![original.clone(), vec![5, 6, 7, 8, 5, 6, 7, 8]];
    let found = effects.of(&steering, &texts).unwrap();
    assert!(found[0].kl_first.unwrap() < 1e-6 && found[0].kl_mean.unwrap() < 1e-6);
    assert!((found[0].perplexity.unwrap() / wanted - 1.0).abs() < 1e-4);
    assert_eq!(found[1].repetition, Some(1.0 - 4.0 / 5.0));
    // The first token's divergence, from two plain passes.
    let last = |hooks: &mut Hooks<'_>| {
        let logits = tch::no_grad(|| model.forward(&batch, hooks)).unwrap().logits.unwrap();
        logits.get(0).narrow(0, -1, 1).log_softmax(-1, Kind::Float)
    };
    let single = steerer.steering(&plans[1..]).unwrap();
    let first: Vec<f64> = divergences(&last(&mut Hooks::new()), &last(&mut single.hooks()));
    assert!((found[1].kl_first.unwrap() / first[0] - 1.0).abs() < 1e-3, "{first:?} {found:?}");
    // All of them, from plain passes over prompt and answer.
    let mut whole = prompt.clone();
    whole.input_ids.extend(&original[..ANSWER - 1]);
    whole.layout.n_tokens = whole.input_ids.len();
    let whole = crate::fixture::batch(&[&whole]);
    let length = prompt.input_ids.len();
    let all = |hooks: &mut Hooks<'_>| {
        let logits = tch::no_grad(|| model.forward(&whole, hooks)).unwrap().logits.unwrap();
        logits.get(0).narrow(0, length as i64 - 1, ANSWER as i64).log_softmax(-1, Kind::Float)
    };
    let all = divergences(&all(&mut Hooks::new()), &all(&mut single.hooks_with_answers(&[length])));
    let mean = all.iter().sum::<f64>() / ANSWER as f64;
    assert!((found[1].kl_mean.unwrap() / mean - 1.0).abs() < 1e-3, "{mean} {found:?}");

    // At another hook point, and back: what is kept of the pass is of the one asked about.
    let layers = [0, 1].map(HookPoint::layer);
    let saes: BTreeMap<_, _> =
        layers.iter().map(|hook| (hook.clone(), random_sae(48, 6, Activation::TopK, 5))).collect();
    let steerer = Steerer::new(&saes, &model, Kind::Float).unwrap();
    let change = Change { mode: Mode::Clamp, value: 6.0 };
    let at = |hook: &HookPoint| Plan::default().with(hook.clone(), FeatureId(3), change);
    let of = |effects: &Effects<'_>, plans: &[Plan]| {
        let texts = vec![original.clone(); plans.len()];
        effects.of(&steerer.steering(plans).unwrap(), &texts).unwrap()
    };
    let [first, second] = layers.each_ref().map(at);
    for plans in [vec![second.clone()], vec![first.clone()], vec![second, first]] {
        let fresh = Effects::new(&model, &prompt, 0, &original).unwrap();
        for (kept, fresh) in of(&effects, &plans).iter().zip(of(&fresh, &plans)) {
            assert!((kept.kl_mean.unwrap() / fresh.kl_mean.unwrap() - 1.0).abs() < 1e-4, "{plans:?}");
        }
    }
}
