//! The files of shapes-clip's model folder around `model.safetensors`: configuration, image processor, word-level tokenizer.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use shapes_world::{Extent, vocabulary};

use crate::lessons::{BACKGROUND, DIM};

/// A word's place is its token id. The end token's is not 2, which CLIP's configurations reserve for an old convention.
const SPECIAL: [&str; 4] = ["<unk>", "<|startoftext|>", "<pad>", "<|endoftext|>"];
const START: usize = 1;
const PADDING: usize = 2;
const END: usize = 3;

/// Side of the square a picture is squeezed into, and of a patch.
const SIDE: u32 = 96;
pub(crate) const PATCH: u32 = 16;
/// Tokens of the longest text; a caption of four objects has 21.
const CONTEXT: u32 = 32;

const VISION: Tower = Tower { width: 128, layers: 4, heads: 4 };
const TEXT: Tower = Tower { width: 96, layers: 2, heads: 4 };
const PROJECTION: u32 = 96;

struct Tower {
    width: u32,
    layers: u32,
    heads: u32,
}

/// Patches along one side of a picture.
pub(crate) const GRID: usize = (SIDE / PATCH) as usize;

/// Every word of the tokenizer, special tokens first.
fn words() -> Vec<&'static str> {
    let mut words = SPECIAL.to_vec();
    let extents = Extent::ALL.iter().map(|extent| extent.name());
    for word in [BACKGROUND, DIM].into_iter().chain(extents).chain(vocabulary()) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

/// Writes all files but the weights.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let words = words();
    let special = json!({
        "bos_token": SPECIAL[START], "eos_token": SPECIAL[END], "pad_token": SPECIAL[PADDING], "unk_token": SPECIAL[0],
    });
    let mut tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "CLIPProcessor",
        "clean_up_tokenization_spaces": false, "model_max_length": CONTEXT,
        "model_input_names": ["input_ids", "attention_mask"],
    });
    if let (Some(all), Value::Object(special)) = (tokenizer_config.as_object_mut(), special.clone()) {
        all.extend(special);
    }
    let files: [(&str, Value); 5] = [
        ("config.json", config(words.len().next_multiple_of(16))),
        ("preprocessor_config.json", preprocessor()),
        ("tokenizer.json", tokenizer(&words)),
        ("tokenizer_config.json", tokenizer_config),
        ("special_tokens_map.json", special),
    ];
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    for (name, value) in files {
        let path = folder.join(name);
        std::fs::write(&path, serde_json::to_string_pretty(&value)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn config(vocab_size: usize) -> Value {
    let tower = |tower: &Tower| {
        json!({
            "hidden_size": tower.width, "intermediate_size": 4 * tower.width, "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            "projection_dim": PROJECTION,
        })
    };
    let with = |mut tower: Value, more: Value| {
        if let (Some(fields), Value::Object(more)) = (tower.as_object_mut(), more) {
            fields.extend(more);
        }
        tower
    };
    json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float16",
        "projection_dim": PROJECTION,
        "logit_scale_init_value": 2.6592,
        "text_config": with(tower(&TEXT), json!({
            "model_type": "clip_text_model", "vocab_size": vocab_size, "max_position_embeddings": CONTEXT,
            "bos_token_id": START, "eos_token_id": END, "pad_token_id": PADDING,
        })),
        "vision_config": with(tower(&VISION), json!({
            "model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH, "num_channels": 3,
        })),
    })
}

/// Nothing is cropped: every object of a picture twice as wide as high stays in it.
fn preprocessor() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor",
        "do_convert_rgb": true, "do_resize": true, "size": {"height": SIDE, "width": SIDE}, "resample": 3,
        "do_center_crop": false, "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73], "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
    })
}

fn tokenizer(words: &[&str]) -> Value {
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
        words.iter().enumerate().map(|(id, &word)| (word.to_owned(), json!(id))).collect();
    let piece = |id: usize| json!({"SpecialToken": {"id": SPECIAL[id], "type_id": 0}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let known = |id: usize| json!({"id": SPECIAL[id], "ids": [id], "tokens": [SPECIAL[id]]});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        // Parts punctuation from words, as an explanation may have it.
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece(START), text("A", 0), piece(END)],
            "pair": [piece(START), text("A", 0), piece(END), text("B", 1), piece(END)],
            "special_tokens": {SPECIAL[START]: known(START), SPECIAL[END]: known(END)},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": SPECIAL[0]},
    })
}
