//! A ledger survives a kill, and says what is wrong with it.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use chat_client::Ledger;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Item {
    feature: u32,
    text: String,
}

fn item(feature: u32) -> Item {
    Item { feature, text: format!("feature {feature}\nin two lines") }
}

fn open(path: &std::path::Path) -> Ledger<Item> {
    Ledger::open(path, |item: &Item| item.feature.to_string()).unwrap()
}

#[test]
fn half_a_line_is_dropped_and_the_rest_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut ledger = open(&path);
    for feature in 0..3 {
        ledger.add(feature.to_string(), item(feature)).unwrap();
    }
    drop(ledger);
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let mut ledger = open(&path);
        let kept = whole[..cut].split(|&byte| byte == b'\n').count() - 1;
        assert_eq!(ledger.len(), kept);
        for feature in kept as u32..3 {
            assert_eq!(ledger.get(&feature.to_string()), None);
            ledger.add(feature.to_string(), item(feature)).unwrap();
        }
        assert_eq!(ledger.get("2"), Some(&item(2)));
        drop(ledger);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn the_last_line_of_a_key_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut ledger = open(&path);
    ledger.add("1".to_owned(), item(1)).unwrap();
    ledger.add("1".to_owned(), Item { text: "again".to_owned(), ..item(1) }).unwrap();
    drop(ledger);
    let ledger = open(&path);
    assert_eq!((ledger.len(), ledger.get("1").unwrap().text.as_str()), (1, "again"));
}

#[test]
fn a_foreign_line_is_named_and_a_second_writer_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut ledger = open(&path);
    ledger.add("1".to_owned(), item(1)).unwrap();
    let second = Ledger::open(&path, |item: &Item| item.feature.to_string()).unwrap_err();
    assert!(second.to_string().starts_with("another process is writing"), "{second}");
    drop(ledger);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"other\":1}\n");
    std::fs::write(&path, text).unwrap();
    let error = Ledger::open(&path, |item: &Item| item.feature.to_string()).unwrap_err();
    assert!(error.to_string().contains("line 2, is not of this ledger"), "{error}");
}
