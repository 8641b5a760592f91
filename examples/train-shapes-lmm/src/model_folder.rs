//! The files of a Hugging Face model folder around `model.safetensors`: configuration, processor,
//! word-level tokenizer and chat template of a small LLaVA-NeXT.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use shapes_world::vocabulary;

use crate::lit;

/// Words that only the recipe and the chat template need, beside those of the scenes.
const EXTRA_WORDS: [&str; 4] = ["user", "assistant", ":", "background"];
const SPECIAL: [&str; 5] = ["<pad>", "<s>", "</s>", "<unk>", "<image>"];

/// Side of the square a tile is resized to.
const TILE: u32 = 96;
/// Height and width of the canvases tiles may be cut from.
const PINPOINTS: [[u32; 2]; 3] = [[96, 96], [96, 192], [192, 96]];

/// What tells one shapes-lmm from another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Side of a patch.
    pub(crate) patch: u32,
    pub(crate) vision_hidden: u32,
    pub(crate) vision_layers: u32,
    pub(crate) text_hidden: u32,
    pub(crate) text_intermediate: u32,
    pub(crate) text_layers: u32,
    /// Tokens of the longest sequence.
    pub(crate) context: u32,
    /// Words beyond those of scenes and their questions.
    pub(crate) words: &'static [&'static str],
}

impl Size {
    /// `shapes-lmm-s`: the model the demo's sparse autoencoder is trained in.
    pub(crate) const SMALL: Self = Self {
        patch: 12,
        vision_hidden: 96,
        vision_layers: 4,
        text_hidden: 128,
        text_intermediate: 344,
        text_layers: 4,
        context: 1024,
        words: &[],
    };

    /// `shapes-lmm-l`: the model that explains the features of the small one. Its patches are larger, so that several
    /// pictures fit into one prompt.
    pub(crate) const LARGE: Self = Self {
        patch: 16,
        vision_hidden: 112,
        vision_layers: 4,
        text_hidden: 160,
        text_intermediate: 432,
        text_layers: 4,
        context: 2048,
        words: &lit::WORDS,
    };
}

/// Every word of the tokenizer, special tokens first; a word's place is its token id.
pub(crate) fn words(size: Size) -> Vec<String> {
    let mut words: Vec<String> = SPECIAL.iter().map(ToString::to_string).collect();
    for word in EXTRA_WORDS.into_iter().chain(vocabulary()).chain(size.words.iter().copied()) {
        if !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    }
    words
}

/// Writes all files but the weights.
pub(crate) fn write(folder: &Path, size: Size) -> Result<()> {
    let words = words(size);
    // A multiple of 16 keeps the output matrix friendly to every kernel.
    let vocab_size = words.len().next_multiple_of(16);
    let id = |word: &str| words.iter().position(|w| w == word).expect("a special token");
    let files: [(&str, Value); 7] = [
        ("config.json", config(size, vocab_size, id("<image>"))),
        ("preprocessor_config.json", preprocessor()),
        (
            "processor_config.json",
            json!({
                "processor_class": "LlavaNextProcessor", "patch_size": size.patch, "image_token": "<image>",
                "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
            }),
        ),
        ("tokenizer.json", tokenizer(&words)),
        (
            "tokenizer_config.json",
            json!({
                "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "LlavaNextProcessor",
                "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
                "image_token": "<image>", "extra_special_tokens": {"image_token": "<image>"},
                "padding_side": "left", "clean_up_tokenization_spaces": false, "model_max_length": size.context,
                // The class's default also names token_type_ids, which no model here takes.
                "model_input_names": ["input_ids", "attention_mask"],
            }),
        ),
        (
            "special_tokens_map.json",
            json!({
                "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
                "image_token": "<image>",
            }),
        ),
        (
            "generation_config.json",
            json!({
                "_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
                "max_new_tokens": 32, "do_sample": false,
            }),
        ),
    ];
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    for (name, value) in files {
        let path = folder.join(name);
        std::fs::write(&path, serde_json::to_string_pretty(&value)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let path = folder.join("chat_template.jinja");
    std::fs::write(&path, CHAT_TEMPLATE).with_context(|| format!("writing {}", path.display()))
}

const CHAT_TEMPLATE: &str = "{% for message in messages %}\
{% if message['role'] == 'user' %}user :{% else %}assistant :{% endif %}\
{% if message['content'] is string %} {{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %} <image>{% endif %}{% endfor %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %} {{ part['text'] }}{% endif %}{% endfor %}\
{% endif %}{% if message['role'] != 'user' %} </s>{% endif %}{% if not loop.last %} {% endif %}{% endfor %}\
{% if add_generation_prompt %} assistant :{% endif %}";

fn config(size: Size, vocab_size: usize, image_token: usize) -> Value {
    json!({
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "dtype": "float32",
        "image_token_index": image_token,
        "image_grid_pinpoints": PINPOINTS,
        "image_seq_length": (TILE / size.patch) * (TILE / size.patch),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": true,
        "tie_word_embeddings": false,
        "use_image_newline_parameter": true,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "pad_token_id": 0,
        "text_config": {
            "model_type": "llama", "vocab_size": vocab_size, "hidden_size": size.text_hidden,
            "intermediate_size": size.text_intermediate, "num_hidden_layers": size.text_layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": size.text_hidden / 4,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": size.context, "attention_bias": false, "mlp_bias": false,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": false,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": size.vision_hidden,
            "intermediate_size": 4 * size.vision_hidden, "num_hidden_layers": size.vision_layers,
            "num_attention_heads": 4, "image_size": TILE, "patch_size": size.patch, "num_channels": 3,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": size.vision_hidden,
        },
    })
}

fn preprocessor() -> Value {
    json!({
        "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor",
        "do_convert_rgb": true, "do_resize": true, "size": {"shortest_edge": TILE}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": TILE, "width": TILE},
        "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true, "do_pad": true,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73], "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
        "image_grid_pinpoints": PINPOINTS,
    })
}

fn tokenizer(words: &[String]) -> Value {
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}
