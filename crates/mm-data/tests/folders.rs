//! Image folders and JSON: what is found, in which order, and what bad input gets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error;
use std::fs;
use std::path::Path;

use mm_data::{
    BadRecordCounter, BadRecords, DataError, Dataset, Field, OpenOptions, RecordError, Role, Sample, Turn,
};

fn put(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn ids(set: &Dataset) -> Vec<String> {
    (0..set.len()).map(|index| set.get(index).unwrap().id.unwrap()).collect()
}

#[test]
fn images_are_found_below_and_sorted() {
    let root = tempfile::tempdir().unwrap();
    put(
        root.path(),
        &[
            ("b/2.jpeg", "two"),
            ("b/10.PNG", "ten"),
            ("a.webp", "a"),
            ("notes.txt", "no"),
            (".hidden/x.png", "no"),
            ("run.json", "{}"),
        ],
    );
    let set = Dataset::open(root.path(), None).unwrap();
    assert_eq!(ids(&set), ["a.webp", "b/10.PNG", "b/2.jpeg"]);
    let sample = set.get(2).unwrap();
    assert_eq!(
        (sample.images[0].name.as_deref(), sample.images[0].bytes.as_slice()),
        (Some("b/2.jpeg"), &b"two"[..])
    );
    // Without folders named as splits, every split is all of it.
    assert_eq!(Dataset::open(root.path(), Some("train")).unwrap().len(), 3);

    let before = set.fingerprint().to_owned();
    put(root.path(), &[("b/2.jpeg", "three")]);
    assert_ne!(Dataset::open(root.path(), None).unwrap().fingerprint(), before);
    fs::remove_file(root.path().join("a.webp")).unwrap();
    let error = set.get(0).unwrap_err();
    assert!(error.to_string().ends_with("a.webp: record 0"), "{error}");
}

#[test]
fn image_splits_are_folders() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), &[("train/1.png", "1"), ("val/2.png", "2"), ("val/3.png", "3")]);
    assert_eq!(ids(&Dataset::open(root.path(), Some("validation")).unwrap()), ["val/2.png", "val/3.png"]);
    assert_eq!(ids(&Dataset::open(root.path(), Some("train")).unwrap()), ["train/1.png"]);
    let error = Dataset::open(root.path(), Some("test")).unwrap_err();
    assert!(error.to_string().ends_with("it has train, val"), "{error}");
    assert!(matches!(Dataset::open(root.path(), None), Err(DataError::SeveralSplits { .. })));
}

#[test]
fn metadata_beside_images() {
    let root = tempfile::tempdir().unwrap();
    put(
        root.path(),
        &[
            ("train/1.png", "1"),
            ("train/2.png", "2"),
            (
                "train/metadata.jsonl",
                "{\"file_name\": \"2.png\", \"text\": \"a cat\", \"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n\n",
            ),
        ],
    );
    let set = Dataset::open(root.path(), Some("train")).unwrap();
    assert_eq!(set.get(0).unwrap().caption, None);
    let sample = set.get(1).unwrap();
    assert_eq!(sample.caption.as_deref(), Some("a cat"));
    assert_eq!(sample.conversations, [Turn { role: Role::User, text: "hi".into() }]);

    for (line, says) in
        [("{\"file_name\": \"9.png\"}", "image"), ("{\"text\": \"x\"}", "file_name"), ("{", "JSON")]
    {
        put(root.path(), &[("train/metadata.jsonl", &format!("\n{line}"))]);
        let error = Dataset::open(root.path(), None).unwrap_err();
        assert!(error.to_string().ends_with("metadata.jsonl: record 1"), "{error}");
        let cause = error.source().unwrap().to_string();
        assert!(cause.contains(says), "{cause}");
    }
}

const LLAVA: &str = r#"[
  {"id": "000", "image": "coco/1.jpg", "conversations": [
    {"from": "human", "value": "<image>\nWhat \"is\" it?"}, {"from": "gpt", "value": "A [cat]."}]},
  {"id": 7, "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
  {"images": ["coco/1.jpg", "2.png"], "messages": [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "same?"}]}],
   "caption": "two"}
]"#;

#[test]
fn llava_json() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), &[("chat.json", LLAVA), ("coco/1.jpg", "one"), ("2.png", "two")]);
    let folder = Dataset::open(root.path(), Some("train")).unwrap();
    let file = Dataset::open(&root.path().join("chat.json"), None).unwrap();
    assert_eq!(folder.fingerprint(), file.fingerprint());
    for set in [folder, file] {
        assert_eq!(set.len(), 3);
        let [chat, text, both] = [0, 1, 2].map(|index| set.get(index).unwrap());
        assert_eq!(chat.id.as_deref(), Some("000"));
        assert_eq!(chat.images[0].bytes, b"one");
        assert_eq!(chat.conversations[0].text, "<image>\nWhat \"is\" it?");
        assert_eq!(chat.conversations[1], Turn { role: Role::Assistant, text: "A [cat].".into() });
        assert_eq!((text.id.as_deref(), text.images.len()), (Some("7"), 0));
        assert_eq!(both.images[1].name.as_deref(), Some("2.png"));
        assert_eq!(both.conversations[0].role, Role::System);
        assert_eq!(both.conversations[1].text, "<image>\n<image>\nsame?");
        assert_eq!(both.caption.as_deref(), Some("two"));
    }
}

/// The forms in which LLaVA-NeXT-Data and its kin come.
#[test]
fn llava_record_forms() {
    let root = tempfile::tempdir().unwrap();
    let chat = r#""conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]"#;
    let forms = [
        (format!(r#"{{"id": "x", "image": null, {chat}}}"#), 0),
        (format!(r#"{{"id": 12, {chat}}}"#), 0),
        (format!(r#"{{"id": 1.5, "image": "", {chat}}}"#), 0),
        (format!(r#"{{"image": [], {chat}}}"#), 0),
        (format!(r#"{{"image": ["1.png"], {chat}}}"#), 1),
        (format!(r#"{{"image": {{"path": "1.png"}}, {chat}}}"#), 1),
        (format!(r#"{{"image": null, "images": ["1.png", "2.png", "1.png"], {chat}}}"#), 3),
        (
            r#"{"image": ["1.png", "2.png"], "conversations": [
                {"role": "user", "content": "<image>\n<image>\nsame?"},
                {"role": "assistant", "content": [{"type": "text", "text": "no"}]}]}"#
                .replace('\n', " "),
            2,
        ),
        (r#"{"image": "1.png", "messages": [{"from": "user", "value": "<image> a <image>"}]}"#.to_owned(), 1),
    ];
    let lines: Vec<&str> = forms.iter().map(|(line, _)| line.as_str()).collect();
    put(root.path(), &[("x.jsonl", &lines.join("\n")), ("1.png", "one"), ("2.png", "two")]);
    let set = Dataset::open(&root.path().join("x.jsonl"), None).unwrap();
    let samples: Vec<Sample> = (0..set.len()).map(|index| set.get(index).unwrap()).collect();
    for (index, (_, n_images)) in forms.iter().enumerate() {
        assert_eq!(samples[index].images.len(), *n_images, "{index}");
        assert_eq!(set.n_images(index).unwrap(), *n_images, "{index}");
    }
    let ids: Vec<_> = samples.iter().map(|sample| sample.id.as_deref()).take(4).collect();
    assert_eq!(ids, [Some("x"), Some("12"), Some("1.5"), None]);
    assert_eq!(samples[7].conversations[0].text.matches("<image>").count(), 2);
    assert_eq!(samples[7].conversations[1], Turn { role: Role::Assistant, text: "no".into() });
    assert_eq!(samples[8].conversations[0].text, "<image> a <image>");
    // Counting images does not need the files.
    fs::remove_file(root.path().join("1.png")).unwrap();
    assert_eq!(set.n_images(6).unwrap(), 3);
    assert!(set.get(6).is_err());
}

#[test]
fn plain_texts() {
    let root = tempfile::tempdir().unwrap();
    let lines = "{\"text\": \"one\"}\n{\"content\": \"two\"}\n{\"caption\": \"three\"}\n{\"text\": 4}\n";
    put(root.path(), &[("x.jsonl", lines)]);
    let options = OpenOptions { fields: vec![Field::Text], ..OpenOptions::default() };
    let set = Dataset::open_with(root.path(), &options).unwrap();
    let texts: Vec<_> = (0..3).map(|index| set.get(index).unwrap()).collect();
    assert_eq!(texts[0], Sample { text: Some("one".into()), ..Sample::default() });
    assert_eq!(texts[1].text.as_deref(), Some("two"));
    assert_eq!(texts[2], Sample::default());
    assert!(set.get(3).is_err());
    let set = Dataset::open(root.path(), None).unwrap();
    assert_eq!(set.get(0).unwrap().caption.as_deref(), Some("one"));
    assert_eq!(set.get(2).unwrap().caption.as_deref(), Some("three"));
}

#[test]
fn one_object_in_a_file() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), &[("x.json", "{\n  \"id\": 3,\n  \"caption\": \"a cat\"\n}\n")]);
    let set = Dataset::open(root.path(), None).unwrap();
    assert_eq!((set.len(), set.get(0).unwrap().caption), (1, Some("a cat".into())));
    put(root.path(), &[("x.json", &format!("{{\"version\": 1, \"annotations\": {LLAVA}}}"))]);
    put(root.path(), &[("coco/1.jpg", "one"), ("2.png", "two")]);
    assert_eq!(Dataset::open(&root.path().join("x.json"), None).unwrap().get(1).unwrap().id.unwrap(), "7");
    put(root.path(), &[("x.json", "{\n\"licence\": {},\n\"names\": [\"a\"]\n}")]);
    let error = Dataset::open(&root.path().join("x.json"), None).unwrap_err();
    assert!(error.to_string().ends_with("keys \"licence\", \"names\""), "{error}");
}

#[test]
fn json_lines_and_an_image_root() {
    let root = tempfile::tempdir().unwrap();
    put(
        root.path(),
        &[
            ("text/train.jsonl", "{\"image\": \"x.png\", \"text\": \"one\"}\r\n\n{\"text\": \"two\"}"),
            ("text/test.jsonl", "{\"text\": \"three\"}\n"),
            ("pictures/x.png", "x"),
        ],
    );
    let options = OpenOptions {
        split: Some("train".into()),
        image_root: Some(root.path().join("pictures")),
        ..OpenOptions::default()
    };
    let set = Dataset::open_with(&root.path().join("text"), &options).unwrap();
    assert_eq!(set.get(0).unwrap().images[0].bytes, b"x");
    assert_eq!(set.get(1).unwrap().caption.as_deref(), Some("two"));
    // Without the root the image is not found, but who asks for captions only does not need it.
    let options = OpenOptions { fields: vec![Field::Caption], image_root: None, ..options };
    let set = Dataset::open_with(&root.path().join("text"), &options).unwrap();
    assert_eq!(set.get(0).unwrap(), Sample { caption: Some("one".into()), ..Sample::default() });
}

#[test]
fn bad_json_records() {
    let root = tempfile::tempdir().unwrap();
    let lines = [
        r#"{"text": "good"}"#,
        r#"{"text": "cut"#,
        r#"{"image": "none.png"}"#,
        r#"{"image": 5}"#,
        r#"{"conversations": [{"from": "cat", "value": "meow"}]}"#,
        r#"{"conversations": [{"from": "human"}]}"#,
        r#"{"conversations": "hello"}"#,
        "[1, 2]",
    ];
    put(root.path(), &[("x.jsonl", &lines.join("\n"))]);
    let set = Dataset::open(root.path(), None).unwrap();
    let says = ["JSON", "none.png", "path", "\"cat\"", "value", "list of turns", "JSON"];
    for (row, says) in (1..).zip(says) {
        let error = set.get(row).unwrap_err();
        assert!(error.to_string().ends_with(&format!("x.jsonl: record {row}")), "{error}");
        let cause = error.source().unwrap().to_string();
        assert!(cause.contains(says), "{cause}");
    }
    let mut counter = BadRecordCounter::new(BadRecords::Skip { max: 7 });
    let good = (0..set.len()).filter_map(|index| counter.admit(set.get(index)).unwrap()).count();
    assert_eq!((good, counter.bad()), (1, 7));
    assert!(matches!(
        set.get(3),
        Err(DataError::Record { source: RecordError::Type { field: "image", .. }, .. })
    ));
}

#[test]
fn empty_and_truncated_json() {
    let root = tempfile::tempdir().unwrap();
    for text in ["", "[]", "\n\n"] {
        put(root.path(), &[("x.json", text)]);
        assert!(matches!(Dataset::open(root.path(), None), Err(DataError::Empty { .. })), "{text:?}");
    }
    put(root.path(), &[("x.json", &LLAVA[..LLAVA.len() - 2])]);
    let error = Dataset::open(root.path(), None).unwrap_err();
    assert!(error.to_string().contains("x.json"), "{error}");
    put(root.path(), &[("x.txt", "hello")]);
    assert!(matches!(Dataset::open(&root.path().join("x.txt"), None), Err(DataError::NoData { .. })));
}
