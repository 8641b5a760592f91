//! Whole model folders: token ids, decoded text, expanded prompts and layouts against `LlavaNextProcessor`.

use std::fs;
use std::path::Path;

use lmm_prep::{ChatOptions, Inputs, Message, Processor, TokenKind, Tokenizer};
use serde_json::Value;

use crate::support::{fixture, json, picture};

const FOLDERS: [&str; 5] = ["mistral", "qwen", "llama3", "words", "prefix_space"];

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn load(name: &str) -> Processor {
    Processor::load(&fixture("models").join(name)).unwrap()
}

#[test]
fn texts_become_the_ids_transformers_gives_and_back() {
    let expected = json("models/case.json");
    for name in FOLDERS {
        let facts = &expected["models"][name];
        let tokenizer = Tokenizer::load(&fixture("models").join(name)).unwrap();
        for (role, token) in facts["tokens"].as_object().unwrap() {
            if role != "image_token" || !token.is_null() {
                assert_eq!(tokenizer.special_token(role), token.as_str(), "{name}: {role}");
            }
        }
        for case in facts["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["plain"]), "{name}: plain {text:?}");
            assert_eq!(
                tokenizer.decode(&expected, false).unwrap(),
                case["decoded"],
                "{name}: {text:?} decoded"
            );
            assert_eq!(
                tokenizer.decode(&expected, true).unwrap(),
                case["skipped"],
                "{name}: {text:?} skipped"
            );
        }
    }
}

#[test]
fn prompts_expand_as_the_python_processor_expands_them() {
    let expected = json("models/case.json");
    for name in FOLDERS {
        let processor = load(name);
        let image_id = processor.config().image_token_index;
        for case in expected["models"][name]["prompts"].as_array().unwrap() {
            let sizes: Vec<(u32, u32)> = serde_json::from_value(case["sizes"].clone()).unwrap();
            let images: Vec<_> =
                sizes.iter().zip(0..).map(|(&(height, width), seed)| picture(height, width, seed)).collect();
            let inputs = processor.prepare(case["prompt"].as_str().unwrap(), &images).unwrap();
            assert_eq!(inputs.input_ids, ids(&case["ids"]), "{name}: {sizes:?}");
            assert_eq!(inputs.images.len(), images.len());
            assert_eq!(inputs.layout.n_tokens, inputs.input_ids.len());
            for (position, &id) in inputs.input_ids.iter().enumerate() {
                let is_text = inputs.layout.kind(position) == TokenKind::Text;
                assert_eq!(id == image_id, !is_text, "{name}: position {position}");
            }
        }
    }
}

#[test]
fn conversations_become_the_prompts_transformers_renders() {
    let expected = json("models/case.json");
    for name in FOLDERS {
        let processor = load(name);
        for case in expected["models"][name]["chats"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let options =
                ChatOptions { add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap() };
            assert_eq!(processor.chat(&messages, options).unwrap(), case["text"], "{name}");
            let images = [picture(24, 24, 0), picture(50, 30, 1)];
            let inputs = processor.prepare_chat(&messages, options, &images).unwrap();
            assert_eq!(inputs.turns.len(), messages.len());
            let expected = processor.prepare(case["text"].as_str().unwrap(), &images).unwrap();
            assert_eq!(Inputs { turns: Vec::new(), ..inputs }, expected);
            let rendered = processor.prepare_rendered(case["text"].as_str().unwrap(), &images).unwrap();
            assert_eq!(rendered, expected);
        }
    }
}

#[test]
fn a_template_that_writes_bos_gets_no_second_one() {
    let folder = changed("words", "chat_template.jinja", |_| "<s> {{ messages[0].content[0].text }}".into());
    let processor = Processor::load(folder.path()).unwrap();
    let message = [Message::text("user", "the red circle")];
    let inputs = processor.prepare_chat(&message, ChatOptions::default(), &[]).unwrap();
    let bos = processor.tokenizer().special_id("bos_token").unwrap();
    assert_eq!(inputs.input_ids.iter().filter(|&&id| id == bos).count(), 1);
    assert_eq!(inputs.input_ids.len(), 4);
    let prompt = processor.chat(&message, ChatOptions::default()).unwrap();
    assert_eq!(processor.prepare_rendered(&prompt, &[]).unwrap().input_ids, inputs.input_ids);
}

#[test]
fn placeholders_and_images_must_agree() {
    let processor = load("mistral");
    let image = picture(24, 24, 0);
    for (prompt, images) in [("<image> <image>", 1), ("no placeholder", 1), ("<image>", 0)] {
        let error = processor.prepare(prompt, &vec![image.clone(); images]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("`<image>`") && message.contains(&format!("{images} images")), "{message}");
    }
    assert!(processor.prepare("no image at all", &[]).unwrap().images.is_empty());
}

/// A copy of a model folder with one file changed, or removed where `change` gives nothing.
pub(crate) fn changed(name: &str, file: &str, change: impl Fn(String) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("models").join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join(file);
    match change(fs::read_to_string(&path).unwrap_or_default()) {
        text if text.is_empty() => fs::remove_file(path).unwrap(),
        text => fs::write(path, text).unwrap(),
    }
    folder
}

#[test]
fn folders_that_contradict_themselves_are_refused_with_both_files_named() {
    let cases: [(&str, &str, &str, &str); 8] = [
        ("processor_config.json", "\"patch_size\": 4", "\"patch_size\": 6", "vision_config.patch_size 4"),
        ("processor_config.json", "_tokens\": 1", "_tokens\": 0", "num_additional_image_tokens 0"),
        ("processor_config.json", "\"default\"", "\"full\"", "config.json has \"default\""),
        ("preprocessor_config.json", "\"shortest_edge\": 24", "\"shortest_edge\": 48", ""),
        ("preprocessor_config.json", "\"height\": 24", "\"height\": 12", "tiles of 12 pixels"),
        ("preprocessor_config.json", "72", "48", "image_grid_pinpoints"),
        ("config.json", "\"image_token_index\": ", "\"image_token_index\": 1", "the id"),
        ("processor_config.json", "\"<image>\"", "\"<picture>\"", "added_tokens"),
    ];
    for (file, from, to, expected) in cases {
        let folder = changed("qwen", file, |text| {
            assert!(text.contains(from), "{file} has no {from}");
            text.replace(from, to)
        });
        match Processor::load(folder.path()) {
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !expected.is_empty() && message.contains(expected) && message.contains(file),
                    "{message}"
                );
            }
            Ok(_) => assert!(expected.is_empty(), "{file} with {to} was accepted"),
        }
    }
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
        let folder = changed("qwen", file, |_| String::new());
        let error = Processor::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
    for file in ["processor_config.json", "tokenizer_config.json", "generation_config.json"] {
        let folder = changed("words", file, |_| String::new());
        Processor::load(folder.path()).unwrap();
    }
    let folder = changed("qwen", "chat_template.jinja", |_| String::new());
    let processor = Processor::load(folder.path()).unwrap();
    let error = processor.chat(&[Message::text("user", "hi")], ChatOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
    let error = Processor::load(Path::new("no-such-folder")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read no-such-folder/config.json");
}

#[test]
fn a_template_is_found_in_every_place_it_is_kept() {
    for (file, text) in [
        ("chat_template.json", r#"{"chat_template": "found"}"#),
        ("processor_config.json", r#"{"patch_size": 4, "chat_template": "found"}"#),
        ("tokenizer_config.json", r#"{"tokenizer_class": "Qwen2Tokenizer", "chat_template": "found"}"#),
        (
            "tokenizer_config.json",
            r#"{"tokenizer_class": "Qwen2Tokenizer",
                "chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": "found"}]}"#,
        ),
    ] {
        let folder = changed("qwen", "chat_template.jinja", |_| String::new());
        fs::write(folder.path().join(file), text).unwrap();
        let processor = Processor::load(folder.path()).unwrap();
        assert_eq!(processor.chat(&[], ChatOptions::default()).unwrap(), "found", "{file}");
    }
}
