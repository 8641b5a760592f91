//! `sae-data text`: texts to token files.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Output;

use lmm_prep::Tokenizer;
use mm_data::{Dataset, OpenOptions, TokenDtype, TokenFileInfo, TokenOptions};

use crate::support::{assert_fails, assert_succeeds, entries, put, run_json, sae_data, tokenizer};

fn text(root: &Path, model: &Path, more: &[&str]) -> Output {
    let [set, save] = ["texts.jsonl", "tokens"].map(|name| root.join(name));
    let paths = [model.to_str().unwrap(), set.to_str().unwrap(), "--save-dir", save.to_str().unwrap()];
    sae_data(&[&["text"], &paths[..], more].concat()).output().unwrap()
}

const TEXTS: [&str; 3] = ["the red circle is left of the blue square", "what is shown ?", "three shapes"];

fn texts(root: &Path) {
    let lines = TEXTS.map(|text| format!("{{\"text\": \"{text}\"}}"));
    put(root, &[("texts.jsonl", &lines.join("\n"))]);
}

fn pieces(folder: &Path) -> Vec<Vec<u32>> {
    let set = Dataset::open(folder, Some("train")).unwrap();
    (0..set.len()).map(|index| set.get(index).unwrap().tokens.unwrap()).collect()
}

#[test]
fn texts_become_pieces() {
    let root = tempfile::tempdir().unwrap();
    texts(root.path());
    let folder = tokenizer(root.path(), "qwen");
    assert_succeeds(&text(root.path(), &folder, &["--ctx-len", "8"]));
    let saved = root.path().join("tokens");
    assert_eq!(entries(&saved), ["data", "run.json"]);
    assert_eq!(entries(&saved.join("data")), ["train.bin", "train.bin.json"]);
    let tokenizer = Tokenizer::load(&folder).unwrap();
    // sparsify joins the texts by EOS, with one before the first.
    let joined: String = TEXTS.map(|text| format!("<|im_end|>{text}")).concat();
    let mut expected = tokenizer.encode(&joined, false).unwrap();
    let rest = expected.len() % 8;
    expected.truncate(expected.len() - rest);
    assert_eq!(pieces(&saved).concat(), expected);
    let counts = &run_json(&saved)["counts"];
    assert_eq!((counts["texts"].as_u64(), counts["tokens"].as_u64()), (Some(3), Some(expected.len() as u64)));
    assert_eq!(counts["tokens left out at the end"].as_u64(), Some(rest as u64));
    let info = TokenFileInfo::load(&saved.join("data/train.bin")).unwrap().unwrap();
    assert_eq!((info.dtype, info.eos), (TokenDtype::U16, tokenizer.special_id("eos_token")));
    assert_eq!((info.bos, info.ctx_len), (None, NonZeroUsize::new(8)));
    assert_eq!(info.vocab_size, Some(tokenizer.max_id() + 1));
}

#[test]
fn pieces_begin_with_bos_where_the_tokenizer_adds_one() {
    let root = tempfile::tempdir().unwrap();
    texts(root.path());
    let folder = tokenizer(root.path(), "llama3");
    let bos = Tokenizer::load(&folder).unwrap().special_id("bos_token").unwrap();
    let saved = root.path().join("tokens");
    assert_succeeds(&text(root.path(), &folder, &["--ctx-len", "6", "--token-dtype", "u32"]));
    assert!(pieces(&saved).iter().all(|piece| piece.len() == 6 && piece[0] == bos && piece[1] != bos));
    assert_eq!(fs::read(saved.join("data/train.bin")).unwrap().len(), pieces(&saved).len() * 6 * 4);
    let tokens = TokenOptions { ctx_len: NonZeroUsize::new(12), dtype: None };
    let error = Dataset::open_with(&saved, &OpenOptions { tokens, ..OpenOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("pieces of 6"), "{error}");
    assert_succeeds(&text(root.path(), &folder, &["--ctx-len", "6", "--no-bos", "--overwrite"]));
    assert!(pieces(&saved).concat().iter().all(|&id| id != bos));
}

#[test]
fn wrong_usage_and_bad_texts() {
    let root = tempfile::tempdir().unwrap();
    texts(root.path());
    let folder = tokenizer(root.path(), "llama3");
    assert_fails(&text(root.path(), &folder, &["--ctx-len", "0"]), 2, "--ctx-len");
    assert_fails(&text(root.path(), &folder, &["--ctx-len", "1"]), 2, "--no-bos");
    assert_fails(&text(root.path(), &folder, &["--ctx-len", "4096"]), 1, "less than one piece");
    assert_fails(&text(root.path(), &folder, &["--token-dtype", "u8"]), 2, "u16");
    assert_fails(&text(root.path(), &root.path().join("none"), &[]), 1, "none");
    let small = ["--ctx-len", "4"];
    put(
        root.path(),
        &[("texts.jsonl", "{\"text\": \"the red circle\"}\n{\"text\": 5}\n{\"image\": \"x\"}\n")],
    );
    assert_fails(&text(root.path(), &folder, &small), 1, "record 1");
    assert_succeeds(&text(root.path(), &folder, &[&small[..], &["--max-bad", "2"]].concat()));
    let list = fs::read_to_string(root.path().join("tokens/bad_records.jsonl")).unwrap();
    assert!(list.contains("must be text") && list.contains("no text"), "{list}");
    let help = sae_data(&["text", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Example"));
}
