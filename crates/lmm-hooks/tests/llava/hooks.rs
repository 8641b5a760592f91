//! Hooks read, replace and stop, and nothing else changes.

use std::cell::RefCell;

use lmm_hooks::{HookError, HookPoint, Hooks, LlavaNext, PaddingSide};
use torch_nn::Weights;
use torch_nn::tch::{Kind, Tensor};

use crate::fixture::{batch, config, families, inputs, model, prompts, tensors};

fn point(name: &str) -> HookPoint {
    name.parse().unwrap()
}

#[test]
fn every_point_is_reached_once_and_in_order() {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    for family in families() {
        let model = model(family);
        let seen = RefCell::new(Vec::new());
        let mut hooks = Hooks::new();
        for point in model.hook_points().into_iter().rev() {
            hooks = hooks.read(point, |context, tensor| {
                assert_eq!(tensor.size()[2], model.width(context.point).unwrap());
                seen.borrow_mut().push(context.point.clone());
            });
        }
        assert!(model.forward(&batch, &mut hooks).unwrap().logits.is_some());
        drop(hooks);
        assert_eq!(seen.into_inner(), model.hook_points());
    }
}

#[test]
fn replacing_by_the_same_changes_nothing_and_by_another_does() {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Left);
    let model = model(families()[0]);
    let logits = |hooks: &mut Hooks<'_>| model.forward(&batch, hooks).unwrap().logits.unwrap();
    let plain = logits(&mut Hooks::new());
    for point in model.hook_points() {
        let same = logits(&mut Hooks::new().replace(point.clone(), |_, tensor| tensor.copy()));
        assert!(same.equal(&plain), "identity at {point} changed the logits");
        let other = logits(&mut Hooks::new().replace(point.clone(), |_, tensor| tensor * 2.0 + 0.1));
        assert!(!other.equal(&plain), "a change at {point} did not reach the logits");
    }
}

#[test]
fn hooks_of_one_point_run_in_the_order_added() {
    let prompt = inputs(4, &[], 0, 5);
    let batch = batch(&[&prompt], PaddingSide::Right);
    let here = point("model.layers.1");
    let found = RefCell::new(Vec::new());
    let keep = |tensor: &Tensor| found.borrow_mut().push(tensor.shallow_clone());
    let mut hooks = Hooks::new()
        .read(here.clone(), |_, tensor| keep(tensor))
        .replace(here.clone(), |_, tensor| tensor + 1.0)
        .read(here, |_, tensor| keep(tensor));
    model(families()[1]).forward(&batch, &mut hooks).unwrap();
    drop(hooks);
    let found = found.into_inner();
    assert!(found[1].equal(&(&found[0] + 1.0)));
}

#[test]
fn a_stopped_pass_reads_the_same_and_gives_no_logits() {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    let model = model(families()[2]);
    let all = model.hook_points();
    let whole = model.hidden_states(&batch, &all).unwrap();
    for last in &all {
        let stopped = model.hidden_states(&batch, std::slice::from_ref(last)).unwrap();
        assert!(stopped[last].equal(&whole[last]), "{last} differs in a stopped pass");
        let mut hooks = Hooks::new().read(last.clone(), |_, _| ()).stop_after_last();
        assert!(model.forward(&batch, &mut hooks).unwrap().logits.is_none(), "stopped at {last}");
    }
}

/// Matrices of booleans cannot be multiplied by: a pass that comes to one panics.
#[test]
fn a_stopped_pass_computes_nothing_more() {
    let prompt = inputs(2, &[(10, 30)], 3, 1);
    let batch = batch(&[&prompt], PaddingSide::Right);
    let config = config(families()[0]);
    for (last, later) in [
        (
            "vision_tower.vision_model.encoder.layers.0",
            &["encoder.layers.1", "projector", "language_model"][..],
        ),
        ("multi_modal_projector", &["language_model"]),
        ("model.embed_tokens", &["language_model.model.layers", "lm_head"]),
        ("model.layers.0.input_layernorm", &["language_model.model.layers.0.self_attn", "lm_head"]),
        ("model.layers.0.self_attn", &["language_model.model.layers.0.mlp", "lm_head"]),
        ("model.layers.1", &["language_model.model.layers.2", "lm_head"]),
        ("model.norm", &["lm_head"]),
    ] {
        let poison = |(name, tensor): (String, Tensor)| {
            let matrix = tensor.dim() == 2 && later.iter().any(|part| name.contains(part));
            (name, if matrix { tensor.to_kind(Kind::Bool) } else { tensor })
        };
        let weights = Weights::from_tensors(tensors(&config, 1).into_iter().map(poison).collect());
        let model = LlavaNext::from_weights(config.clone(), &weights).unwrap();
        model.hidden_states(&batch, &[point(last)]).unwrap();
        let whole = || model.forward(&batch, &mut Hooks::new()).unwrap();
        let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(whole));
        assert!(whole.is_err(), "a whole pass came through what lies after {last}");
    }
}

#[test]
fn unknown_points_are_answered_with_the_nearest() {
    let model = model(families()[0]);
    let prompt = inputs(4, &[], 0, 5);
    let batch = batch(&[&prompt], PaddingSide::Right);
    for (wrong, near) in [
        ("model.layers.3", "model.layers.0"),
        ("model.layer.1", "model.layers.1"),
        ("language_model.model.layers.2.mlp", "model.layers.2.mlp"),
        ("vision_tower.vision_model.encoder.layers.2", "vision_tower.vision_model.encoder.layers.0"),
    ] {
        let error = model.hidden_states(&batch, &[point(wrong)]).unwrap_err();
        let text = error.to_string();
        let HookError::UnknownPoint { near: found, .. } = error else { panic!("{error}") };
        assert!(found.contains(&point(near)), "{wrong}: {found:?}");
        assert!(text.contains(wrong) && text.contains(near), "{text}");
        assert!(model.check(&point(wrong)).is_err());
    }
}

#[test]
fn vision_points_need_an_image_and_shapes_must_stay() {
    let model = model(families()[0]);
    let prompt = inputs(4, &[], 0, 5);
    let batch = batch(&[&prompt], PaddingSide::Right);
    let error = model.hidden_states(&batch, &[point("multi_modal_projector")]).unwrap_err();
    assert!(matches!(error, HookError::NotReached { .. }), "{error}");

    let mut hooks = Hooks::new().replace(point("model.layers.0.mlp"), |_, tensor| tensor.narrow(1, 0, 1));
    let error = model.forward(&batch, &mut hooks).unwrap_err();
    assert!(matches!(error, HookError::ReplacedShape { .. }), "{error}");
}
