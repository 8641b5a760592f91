//! A model whose layers are kept in 8 bits.

use std::path::Path;

use lmm_hooks::{Batch, HookError, HookPoint, Hooks, LlavaNext, LoadOptions, PaddingSide, WeightPrecision};
use lmm_prep::{LlavaNextConfig, Processor, TextFamily};
use shapes_world::Scene;
use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{NnError, Weights};

use crate::fixture::{batch, config, families, model, prompts, tensors};

fn quantised(config: LlavaNextConfig) -> LlavaNext {
    let weights = Weights::from_tensors(tensors(&config, 1));
    LlavaNext::from_weights_in(config, &weights, WeightPrecision::Int8).unwrap()
}

/// ‖got - expected‖ / ‖expected‖.
fn distance(got: &Tensor, expected: &Tensor) -> f64 {
    (got - expected).norm().double_value(&[]) / expected.norm().double_value(&[])
}

#[test]
fn hidden_states_stay_close_to_those_of_the_full_model() {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    for family in families() {
        let (full, small) = (model(family), quantised(config(family)));
        let points = full.matching_points(&["model.*"]).unwrap();
        let expected = full.hidden_states(&batch, &points).unwrap();
        let got = small.hidden_states(&batch, &points).unwrap();
        for point in &points {
            let distance = distance(&got[point], &expected[point]);
            // 254 steps over each row: a relative error of 1 in some hundred per product, and three layers of them.
            assert!(distance < 0.03, "{family:?}: {point}: {distance}");
            let untouched =
                ["model.embed_tokens", "model.layers.0.input_layernorm"].contains(&point.as_str());
            assert_eq!(distance == 0.0, untouched, "{family:?}: {point}: {distance}");
        }
        assert_eq!(small.kind(), Kind::Float);
    }
}

#[test]
fn the_report_covers_the_matrices_of_the_layers_and_the_memory_is_as_predicted() {
    for family in families() {
        let config = config(family);
        let (full, small) = (model(family), quantised(config.clone()));
        assert!(full.quantisation().is_none());
        let report = small.quantisation().unwrap();
        let expected: Vec<_> = LlavaNext::parameter_shapes(&config)
            .into_iter()
            .filter(|(name, shape)| name.starts_with("language_model.model.layers.") && shape.len() == 2)
            .collect();
        let mut names: Vec<_> = report.matrices.iter().map(|matrix| matrix.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        let entries: i64 = expected.iter().map(|(_, shape)| shape[0] * shape[1]).sum();
        let scales: i64 = expected.iter().map(|(_, shape)| shape[0]).sum();
        assert_eq!(report.bytes_before(), 4 * entries as u64);
        assert_eq!(report.bytes_after(), (entries + 4 * scales) as u64);
        let worst = report.worst().unwrap().relative_error;
        assert!(0.0 < report.mean_error() && report.mean_error() <= worst && worst < 0.01, "{report:?}");

        for (model, precision) in [(&full, WeightPrecision::Full), (&small, WeightPrecision::Int8)] {
            let predicted = LlavaNext::parameter_bytes(&config, Kind::Float, precision).unwrap();
            assert_eq!(model.bytes(), predicted, "{family:?}, {precision:?}");
        }
        assert_eq!(full.bytes() - small.bytes(), report.bytes_before() - report.bytes_after());
    }
}

#[test]
fn memory_is_predicted_without_the_unused_end_of_the_tower() {
    let mut config = config(TextFamily::Llama);
    config.vision_feature_layer = -3;
    let shapes = LlavaNext::parameter_shapes(&config);
    let all: i64 = shapes.values().map(|shape| shape.iter().product::<i64>()).sum();
    let loaded =
        LlavaNext::from_weights(config.clone(), &Weights::from_tensors(tensors(&config, 1))).unwrap();
    let predicted = LlavaNext::parameter_bytes(&config, Kind::BFloat16, WeightPrecision::Full).unwrap();
    assert_eq!(loaded.bytes(), 2 * predicted);
    assert!(predicted < 2 * all as u64);
    config.vision_feature_layer = 9;
    let error = LlavaNext::parameter_bytes(&config, Kind::Float, WeightPrecision::Full).unwrap_err();
    assert!(matches!(error, HookError::ConfigField { field: "vision_feature_layer", .. }), "{error}");
}

#[test]
fn gradients_reach_hidden_states_below() {
    let (full, small) = (model(TextFamily::Mistral), quantised(config(TextFamily::Mistral)));
    let prompts = prompts();
    let batch = batch(&[&prompts[1]], PaddingSide::Right);
    let point: HookPoint = "model.layers.0".parse().unwrap();
    let gradient = |model: &LlavaNext| {
        let mut leaf = None;
        let mut hooks = Hooks::new().replace(point.clone(), |_, tensor| {
            let own = tensor.detach().set_requires_grad(true);
            leaf = Some(own.shallow_clone());
            own
        });
        let logits = model.forward(&batch, &mut hooks).unwrap().logits.unwrap();
        drop(hooks);
        logits.square().sum(Kind::Float).backward();
        leaf.unwrap().grad()
    };
    let distance = distance(&gradient(&small), &gradient(&full));
    assert!(0.0 < distance && distance < 0.1, "{distance}");
}

/// Saves a model as two bf16 shards with an index, in the layout of the Hub.
fn save_shards(folder: &Path, config: &LlavaNextConfig) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut index = Vec::new();
    for (number, (name, tensor)) in tensors(config, 1).into_iter().enumerate() {
        let shard = ["a.safetensors", "b.safetensors"][number % 2];
        index.push(format!("\"{name}\": \"{shard}\""));
        if number % 2 == 0 { &mut first } else { &mut second }.push((name, tensor.to_kind(Kind::BFloat16)));
    }
    Tensor::write_safetensors(&first, folder.join("a.safetensors")).unwrap();
    Tensor::write_safetensors(&second, folder.join("b.safetensors")).unwrap();
    let index = format!("{{\"weight_map\": {{{}}}}}", index.join(", "));
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn a_sharded_checkpoint_in_bf16_loads_in_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(TextFamily::Qwen2);
    save_shards(folder.path(), &config);
    let prompts = prompts();
    for kind in [Kind::Float, Kind::BFloat16] {
        let weights = Weights::open(folder.path(), Device::Cpu, kind).unwrap();
        let full = LlavaNext::from_weights(config.clone(), &weights).unwrap();
        let small = LlavaNext::from_weights_in(config.clone(), &weights, WeightPrecision::Int8).unwrap();
        assert_eq!(small.kind(), kind);
        assert_eq!(small.quantisation().unwrap().matrices.len(), 7 * 3);
        let predicted = LlavaNext::parameter_bytes(&config, kind, WeightPrecision::Int8).unwrap();
        assert_eq!(small.bytes(), predicted);
        let batch = Batch::new(&prompts.each_ref(), 0, Device::Cpu, kind, PaddingSide::Right).unwrap();
        let states = |model: &LlavaNext| {
            let point = HookPoint::layer(2);
            let mut states = model.hidden_states(&batch, std::slice::from_ref(&point)).unwrap();
            states.remove(&point).unwrap().to_kind(Kind::Float)
        };
        let distance = distance(&states(&small), &states(&full));
        assert!(0.0 < distance && distance < 0.03, "{kind:?}: {distance}");
    }
}

#[test]
fn matrices_with_numbers_that_are_not_finite_are_refused() {
    let config = config(TextFamily::Llama);
    let mut tensors = tensors(&config, 1);
    let name = "language_model.model.layers.1.mlp.up_proj.weight";
    let _ = tensors.get_mut(name).unwrap().get(3).fill_(f64::NAN);
    let weights = Weights::from_tensors(tensors);
    let error = LlavaNext::from_weights_in(config, &weights, WeightPrecision::Int8).unwrap_err();
    let HookError::Weights { source: NnError::Weights { mismatched, .. } } = error else { panic!("{error}") };
    assert_eq!(mismatched.len(), 1);
    assert_eq!(
        (mismatched[0].name.as_str(), mismatched[0].got.as_str()),
        (name, "numbers that are not finite")
    );
}

/// A trained model on pictures it knows.
#[test]
fn the_model_in_assets_keeps_its_hidden_states() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes-lmm-s");
    let processor = Processor::load(&folder).unwrap();
    let prepared: Vec<_> = (0..2)
        .map(|index| processor.prepare("<image>", &[Scene::generate(7, index).render()]).unwrap())
        .collect();
    let samples: Vec<_> = prepared.iter().collect();
    let batch = Batch::new(&samples, 0, Device::Cpu, Kind::Float, PaddingSide::Right).unwrap();
    let point = HookPoint::layer(2);
    let load =
        |precision| LlavaNext::load(&folder, &LoadOptions { precision, ..LoadOptions::default() }).unwrap();
    let (full, small) = (load(WeightPrecision::Full), load(WeightPrecision::Int8));
    let states = |model: &LlavaNext| {
        let mut states = model.hidden_states(&batch, std::slice::from_ref(&point)).unwrap();
        states.remove(&point).unwrap().masked_select(&batch.real().unsqueeze(-1))
    };
    let (got, expected) = (states(&small), states(&full));
    let distance = distance(&got, &expected);
    let report = small.quantisation().unwrap();
    println!(
        "layer 2: {distance:.5}; matrices: mean {:.5}, worst {:?}; bytes {} to {}",
        report.mean_error(),
        report.worst(),
        report.bytes_before(),
        report.bytes_after()
    );
    assert!(0.0 < distance && distance < 0.02, "{distance}");
}
