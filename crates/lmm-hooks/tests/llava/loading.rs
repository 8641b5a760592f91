//! Model folders: both key layouts, and what is refused.

use std::collections::BTreeMap;

use lmm_hooks::{Batch, HookError, Hooks, LlavaNext, PaddingSide};
use lmm_prep::TextFamily;
use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{NnError, Weights};

use crate::fixture::{batch, config, families, inputs, model, prompts, tensors};

/// The module layout of newer transformers, and a few tensors nothing reads.
fn as_modules(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let mut out: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let name = if let Some(rest) = name.strip_prefix("language_model.model.") {
                format!("model.language_model.{rest}")
            } else if let Some(rest) = name.strip_prefix("language_model.lm_head") {
                format!("lm_head{rest}")
            } else {
                format!("model.{name}")
            };
            (name, tensor)
        })
        .collect();
    let buffer = || Tensor::zeros([3], (Kind::Float, Device::Cpu));
    out.insert("model.language_model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), buffer());
    out.insert("model.vision_tower.vision_model.embeddings.position_ids".to_owned(), buffer());
    out
}

#[test]
fn both_key_layouts_give_the_same_model() {
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    for family in families() {
        let config = config(family);
        let other = Weights::from_tensors(as_modules(tensors(&config, 1)));
        let other = LlavaNext::from_weights(config, &other).unwrap();
        let logits = |model: &LlavaNext| model.forward(&batch, &mut Hooks::new()).unwrap().logits.unwrap();
        assert!(logits(&other).equal(&logits(&model(family))));
    }
}

#[test]
fn a_tied_head_may_be_stored_or_not() {
    let config = config(TextFamily::Qwen2);
    let mut tensors = tensors(&config, 1);
    assert!(!tensors.contains_key("language_model.lm_head.weight"));
    let head = tensors["language_model.model.embed_tokens.weight"].copy();
    tensors.insert("language_model.lm_head.weight".to_owned(), head);
    LlavaNext::from_weights(config, &Weights::from_tensors(tensors)).unwrap();
}

#[test]
fn a_saved_folder_loads_and_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(TextFamily::Mistral);
    let tensors: Vec<_> = tensors(&config, 1).into_iter().collect();
    Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
    let weights = Weights::open(folder.path(), Device::Cpu, Kind::Float).unwrap();
    let loaded = LlavaNext::from_weights(config.clone(), &weights).unwrap();
    let prompts = prompts();
    let batch = batch(&prompts.each_ref(), PaddingSide::Right);
    let logits = |model: &LlavaNext| model.forward(&batch, &mut Hooks::new()).unwrap().logits.unwrap();
    assert!(logits(&loaded).equal(&logits(&model(TextFamily::Mistral))));

    let half = Weights::open(folder.path(), Device::Cpu, Kind::BFloat16).unwrap();
    assert_eq!(LlavaNext::from_weights(config, &half).unwrap().kind(), Kind::BFloat16);
}

#[test]
fn every_tensor_at_fault_is_named() {
    let config = config(TextFamily::Llama);
    let mut tensors = tensors(&config, 1);
    tensors.remove("image_newline");
    tensors.remove("language_model.model.layers.2.mlp.up_proj.weight");
    let narrow = tensors["multi_modal_projector.linear_1.weight"].narrow(0, 0, 3);
    tensors.insert("multi_modal_projector.linear_1.weight".to_owned(), narrow);
    tensors.insert("language_model.model.layers.3.mlp.up_proj.weight".to_owned(), Tensor::from(1.0));
    let error = LlavaNext::from_weights(config, &Weights::from_tensors(tensors)).unwrap_err();
    let HookError::Weights { source: NnError::Weights { missing, mismatched, unused, .. } } = error else {
        panic!("{error}")
    };
    assert_eq!(missing, ["image_newline", "language_model.model.layers.2.mlp.up_proj.weight"]);
    assert_eq!(mismatched.len(), 1);
    assert_eq!(mismatched[0].name, "multi_modal_projector.linear_1.weight");
    assert_eq!(
        (mismatched[0].expected.as_slice(), mismatched[0].got.as_str()),
        ([16, 12].as_slice(), "[3, 12]")
    );
    assert_eq!(unused, ["language_model.model.layers.3.mlp.up_proj.weight"]);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let model = model(TextFamily::Llama);
    let refuse = |inputs: &lmm_prep::Inputs| -> HookError {
        match Batch::new(&[inputs], 0, Device::Cpu, Kind::Float, PaddingSide::Right) {
            Err(error) => error,
            Ok(batch) => model.forward(&batch, &mut Hooks::new()).unwrap_err(),
        }
    };
    let good = inputs(2, &[(10, 30)], 2, 1);

    let mut bad = good.clone();
    bad.input_ids[0] = 32;
    assert!(matches!(refuse(&bad), HookError::TokenBeyondVocabulary { token: 32, vocab_size: 32 }));

    let mut bad = good.clone();
    bad.images.clear();
    assert!(matches!(refuse(&bad), HookError::Inputs { .. }));

    let mut bad = good.clone();
    bad.layout.images[0].start = 30;
    assert!(matches!(refuse(&bad), HookError::Inputs { .. }));

    let mut bad = good.clone();
    bad.input_ids[3] = 5;
    assert!(matches!(refuse(&bad), HookError::ConfigField { field: "image_token_index", .. }));

    let mut bad = good.clone();
    bad.images[0].pixels = ndarray::Array4::zeros((1, 3, 8, 8));
    assert!(matches!(refuse(&bad), HookError::Inputs { .. }));

    let mut bad = good;
    bad.input_ids.clear();
    assert!(matches!(refuse(&bad), HookError::EmptySample { sample: 0 }));
    assert!(Batch::new(&[], 0, Device::Cpu, Kind::Float, PaddingSide::Right).is_err());
}
