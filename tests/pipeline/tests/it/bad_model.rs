//! Models that cannot be used: file, tensor or field is named, and nothing is left behind.

use std::path::Path;

use pipeline_tests::Scratch;
use serde_json::{Value, json};

const TRAIN: &str = "broken images --layers 2 --eval-examples 0 --save-dir out";

#[track_caller]
fn config(change: impl FnOnce(&mut Value), words: &[&str]) {
    let scratch = Scratch::new();
    scratch.images("images", 1);
    scratch.model_with_config(change);
    scratch.refuses("sae-train", TRAIN, 1, words);
}

#[track_caller]
fn weights(change: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let scratch = Scratch::new();
    scratch.images("images", 1);
    scratch.model_with_weights(change);
    scratch.refuses("sae-train", TRAIN, 1, words);
}

#[test]
fn truncated_weights() {
    weights(|bytes| bytes.truncate(bytes.len() / 2), &["broken/model.safetensors"]);
}

#[test]
fn weights_cut_within_the_header() {
    weights(|bytes| bytes.truncate(100), &["broken/model.safetensors"]);
}

#[test]
fn weights_with_a_hostile_header_length() {
    let huge = |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    weights(huge, &["broken/model.safetensors"]);
}

#[test]
fn weights_with_a_tensor_renamed() {
    let rename = |bytes: &mut Vec<u8>| {
        let name = b"lm_head.weight";
        let at = bytes.windows(name.len()).position(|window| window == name).expect("the output layer");
        bytes[at..at + name.len()].copy_from_slice(b"lm_head.weighs");
    };
    weights(rename, &["broken", "lm_head.weight", "lm_head.weighs"]);
}

#[test]
fn weights_that_do_not_fit_the_config() {
    let wider = |config: &mut Value| config["text_config"]["intermediate_size"] = json!(352);
    config(wider, &["mlp.down_proj.weight", "352", "344"]);
}

#[test]
fn config_without_a_needed_key() {
    let remove = |config: &mut Value| drop(config.as_object_mut().map(|fields| fields.remove("model_type")));
    config(remove, &["broken/config.json", "`model_type`", "missing"]);
}

#[test]
fn config_that_is_no_object() {
    let scratch = Scratch::new();
    scratch.images("images", 1);
    scratch.model_with_config(|config| *config = json!("llava_next"));
    scratch.refuses("sae-train", TRAIN, 1, &["broken/config.json"]);
}

#[test]
fn unknown_activation() {
    let swap = |config: &mut Value| config["text_config"]["hidden_act"] = json!("swigloo");
    config(swap, &["broken/config.json", "`text_config.hidden_act`", "swigloo", "silu"]);
}

#[test]
fn unsupported_model_type() {
    config(
        |config| config["model_type"] = json!("llava_onevision"),
        &["broken/config.json", "`model_type`", "llava_next", "llava_onevision"],
    );
}

#[test]
fn unsupported_text_model() {
    config(
        |config| config["text_config"]["model_type"] = json!("gemma"),
        &["broken/config.json", "`text_config.model_type`", "gemma", "llama"],
    );
}

#[test]
fn a_folder_that_is_no_model_and_a_model_that_is_nowhere() {
    let scratch = Scratch::new();
    scratch.images("images", 1);
    let rest = "images --layers 2 --eval-examples 0 --save-dir out";
    scratch.refuses("sae-train", &format!("images {rest}"), 1, &["images", "config.json"]);
    scratch.refuses("sae-train", &format!("no-such-model {rest}"), 1, &["no-such-model"]);
    assert!(!Path::new(&scratch.path("no-hub")).exists());
}

#[test]
fn sae_cache_says_the_same() {
    let scratch = Scratch::new();
    scratch.images("images", 1);
    scratch.sae("sae", &sae_types::HookPoint::layer(2), 128, 64, 4);
    scratch.model_with_weights(|bytes| bytes.truncate(1000));
    let arguments = "images broken images --sae sae --save-dir out";
    scratch.refuses("sae-cache", arguments, 1, &["broken/model.safetensors"]);
}

#[test]
fn weights_that_are_not_numbers_name_the_sample() {
    let spoil = |bytes: &mut Vec<u8>| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let offsets = &tensors["language_model.model.layers.1.mlp.down_proj.weight"]["data_offsets"];
        let start = 8 + header + offsets[0].as_u64().unwrap() as usize;
        // Not a number in every floating point format.
        bytes[start..start + 8].fill(0xFF);
    };
    weights(spoil, &["sample 0 of the data set has NaN or infinity at model.layers.2"]);
}
