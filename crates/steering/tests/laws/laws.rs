//! Changes by nothing change nothing; a row's plan is its own.

use std::cell::RefCell;
use std::collections::BTreeMap;

use lmm_hooks::{Batch, GenerationOptions, Hooks, LlavaNext, WeightPrecision};
use sae_core::Activation;
use steering::{ErrorTerm, Mode, Plan, Stage, Steerer, SteeringError, When};
use tch::{Kind, Tensor};

use crate::fixture::{
    batch, batch_in, hook, model, model_in, numbers, plan, prompts, random_sae, relative_error, steerer,
};

fn logits(model: &LlavaNext, batch: &Batch, mut hooks: Hooks<'_>) -> Tensor {
    tch::no_grad(|| model.forward(batch, &mut hooks)).unwrap().logits.unwrap()
}

fn steered(model: &LlavaNext, batch: &Batch, steerer: &Steerer, plan: &Plan) -> Tensor {
    let steering = steerer.steering(&vec![plan.clone(); batch.len()]).unwrap();
    logits(model, batch, steering.hooks())
}

/// The hidden states `[tokens, width]` of a prompt.
fn states(model: &LlavaNext, batch: &Batch) -> Tensor {
    model.hidden_states(batch, &[hook()]).unwrap()[&hook()].get(0)
}

#[test]
fn nothing_changed_with_the_error_kept_is_the_model_itself() {
    let model = model();
    let steerer = steerer(&model);
    let prompts = prompts();
    let batch = batch(&prompts.iter().collect::<Vec<_>>());
    let plain = logits(&model, &batch, Hooks::new());
    assert!(steered(&model, &batch, &steerer, &Plan::default()).equal(&plain));
    for stage in [Stage::AfterTopK, Stage::BeforeTopK] {
        for (mode, value) in [(Mode::Add, 0.0), (Mode::Scale, 1.0), (Mode::Cap, f32::MAX)] {
            let plan = Plan { stage, ..plan(mode, 3, value) };
            assert!(steered(&model, &batch, &steerer, &plan).equal(&plain), "{mode} {stage:?}");
        }
    }
    let moved = steered(&model, &batch, &steerer, &plan(Mode::Clamp, 3, 5.0));
    assert!(relative_error(&moved, &plain) > 1e-3, "a clamp that moves nothing");
}

#[test]
fn its_own_value_changes_nothing_and_what_is_off_cannot_be_ablated() {
    let model = model();
    let steerer = steerer(&model);
    let prompts = prompts();
    let only = batch(&[&prompts[1]]);
    let plain = logits(&model, &only, Hooks::new());
    let codes = steerer.sae(&hook()).unwrap().encode(&states(&model, &only));
    let (n, k) = codes.indices.size2().unwrap();
    for token in [0, n - 1] {
        let [latent, value] = [0, k - 1].map(|place| {
            (codes.indices.int64_value(&[token, place]) as u32, codes.values.double_value(&[token, place]))
        });
        for (latent, value) in [latent, value] {
            // On that token alone the feature has this value; on the others the plan has no say.
            let hidden = RefCell::new(Vec::new());
            let plan = plan(Mode::Clamp, latent, value as f32);
            let steering = steerer.steering(&[plan]).unwrap();
            let mut hooks =
                steering.hooks().read(hook(), |_, tensor| hidden.borrow_mut().push(tensor.copy()));
            tch::no_grad(|| model.forward(&only, &mut hooks)).unwrap();
            drop(hooks);
            let now = hidden.into_inner().remove(0).get(0).get(token);
            let was = states(&model, &only).get(token);
            assert!(relative_error(&now, &was) < 1e-6, "latent {latent} of token {token}");
        }
    }
    let on: Vec<i64> = Vec::try_from(codes.indices.reshape([-1])).unwrap();
    let off = (0..48).find(|latent| !on.contains(latent)).unwrap();
    let ablated = steered(&model, &only, &steerer, &plan(Mode::Ablate, off as u32, 0.0));
    assert!(ablated.equal(&plain), "latent {off} is off");
    let reconstructed = |mode| {
        steered(&model, &only, &steerer, &Plan { error: ErrorTerm::Drop, ..plan(mode, off as u32, 0.0) })
    };
    assert!(reconstructed(Mode::Ablate).equal(&reconstructed(Mode::Add)));
    let ablated = steered(&model, &only, &steerer, &plan(Mode::Ablate, on[0] as u32, 0.0));
    assert!(!ablated.equal(&plain), "latent {} is on", on[0]);
}

#[test]
fn rows_with_plans_of_their_own_are_as_if_alone() {
    let model = model();
    let steerer = steerer(&model);
    let prompts = prompts();
    let options = GenerationOptions::greedy(8, Vec::new());
    let two = plan(Mode::Clamp, 4, 3.0).with(
        hook(),
        steering::FeatureId(9),
        steering::Change { mode: Mode::Orthogonal, value: -2.0 },
    );
    let plans = [
        plan(Mode::Clamp, 3, 5.0),
        Plan::default(),
        Plan { time: When::Prefill, ..plan(Mode::Add, 7, 4.0) },
        two,
        plan(Mode::Scale, 11, -3.0),
        plan(Mode::Ablate, 20, 0.0),
        plan(Mode::Cap, 30, 0.1),
    ];
    for (stage, error) in [
        (Stage::AfterTopK, ErrorTerm::Keep),
        (Stage::AfterTopK, ErrorTerm::Drop),
        (Stage::BeforeTopK, ErrorTerm::Keep),
        (Stage::BeforeTopK, ErrorTerm::Drop),
    ] {
        let plans: Vec<Plan> = plans.iter().map(|plan| Plan { stage, error, ..plan.clone() }).collect();
        let rows: Vec<_> = (0..plans.len()).map(|row| &prompts[row % prompts.len()]).collect();
        let steering = steerer.steering(&plans).unwrap();
        let together = model.generate(&batch(&rows), &options, &mut steering.hooks()).unwrap();
        for (row, plan) in plans.iter().enumerate() {
            let single = steerer.steering(std::slice::from_ref(plan)).unwrap();
            let alone = model.generate(&batch(&[rows[row]]), &options, &mut single.hooks()).unwrap();
            assert_eq!(together[row], alone[0], "{stage:?} {error:?}, row {row}");
        }
    }
    let mixed = [plan(Mode::Add, 1, 1.0), Plan { error: ErrorTerm::Drop, ..plan(Mode::Add, 1, 1.0) }];
    assert!(matches!(steerer.steering(&mixed), Err(SteeringError::Mixed)));
}

/// Autoencoders at two layers.
fn at_two_layers(model: &LlavaNext) -> ([steering::HookPoint; 2], Steerer) {
    let hooks = [0, 2].map(steering::HookPoint::layer);
    let saes: BTreeMap<_, _> = hooks
        .iter()
        .zip([7, 8])
        .map(|(hook, seed)| (hook.clone(), random_sae(32, 4, Activation::BatchTopK { threshold: 0.4 }, seed)))
        .collect();
    let steerer = Steerer::new(&saes, model, Kind::Float).unwrap();
    (hooks, steerer)
}

#[test]
fn the_error_is_lost_at_a_rows_own_hook_points_alone() {
    let model = model();
    let (hooks, steerer) = at_two_layers(&model);
    let prompts = prompts();
    for stage in [Stage::AfterTopK, Stage::BeforeTopK] {
        let none = Plan { stage, error: ErrorTerm::Drop, ..Plan::default() };
        let at = |hook: &steering::HookPoint| {
            let change = steering::Change { mode: Mode::Clamp, value: 3.0 };
            none.clone().with(hook.clone(), steering::FeatureId(2), change)
        };
        let plans = [at(&hooks[0]), at(&hooks[1]), none.clone()];
        let rows = batch(&[&prompts[0]; 3]);
        let together = logits(&model, &rows, steerer.steering(&plans).unwrap().hooks());
        let only = batch(&[&prompts[0]]);
        for (row, plan) in plans.iter().enumerate() {
            let alone = steered(&model, &only, &steerer, plan).get(0);
            let off = relative_error(&together.get(row as i64), &alone);
            assert!(off < 1e-5, "{stage:?}, row {row}: {off:e}");
        }
        assert!(relative_error(&together.get(0), &together.get(2)) > 1e-3, "the error matters");
    }
}

#[test]
fn features_at_several_hook_points_change_together() {
    let model = model();
    let (hooks, steerer) = at_two_layers(&model);
    let prompts = prompts();
    let only = batch(&[&prompts[0]]);
    let at = |hook: &steering::HookPoint| {
        Plan::default().with(
            hook.clone(),
            steering::FeatureId(2),
            steering::Change { mode: Mode::Clamp, value: 3.0 },
        )
    };
    let both = at(&hooks[0]).with(
        hooks[1].clone(),
        steering::FeatureId(2),
        steering::Change { mode: Mode::Clamp, value: 3.0 },
    );
    let [one, other, both] =
        [at(&hooks[0]), at(&hooks[1]), both].map(|plan| steered(&model, &only, &steerer, &plan));
    assert!(relative_error(&both, &one) > 1e-4 && relative_error(&both, &other) > 1e-4);
    assert!(numbers(&both).iter().all(|number| number.is_finite()));
}

/// Models in 16 bits, and with matrices in 8, against the formulas with the same autoencoder's own codes.
#[test]
fn fewer_bits_are_steered_by_the_same_laws() {
    let prompts = prompts();
    for (kind, precision, tolerance) in [
        (Kind::BFloat16, WeightPrecision::Full, 0.02),
        (Kind::Half, WeightPrecision::Full, 0.003),
        (Kind::Float, WeightPrecision::Int8, 1e-5),
        (Kind::BFloat16, WeightPrecision::Int8, 0.02),
    ] {
        let model = model_in(kind, precision);
        assert_eq!(model.quantisation().is_some(), precision == WeightPrecision::Int8);
        let sae = random_sae(48, 6, Activation::TopK, 5);
        let steerer = Steerer::new(&BTreeMap::from([(hook(), sae)]), &model, kind).unwrap();
        let only = batch_in(&[&prompts[0]], kind);
        let x = states(&model, &only);
        let sae = steerer.sae(&hook()).unwrap();
        let codes = sae.encode(&x);
        // All activations, largest first: the sixth is the last that is kept.
        let all = sae.encode_centred(&sae.centre(&x), 48);
        let seen = |plan: &Plan| {
            let found = RefCell::new(Vec::new());
            let steering = steerer.steering(std::slice::from_ref(plan)).unwrap();
            let mut hooks = steering.hooks().read(hook(), |_, tensor| found.borrow_mut().push(tensor.copy()));
            tch::no_grad(|| model.forward(&only, &mut hooks)).unwrap();
            drop(hooks);
            found.into_inner().remove(0).get(0)
        };
        for (mode, value) in [(Mode::Add, 0.0), (Mode::Scale, 1.0), (Mode::Cap, 60_000.0)] {
            assert!(seen(&plan(mode, 3, value)).equal(&x), "{kind:?} {precision:?} {mode}");
        }
        let mut was_on = 0;
        for feature in 0..48 {
            let own = codes.indices.eq(feature).to_kind(kind);
            let z = (own * &codes.values).sum_dim_intlist(1, true, Kind::Float);
            was_on += z.count_nonzero(0).int64_value(&[0]);
            let own = (all.indices.eq(feature).to_kind(kind) * &all.values).sum_dim_intlist(1, true, kind);
            let is_near = |rank: i64| {
                let other = all.values.narrow(1, rank, 1);
                (&own - &other).abs().le_tensor(&(other * tolerance))
            };
            // Of two that are equal but for rounding, which is kept is nobody's to say.
            let sure = is_near(5).logical_and(&is_near(6)).logical_not();
            let d = sae.decoder_weight().get(feature).to_kind(Kind::Float).unsqueeze(0);
            let wide = x.to_kind(Kind::Float);
            for (mode, value, moved) in [
                (Mode::Clamp, 3.0, z.ones_like() * 3.0 - &z),
                (Mode::Ablate, 0.0, -z.copy()),
                (Mode::Scale, -2.0, &z * -3.0),
            ] {
                let wanted = &wide + moved * &d;
                let got = seen(&plan(mode, feature as u32, value)).to_kind(Kind::Float);
                let off = relative_error(&got.where_self(&sure, &wanted), &wanted);
                assert!(off < tolerance, "{kind:?} {precision:?} {mode} {feature}: {off:e}");
            }
            let dropped = Plan { error: ErrorTerm::Drop, ..plan(Mode::Clamp, feature as u32, 3.0) };
            let wanted = sae.reconstruct(&x).1.to_kind(Kind::Float) + (z.ones_like() * 3.0 - &z) * &d;
            let off = relative_error(&seen(&dropped).to_kind(Kind::Float), &wanted);
            assert!(off < tolerance, "{kind:?} {precision:?} {feature}, the error dropped: {off:e}");
        }
        assert!(was_on > 20, "{was_on}");
    }
}
