//! Gradients reach every tensor a pass uses, in f32 and in mixed precision.

use std::collections::BTreeMap;

use lmm_hooks::{Hooks, LlavaNext, PaddingSide};
use torch_nn::Weights;
use torch_nn::tch::{Device, Kind, Tensor};

use crate::fixture::{batch, config, families, prompts, tensors};

fn loss(model: &LlavaNext) -> Tensor {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    let hidden = model.last_hidden(&batch, &mut Hooks::new()).unwrap().unwrap();
    let chosen = hidden.reshape([-1, hidden.size()[2]]);
    let targets = Tensor::arange(chosen.size()[0], (Kind::Int64, Device::Cpu)).remainder(29);
    model.lm_head(&chosen).to_kind(Kind::Double).cross_entropy_for_logits(&targets)
}

fn used(name: &str) -> bool {
    // vision_feature_layer is -2 of 3 layers: the last layer and the norm after it are not part of the model.
    !name.contains("vision_model.encoder.layers.2.") && !name.contains("post_layernorm")
}

#[test]
fn every_parameter_gets_its_gradient() {
    for family in families() {
        let config = config(family);
        let parameters: BTreeMap<String, Tensor> = tensors(&config, 1)
            .into_iter()
            .map(|(name, tensor)| (name, tensor.set_requires_grad(true)))
            .collect();
        let shared = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let model = LlavaNext::from_weights(config, &Weights::from_tensors(shared)).unwrap();
        loss(&model).backward();
        for (name, tensor) in &parameters {
            let gradient = tensor.grad();
            let reached = gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0;
            // A bias on keys shifts all scores of a query alike before rotation; after it the gradient is small, not zero.
            let expected =
                used(name) && !name.ends_with("vision_model.encoder.layers.0.self_attn.k_proj.bias");
            let expected = expected && !name.ends_with("vision_model.encoder.layers.1.self_attn.k_proj.bias");
            assert!(reached || !expected, "{family:?}: no gradient at {name}");
            assert!(!reached || used(name), "{family:?}: {name} is used");
        }
    }
}

#[test]
fn a_gradient_is_the_slope() {
    let config = config(families()[0]);
    let name = "image_newline";
    let at = |shift: f64, grad: bool| {
        let mut tensors: BTreeMap<String, Tensor> = tensors(&config, 1)
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_kind(Kind::Double)))
            .collect();
        let moved = tensors.remove(name).unwrap() + shift;
        let moved = moved.set_requires_grad(grad);
        tensors.insert(name.to_owned(), moved.shallow_clone());
        let model = LlavaNext::from_weights(config.clone(), &Weights::from_tensors(tensors)).unwrap();
        (loss(&model), moved)
    };
    let (here, newline) = at(0.0, true);
    here.backward();
    let slope = newline.grad().sum(Kind::Double).double_value(&[]);
    let step = 1e-2;
    let numeric = (at(step, false).0 - at(-step, false).0).double_value(&[]) / (2.0 * step);
    assert!((slope - numeric).abs() < 5e-3 * slope.abs(), "{slope} against {numeric}");
}

#[test]
fn mixed_precision_stays_near_full_precision() {
    let config = config(families()[0]);
    let full = Weights::from_tensors(tensors(&config, 1));
    let full = loss(&LlavaNext::from_weights(config.clone(), &full).unwrap()).double_value(&[]);
    for all in [true, false] {
        let low = |(name, tensor): (String, Tensor)| {
            let matrix = tensor.dim() == 2 && !name.contains("embed");
            let kind = if all || matrix { Kind::BFloat16 } else { Kind::Float };
            (name, tensor.to_kind(kind))
        };
        let weights = Weights::from_tensors(tensors(&config, 1).into_iter().map(low).collect());
        let got = loss(&LlavaNext::from_weights(config.clone(), &weights).unwrap()).double_value(&[]);
        assert!((got - full).abs() < 0.03, "all in bf16: {all}: {got} against {full}");
    }
}
