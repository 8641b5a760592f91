//! `config.json` and `generation_config.json` against transformers' classes.

use lmm_prep::{
    Activation, ClipVisionConfig, FeatureSelect, GenerationConfig, LlavaNextConfig, RopeScaling, TextConfig,
    TextFamily,
};
use serde_json::{Value, json};

use crate::support;

fn activation(value: Activation) -> Value {
    json!(match value {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
    })
}

/// One id as Python keeps it: an integer, a list, or nothing.
fn ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

fn outer(config: &LlavaNextConfig) -> Value {
    let pinpoints: Vec<_> =
        config.image_grid_pinpoints.iter().map(|size| [size.height, size.width]).collect();
    json!({
        "image_token_index": config.image_token_index,
        "image_grid_pinpoints": pinpoints,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": match config.vision_feature_select_strategy {
            FeatureSelect::Default => "default",
            FeatureSelect::Full => "full",
        },
        "projector_hidden_act": activation(config.projector_hidden_act),
        "multimodal_projector_bias": config.multimodal_projector_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
    })
}

fn vision(config: &ClipVisionConfig) -> Value {
    json!({
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "hidden_act": activation(config.hidden_act),
        "layer_norm_eps": config.layer_norm_eps,
        "projection_dim": config.projection_dim,
    })
}

fn text(config: &TextConfig) -> Value {
    let windows: Vec<_> =
        (0..config.num_hidden_layers).map(|layer| config.sliding_window_of(layer)).collect();
    json!({
        "model_type": match config.family {
            TextFamily::Llama => "llama",
            TextFamily::Mistral => "mistral",
            TextFamily::Qwen2 => "qwen2",
        },
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": activation(config.hidden_act),
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "windows": windows,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ids(&config.eos_token_id),
        "pad_token_id": config.pad_token_id,
    })
}

#[test]
fn every_config_reads_as_the_python_class_reads_it() {
    let fixture = support::json("configs/case.json");
    for (name, case) in fixture["cases"].as_object().unwrap() {
        let config = LlavaNextConfig::from_json(&case["config"].to_string()).unwrap();
        assert_eq!(outer(&config), case["outer"], "{name}");
        assert_eq!(vision(&config.vision_config), case["vision"], "{name}");
        let mut expected = case["text"].clone();
        let rope = expected.as_object_mut().unwrap().remove("rope_scaling").unwrap();
        assert_eq!(text(&config.text_config), expected, "{name}");
        match config.text_config.rope_scaling {
            None => assert!(rope.is_null() || rope["rope_type"] == "default", "{name}: {rope}"),
            Some(RopeScaling::Linear { factor }) => {
                assert_eq!(json!(["linear", factor]), json!([rope["rope_type"], rope["factor"]]), "{name}");
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => {
                let ours = json!({
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                });
                assert_eq!(ours, rope, "{name}");
            }
        }
    }
}

#[test]
fn every_generation_config_reads_as_the_python_class_reads_it() {
    let fixture = support::json("configs/case.json");
    for (name, case) in fixture["generation"].as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("generation_config.json"), case["config"].to_string()).unwrap();
        let config = GenerationConfig::load(folder.path()).unwrap().unwrap();
        let ours = json!({
            "bos_token_id": config.bos_token_id,
            "eos_token_id": ids(&config.eos_token_id),
            "pad_token_id": config.pad_token_id,
            "max_new_tokens": config.max_new_tokens,
            "max_length": config.max_length,
            "do_sample": config.do_sample,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "repetition_penalty": config.repetition_penalty,
        });
        assert_eq!(ours, case["expected"], "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(GenerationConfig::load(folder.path()).unwrap(), None);
}

#[test]
fn what_is_not_understood_is_named_with_what_is_known() {
    let cases = [
        ("{}", "field `model_type`: expected a string, got nothing"),
        (r#"{"model_type": "llava"}"#, r#"`model_type`: expected "llava_next", got "llava""#),
        (
            r#"{"model_type": "llava_next", "text_config": {"model_type": "gemma"}}"#,
            "one of llama, mistral, qwen2",
        ),
        (r#"{"model_type": "llava_next", "text_config": 3}"#, "`text_config`: expected a JSON object, got 3"),
        (
            r#"{"model_type": "llava_next", "text_config": {"hidden_act": "swiglu"}}"#,
            "`text_config.hidden_act`: expected one of silu",
        ),
        (
            r#"{"model_type": "llava_next", "text_config": {"hidden_size": "4096"}}"#,
            r#"`text_config.hidden_size`: expected a non-negative integer, got "4096""#,
        ),
        (
            r#"{"model_type": "llava_next", "text_config": {"rms_norm_eps": null}}"#,
            "`text_config.rms_norm_eps`",
        ),
        (r#"{"model_type": "llava_next", "text_config": {"num_attention_heads": 0}}"#, "a positive integer"),
        (
            r#"{"model_type": "llava_next", "text_config": {"num_key_value_heads": 5}}"#,
            "num_attention_heads = 32",
        ),
        (
            r#"{"model_type": "llava_next", "text_config": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}}"#,
            "`text_config.rope_scaling.rope_type`: expected one of default, linear, llama3",
        ),
        (
            r#"{"model_type": "llava_next", "text_config": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}}"#,
            "`text_config.rope_scaling.low_freq_factor`",
        ),
        (
            r#"{"model_type": "llava_next", "vision_config": {"model_type": "siglip_vision_model"}}"#,
            "clip_vision_model",
        ),
        (
            r#"{"model_type": "llava_next", "vision_config": {"num_channels": 1}}"#,
            "`vision_config.num_channels`",
        ),
        (
            r#"{"model_type": "llava_next", "vision_feature_layer": [-2, -5]}"#,
            "lists of layers are not supported",
        ),
        (r#"{"model_type": "llava_next", "vision_feature_layer": 25}"#, "-25..=24 (the tower has 24 layers)"),
        (
            r#"{"model_type": "llava_next", "vision_feature_select_strategy": "cls"}"#,
            r#""default" or "full""#,
        ),
        (r#"{"model_type": "llava_next", "image_grid_pinpoints": [[336, 0]]}"#, "`image_grid_pinpoints`"),
        (
            r#"{"model_type": "llava_next", "image_grid_pinpoints": [[336, 400]]}"#,
            "`image_grid_pinpoints[0]`",
        ),
        (r#"{"model_type": "llava_next", "image_grid_pinpoints": []}"#, "a non-empty list"),
    ];
    for (text, expected) in cases {
        let error = LlavaNextConfig::from_json(text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.starts_with("config.json: "), "{text}\n{error}");
    }
    let error = LlavaNextConfig::from_json("{").unwrap_err().to_string();
    assert_eq!(error, "config.json is not valid JSON");
}

#[test]
fn unknown_keys_are_kept() {
    let text =
        r#"{"model_type": "llava_next", "ignore_index": -100, "text_config": {"torch_dtype": "bfloat16"}}"#;
    let config = LlavaNextConfig::from_json(text).unwrap();
    assert_eq!(config.extra["ignore_index"], -100);
    assert_eq!(config.text_config.extra["torch_dtype"], "bfloat16");
}
