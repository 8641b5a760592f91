//! Chat templates against transformers' renderer.

use std::collections::BTreeMap;

use lmm_prep::{ChatOptions, ChatTemplate, Message};

use crate::support::{json, read};

#[test]
fn every_template_renders_as_jinja_renders_it() {
    let fixture = json("chat/case.json");
    let tokens: BTreeMap<String, String> = serde_json::from_value(fixture["tokens"].clone()).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        let family = case["family"].as_str().unwrap();
        let source = String::from_utf8(read(&format!("chat/{family}.jinja"))).unwrap();
        let template = ChatTemplate::compile(&source, format!("{family}.jinja").into()).unwrap();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let options = ChatOptions { add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap() };
        match template.render(&messages, options, &tokens) {
            Ok(text) => assert_eq!(text, case["text"], "{family} {}", case["name"]),
            Err(error) => {
                let expected = case["error"].as_str().unwrap_or_else(|| panic!("{family}: {error:?}"));
                assert!(error.to_string().contains(expected), "{error}");
            }
        }
    }
}
