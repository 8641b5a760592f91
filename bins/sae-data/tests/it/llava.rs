//! `sae-data llava`: JSON and image files to parquet.

use std::fs;
use std::path::Path;
use std::process::Output;

use mm_data::{Dataset, Sample};

use crate::support::{assert_fails, assert_succeeds, entries, put, run_json, sae_data};

fn llava(root: &Path, more: &[&str]) -> Output {
    let [source, images, save] = ["chat.json", "images", "set"].map(|name| root.join(name));
    let paths = [source.to_str().unwrap(), "--image-root", images.to_str().unwrap()];
    let save = ["--save-dir", save.to_str().unwrap()];
    sae_data(&[&["llava"], &paths[..], &save[..], more].concat()).output().unwrap()
}

/// Seven records: one image each, but record 2 has none and record 5 as many as asked for.
fn source(root: &Path, several: usize) {
    let record = |number: usize| {
        let image = match number {
            2 => String::new(),
            5 => format!(r#""image": [{}],"#, vec!["\"a/5.png\""; several].join(", ")),
            _ => format!(r#""image": "a/{number}.png","#),
        };
        format!(
            r#"{{"id": {number}, {image} "conversations": [
                {{"from": "human", "value": "<image>\nquestion {number}"}}, {{"from": "gpt", "value": "yes"}}]}}"#
        )
    };
    let records: Vec<String> = (0..7).map(record).collect();
    put(root, &[("chat.json", &format!("[{}]", records.join(",\n")))]);
    for number in 0..7 {
        put(&root.join("images"), &[(&format!("a/{number}.png"), &format!("pixels {number}"))]);
    }
}

fn read(folder: &Path) -> Vec<Sample> {
    let set = Dataset::open(folder, Some("train")).unwrap();
    (0..set.len()).map(|index| set.get(index).unwrap()).collect()
}

#[test]
fn packs_records_into_shards() {
    let root = tempfile::tempdir().unwrap();
    source(root.path(), 1);
    let output = llava(root.path(), &["--shard-size", "3"]);
    assert_succeeds(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("llava: 7 records in"));
    let folder = root.path().join("set");
    assert_eq!(entries(&folder), ["README.md", "data", "run.json"]);
    let names =
        ["train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet"];
    assert_eq!(entries(&folder.join("data")), names);
    let samples = read(&folder);
    assert_eq!(samples.len(), 7);
    for (number, sample) in samples.iter().enumerate() {
        assert_eq!(sample.id, Some(number.to_string()));
        assert_eq!(sample.conversations[0].text, format!("<image>\nquestion {number}"));
        let bytes: Vec<_> = sample.images.iter().map(|image| image.bytes.as_slice()).collect();
        let expected = format!("pixels {number}");
        assert_eq!(bytes, if number == 2 { Vec::new() } else { vec![expected.as_bytes()] });
    }
    let run = run_json(&folder);
    assert_eq!(run["counts"]["records"], 7);
    assert_eq!(run["counts"]["images"], 6);
    assert_eq!(run["counts"]["records without image"], 1);
    assert_eq!(run["counts"]["files"], 3);
    assert_eq!(run["inputs"][0]["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn several_images_need_a_list() {
    let root = tempfile::tempdir().unwrap();
    source(root.path(), 2);
    assert_succeeds(&llava(root.path(), &[]));
    let folder = root.path().join("set");
    assert_eq!(read(&folder)[5].images.len(), 2);
    assert!(fs::read_to_string(folder.join("README.md")).unwrap().contains("`images` (a list)"));
    let single = ["--image-column", "single", "--overwrite"];
    assert_fails(&llava(root.path(), &single), 1, "it has 2 images, and --image-column single takes one");
    assert_succeeds(&llava(root.path(), &[&single[..], &["--max-bad", "1"]].concat()));
    assert_eq!(read(&folder).len(), 6);
    let list = fs::read_to_string(folder.join("bad_records.jsonl")).unwrap();
    assert!(list.contains("chat.json") && list.contains("\"row\":5") && list.contains("2 images"), "{list}");
    assert_eq!(run_json(&folder)["counts"]["bad records"], 1);
}

#[test]
fn a_seeded_part_in_the_order_of_the_source() {
    let root = tempfile::tempdir().unwrap();
    source(root.path(), 1);
    let ids = |seed: &str| {
        assert_succeeds(&llava(root.path(), &["--max-examples", "4", "--seed", seed, "--overwrite"]));
        let samples = read(&root.path().join("set"));
        samples.into_iter().map(|sample| sample.id.unwrap()).collect::<Vec<_>>()
    };
    let one = ids("1");
    assert!(one.len() == 4 && one.is_sorted(), "{one:?}");
    assert_eq!(one, ids("1"));
    assert!((2..9).any(|seed| ids(&seed.to_string()) != one));
}

#[test]
fn missing_images_and_broken_rows() {
    let root = tempfile::tempdir().unwrap();
    source(root.path(), 1);
    fs::remove_file(root.path().join("images/a/3.png")).unwrap();
    assert_fails(&llava(root.path(), &[]), 1, "3.png");
    assert_fails(&llava(root.path(), &[]), 1, "chat.json: record 3");
    assert_eq!(entries(root.path()), ["chat.json", "images"]);
    let text = fs::read_to_string(root.path().join("chat.json")).unwrap();
    fs::write(root.path().join("chat.json"), text.replace("\"id\": 4,", "\"id\" 4,")).unwrap();
    assert_fails(&llava(root.path(), &["--max-bad", "1"]), 1, "2 bad records, at most 1");
    assert_succeeds(&llava(root.path(), &["--max-bad", "2"]));
    assert_eq!(read(&root.path().join("set")).len(), 5);
    let list = fs::read_to_string(root.path().join("set/bad_records.jsonl")).unwrap();
    assert_eq!(list.lines().count(), 2, "{list}");
}

#[test]
fn wrong_usage_and_bad_places() {
    let root = tempfile::tempdir().unwrap();
    source(root.path(), 1);
    fs::rename(root.path().join("images"), root.path().join("elsewhere")).unwrap();
    assert_fails(&llava(root.path(), &[]), 2, "--image-root");
    fs::rename(root.path().join("elsewhere"), root.path().join("images")).unwrap();
    assert_fails(&llava(root.path(), &["--split", "a-b"]), 2, "--split \"a-b\"");
    assert_fails(&llava(root.path(), &["--shard-size", "0"]), 2, "--shard-size");
    assert_fails(&llava(root.path(), &["--image-column", "two"]), 2, "auto");
    put(root.path(), &[("set/precious", "x")]);
    assert_fails(&llava(root.path(), &[]), 1, "--overwrite");
    assert_eq!(entries(&root.path().join("set")), ["precious"]);
    fs::write(root.path().join("chat.json"), "[").unwrap();
    assert_fails(&llava(root.path(), &["--overwrite"]), 1, "chat.json");
    assert_eq!(entries(&root.path().join("set")), ["precious"]);
    let help = sae_data(&["llava", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("Example") && help.contains("--image-root"), "{help}");
}
