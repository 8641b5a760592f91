//! Turn spans over real templates: what a span decodes to, where images shift it, what ends a turn.

use lmm_prep::{ChatOptions, Content, Inputs, Message, Part, PrepError, Processor, TokenKind};

use crate::models::changed;
use crate::support::{picture, read};

/// A fixture's tokenizer with the template of a family; the special tokens that end its turns are in both.
fn family(tokenizer: &str, template: &str) -> (tempfile::TempDir, Processor) {
    let source = String::from_utf8(read(&format!("chat/{template}.jinja"))).unwrap();
    let folder = changed(tokenizer, "chat_template.jinja", |_| source.clone());
    let processor = Processor::load(folder.path()).unwrap();
    (folder, processor)
}

const FAMILIES: [(&str, &str, &str); 4] = [
    ("llama3", "llama3", "<|eot_id|>"),
    ("mistral", "mistral", "</s>"),
    ("qwen", "qwen", "<|im_end|>"),
    ("mistral", "vicuna", ""),
];

fn prepared(processor: &Processor, messages: &[Message], generation: bool) -> Inputs {
    let n_images = messages.iter().map(|message| match &message.content {
        Content::Parts(parts) => parts.iter().filter(|part| **part == Part::Image).count(),
        Content::Text(_) => 0,
    });
    let images: Vec<_> =
        (0..n_images.sum::<usize>() as u32).map(|number| picture(24 + 10 * number, 40, number)).collect();
    let options = ChatOptions { add_generation_prompt: generation };
    let inputs = processor.prepare_chat(messages, options, &images).unwrap();
    assert_eq!(inputs.turns.len(), messages.len());
    let mut end = 0;
    for (turn, message) in inputs.turns.iter().zip(messages) {
        assert_eq!(turn.role, message.role);
        assert!(turn.tokens.start >= end && turn.tokens.end >= turn.tokens.start, "{:?}", inputs.turns);
        end = turn.tokens.end;
    }
    assert!(end <= inputs.input_ids.len());
    inputs
}

/// What the span's words decode to, its image tokens left out.
fn words(processor: &Processor, inputs: &Inputs, turn: usize) -> String {
    let text = |&position: &usize| inputs.layout.kind(position) == TokenKind::Text;
    let ids: Vec<u32> =
        inputs.turns[turn].tokens.clone().filter(text).map(|position| inputs.input_ids[position]).collect();
    processor.tokenizer().decode(&ids, false).unwrap().trim().to_owned()
}

#[test]
fn spans_decode_to_the_turns_texts() {
    // "a" and "user" also stand in headers and special tokens.
    let messages = [
        Message::image_and_text("user", "what is shown in this image user"),
        Message::text("assistant", "a"),
        Message::text("user", "the blue square"),
        Message::text("assistant", "user assistant a"),
    ];
    for (tokenizer, template, end) in FAMILIES {
        let (_folder, processor) = family(tokenizer, template);
        for generation in [false, true] {
            let inputs = prepared(&processor, &messages, generation);
            let said: Vec<String> = (0..4).map(|turn| words(&processor, &inputs, turn)).collect();
            let with_end = |text: &str| format!("{text}{end}");
            let expected = [
                "what is shown in this image user".to_owned(),
                with_end("a"),
                "the blue square".to_owned(),
                with_end("user assistant a"),
            ];
            assert_eq!(said, expected, "{template}");
            // The image's tokens are the first turn's, and what follows is shifted by them.
            let image = inputs.layout.images[0].positions();
            let first = &inputs.turns[0].tokens;
            assert!(first.start <= image.start && image.end < first.end, "{template}: {first:?}, {image:?}");
            assert!(inputs.turns[1].tokens.start >= image.end);
        }
    }
}

#[test]
fn every_image_is_its_turns() {
    let messages = [
        Message::parts("user", vec![Part::Image, Part::Image, Part::Text { text: "the same shapes".into() }]),
        Message::text("assistant", "three"),
        Message::parts("user", vec![Part::Text { text: "and this".into() }, Part::Image]),
        Message::text("assistant", "the red circle"),
    ];
    for (tokenizer, template, _) in FAMILIES {
        let (_folder, processor) = family(tokenizer, template);
        let inputs = prepared(&processor, &messages, false);
        for (image, turn) in [(0, 0), (1, 0), (2, 2)] {
            let (image, turn) = (inputs.layout.images[image].positions(), &inputs.turns[turn].tokens);
            assert!(turn.start <= image.start && image.end <= turn.end, "{template}: {turn:?}, {image:?}");
        }
        assert_eq!(words(&processor, &inputs, 0).trim(), "the same shapes", "{template}");
        assert!(words(&processor, &inputs, 3).starts_with("the red circle"), "{template}");
    }
}

#[test]
fn an_empty_answer_is_the_token_that_ends_it() {
    let messages = [Message::text("user", "describe the image"), Message::text("assistant", "")];
    for (tokenizer, template, end) in FAMILIES {
        let (_folder, processor) = family(tokenizer, template);
        let inputs = prepared(&processor, &messages, false);
        assert_eq!(words(&processor, &inputs, 1), end, "{template}");
        assert_eq!(words(&processor, &inputs, 0), "describe the image", "{template}");
        if end.is_empty() {
            assert!(inputs.turns[1].tokens.is_empty(), "{template}: {:?}", inputs.turns);
        }
    }
}

#[test]
fn a_space_before_the_end_and_templates_that_change_the_text() {
    let template =
        "{% for m in messages %}{{ m.role }}: {{ m.content[0].text | upper }} <|im_end|>{% endfor %}";
    let folder = changed("qwen", "chat_template.jinja", |_| template.into());
    let processor = Processor::load(folder.path()).unwrap();
    let messages = [Message::text("user", "hi"), Message::text("assistant", "ho")];
    let inputs = prepared(&processor, &messages, false);
    assert_eq!(words(&processor, &inputs, 0), "HI");
    assert_eq!(words(&processor, &inputs, 1), "HO <|im_end|>");
}

#[test]
fn a_turn_the_template_leaves_out_is_named() {
    let template =
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content[0].text }};{% endif %}{% endfor %}";
    let folder = changed("qwen", "chat_template.jinja", |_| template.into());
    let processor = Processor::load(folder.path()).unwrap();
    let messages = [Message::text("user", "hi"), Message::text("system", "be brief")];
    let error = processor.prepare_chat(&messages, ChatOptions::default(), &[]).unwrap_err();
    assert!(matches!(&error, PrepError::Turn { index: 1, role, .. } if role == "system"), "{error}");
    let text = error.to_string();
    assert!(text.contains("chat_template.jinja") && text.contains("turn 1 (system)"), "{text}");
}

#[test]
fn ids_made_before_are_inputs() {
    let (_folder, processor) = family("qwen", "qwen");
    let ids = processor.tokenizer().encode("the red circle", false).unwrap();
    let inputs = processor.prepare_tokens(ids.clone()).unwrap();
    assert_eq!(inputs, processor.prepare("the red circle", &[]).unwrap());
    let image = processor.config().image_token_index;
    for bad in [image, processor.config().text_config.vocab_size as u32] {
        let error = processor.prepare_tokens(vec![ids[0], bad]).unwrap_err();
        assert!(matches!(error, PrepError::Token { position: 1, got, .. } if got == bad), "{error}");
    }
}
