//! Effects against what the model's logits say token by token.

use lmm_hooks::{GenerationOptions, Hooks};
use steering::{Effects, Mode, Plan, divergences};
use tch::Kind;

use crate::fixture::{batch, inputs, model, plan, steerer};

#[test]
fn effects_are_those_of_the_logits() {
    let model = model();
    let steerer = steerer(&model);
    let prompt = inputs(2, &[(10, 30)], 3, 1);
    let batch = batch(&[&prompt]);
    let options = GenerationOptions { logprobs: Some(0), ..GenerationOptions::greedy(7, Vec::new()) };
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
    let wanted = (-surprise.iter().sum::<f64>() / 7.0).exp();
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
    assert!(found[1].kl_mean.unwrap() > 0.0);
}
