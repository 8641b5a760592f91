//! The tower against itself: hidden states by number, early stop, observers, skipped weights.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made should fail its test")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use lmm_prep::ClipVisionConfig;
use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{NnError, Weights};
use vision_models::{ClipVision, parameter_shapes, state_index};

fn config() -> ClipVisionConfig {
    let mut config = ClipVisionConfig::default();
    (config.hidden_size, config.intermediate_size, config.num_attention_heads) = (8, 16, 2);
    (config.num_hidden_layers, config.image_size, config.patch_size) = (3, 8, 4);
    config
}

fn tensors() -> BTreeMap<String, Tensor> {
    let numbers = |shape: &[i64]| {
        let count: i64 = shape.iter().product();
        ((Tensor::arange(count, (Kind::Float, Device::Cpu)) * 1.7).sin() * 0.4).view(shape)
    };
    parameter_shapes(&config()).into_iter().map(|(name, shape)| (name, numbers(&shape))).collect()
}

fn tower(state: usize) -> ClipVision {
    let weights = Weights::from_tensors(tensors());
    let tower = ClipVision::load_up_to(&weights.root(), &config(), state);
    weights.finish().unwrap();
    tower
}

fn pixels() -> Tensor {
    (Tensor::arange(2 * 3 * 8 * 8, (Kind::Float, Device::Cpu)) * 0.37).cos().view([2, 3, 8, 8])
}

#[test]
fn hidden_states_count_as_python_lists_do() {
    assert_eq!([0, 3, -1, -2, -4].map(|layer| state_index(3, layer)), [0, 3, 3, 2, 0].map(Some));
    assert_eq!([4, -5].map(|layer| state_index(3, layer)), [None, None]);

    let whole = ClipVision::load(&Weights::from_tensors(tensors()).root(), &config());
    assert_eq!(whole.depth(), 3);
    for (layer, same) in [(0, -4), (1, -3), (2, -2), (3, -1)] {
        let state = whole.hidden_states(&pixels(), layer);
        assert_eq!(state.size(), [2, 1 + 4, 8]);
        assert!(state.equal(&whole.hidden_states(&pixels(), same)));
        let short = tower(usize::try_from(layer).unwrap());
        assert!(state.equal(&short.hidden_states(&pixels(), layer)), "hidden state {layer} of a short tower");
    }
}

#[test]
fn observers_see_replace_and_break_off() {
    let tower = tower(2);
    let mut seen = Vec::new();
    let changed: ControlFlow<(), Tensor> = tower.forward(&pixels(), 2, |layer, hidden| {
        seen.push(layer);
        ControlFlow::Continue(if layer == 1 { hidden + 1.0 } else { hidden })
    });
    let ControlFlow::Continue(changed) = changed else { panic!("nobody broke off") };
    assert!(changed.equal(&(tower.hidden_states(&pixels(), 2) + 1.0)));
    assert_eq!(seen, [0, 1]);

    let stopped = tower.forward(&pixels(), 2, |layer, _| ControlFlow::<usize, Tensor>::Break(layer));
    assert!(matches!(stopped, ControlFlow::Break(0)));
}

#[test]
fn tensors_are_asked_for_by_name_and_later_layers_may_be_absent() {
    let mut fewer = tensors();
    fewer.retain(|name, _| !name.starts_with("encoder.layers.2.") && !name.starts_with("post_layernorm"));
    let weights = Weights::from_tensors(fewer);
    ClipVision::load_up_to(&weights.root(), &config(), 2);
    weights.finish().unwrap();
    ClipVision::load(&weights.root(), &config());
    let NnError::Weights { missing, .. } = weights.finish().unwrap_err() else { panic!() };
    assert_eq!(missing.len(), 16);
    assert!(missing.iter().all(|name| name.starts_with("encoder.layers.2.")), "{missing:?}");
}

#[test]
#[should_panic(expected = "pixels [2, 3, 4, 8] given to a tower for [n, 3, 8, 8]")]
fn tiles_of_another_size_are_a_mistake() {
    let _ = tower(1).hidden_states(&pixels().narrow(2, 0, 4), 1);
}
