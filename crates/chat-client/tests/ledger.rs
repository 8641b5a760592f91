//! A ledger survives a kill, and says what is wrong with it.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use std::io::Write;

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

fn key(item: &Item) -> u32 {
    item.feature
}

fn open(path: &std::path::Path) -> Ledger<u32, Item> {
    Ledger::open(path, key).unwrap()
}

#[test]
fn half_a_line_is_dropped_and_the_rest_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut ledger = open(&path);
    for feature in 0..3 {
        ledger.add(feature, &item(feature)).unwrap();
    }
    drop(ledger);
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let mut ledger = open(&path);
        let kept = whole[..cut].split(|&byte| byte == b'\n').count() - 1;
        assert_eq!(ledger.len(), kept);
        for feature in kept as u32..3 {
            assert_eq!(ledger.get(&feature).unwrap(), None);
            ledger.add(feature, &item(feature)).unwrap();
        }
        assert_eq!(ledger.get(&2).unwrap(), Some(item(2)));
        drop(ledger);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn the_last_line_of_a_key_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut ledger = open(&path);
    ledger.add(1, &item(1)).unwrap();
    ledger.add(1, &Item { text: "again".to_owned(), ..item(1) }).unwrap();
    drop(ledger);
    let ledger = open(&path);
    assert_eq!((ledger.len(), ledger.get(&1).unwrap().unwrap().text), (1, "again".to_owned()));
}

#[test]
fn a_foreign_line_is_named_and_a_second_writer_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut ledger = open(&path);
    ledger.add(1, &item(1)).unwrap();
    let second = Ledger::open(&path, key).unwrap_err();
    assert!(second.to_string().starts_with("another process is writing"), "{second}");
    drop(ledger);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"other\":1}\n");
    std::fs::write(&path, text).unwrap();
    let error = Ledger::open(&path, key).unwrap_err();
    assert!(error.to_string().contains("line 2, is not of this ledger"), "{error}");
}

#[test]
fn items_come_by_key_while_others_are_added_and_a_reader_sees_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut ledger = open(&path);
    for feature in [7, 3, 5] {
        ledger.add(feature, &item(feature)).unwrap();
        // Reading in between must not move the place of writing.
        assert_eq!(ledger.get(&7).unwrap(), Some(item(7)));
    }
    let features: Vec<u32> = ledger.items().map(|item| item.unwrap().feature).collect();
    assert_eq!(features, [3, 5, 7]);
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"feature\":9").unwrap();
    let reader = Ledger::read(&path, key).unwrap();
    assert!(reader.keys().eq(&[3, 5, 7]) && reader.contains(&5) && !reader.contains(&9));
}
