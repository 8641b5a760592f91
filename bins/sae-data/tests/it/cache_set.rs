//! `sae-data cache-set`: several sources, shares of them, ids, duplicates.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use mm_data::{Dataset, Sample};

use crate::support::{assert_fails, assert_succeeds, entries, put, run_json, sae_data};

fn cache_set(root: &Path, sources: &[&str], more: &[&str]) -> Output {
    let save = root.join("set");
    let mut command = sae_data(&["cache-set", "--save-dir", save.to_str().unwrap()]);
    command.current_dir(root).env("HF_HUB_OFFLINE", "1").env("HF_HOME", root.join("hub"));
    command.args(sources).args(more).output().unwrap()
}

fn read(root: &Path) -> Vec<Sample> {
    let set = Dataset::open(&root.join("set"), Some("test")).unwrap();
    (0..set.len()).map(|index| set.get(index).unwrap()).collect()
}

fn ids(root: &Path) -> Vec<String> {
    read(root).into_iter().map(|sample| sample.id.unwrap()).collect()
}

/// `chat`: ten records, splits `train` and `test`, ids that repeat, one without image, one with two. `pictures`: three.
fn sources(root: &Path) {
    for split in ["train", "test"] {
        let record = |number: usize| {
            let image = match number {
                3 => "null".to_owned(),
                4 => "[\"0.png\", \"1.png\"]".to_owned(),
                number => format!("\"{number}.png\""),
            };
            let turns =
                r#"[{"from": "human", "value": "<image> what ?"}, {"from": "gpt", "value": "a cat"}]"#;
            format!("{{\"id\": {}, \"image\": {image}, \"conversations\": {turns}}}\n", number / 2)
        };
        put(root, &[(&format!("chat/{split}.jsonl"), &(0..10).map(record).collect::<Vec<_>>().concat())]);
    }
    for number in 0..10 {
        put(root, &[(&format!("chat/{number}.png"), &format!("pixels {number}"))]);
    }
    put(root, &[("pictures/a.png", "a"), ("pictures/b.png", "pixels 1"), ("pictures/c/d.png", "a")]);
}

#[test]
fn joins_sources() {
    let root = tempfile::tempdir().unwrap();
    sources(root.path());
    let output =
        cache_set(root.path(), &["chat:train@50%", "pictures"], &["--choose", "first", "--shard-size", "4"]);
    assert_succeeds(&output);
    let folder = root.path().join("set");
    assert_eq!(entries(&folder.join("data")), ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]);
    assert_eq!(
        ids(root.path()),
        ["chat/0", "chat/0#1", "chat/1", "chat/2", "pictures/a.png", "pictures/b.png", "pictures/c/d.png"]
    );
    let samples = read(root.path());
    assert!(samples.iter().all(|sample| sample.images.len() == 1 && sample.conversations.is_empty()));
    assert_eq!(samples[3].images[0].bytes, b"pixels 0");
    let counts = &run_json(&folder)["counts"];
    assert_eq!(counts["records"], 7);
    assert_eq!(counts["chat records"], 4);
    assert_eq!(counts["chat records without image"], 1);
    assert_eq!(counts["chat further images left out"], 1);
    assert_eq!(counts["pictures records"], 3);
    assert_eq!(run_json(&folder)["inputs"][1]["source"], "pictures");
}

#[test]
fn duplicates_conversations_and_the_same_source_twice() {
    let root = tempfile::tempdir().unwrap();
    sources(root.path());
    let twice = ["chat:train", "chat:test@2", "chat:test@1", "pictures"];
    assert_succeeds(&cache_set(root.path(), &twice, &["--choose", "first"]));
    let all = ids(root.path());
    assert_eq!(all.len(), 9 + 2 + 1 + 3);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    assert!(all.contains(&"chat:test~2/0".to_owned()), "{all:?}");

    let more = ["--choose", "first", "--drop-duplicates", "--overwrite"];
    assert_succeeds(&cache_set(root.path(), &twice, &more));
    // Record 4's first image is record 0's.
    assert_eq!(read(root.path()).len(), 8 + 1);
    assert_eq!(run_json(&root.path().join("set"))["counts"]["pictures duplicates"], 2);

    assert_succeeds(&cache_set(root.path(), &["chat:test"], &["--with-conversations", "--overwrite"]));
    let samples = read(root.path());
    assert_eq!((samples.len(), samples[3].images.len()), (9, 2));
    assert_eq!(samples[3].conversations[1].text, "a cat");
}

#[test]
fn shares_are_chosen_by_the_seed() {
    let root = tempfile::tempdir().unwrap();
    sources(root.path());
    let chosen = |seed: &str| {
        assert_succeeds(&cache_set(root.path(), &["chat:train@3"], &["--overwrite", "--seed", seed]));
        read(root.path()).into_iter().map(|sample| sample.images[0].name.clone()).collect::<Vec<_>>()
    };
    let one = chosen("1");
    assert_eq!(one, chosen("1"));
    assert!((2..9).any(|seed| chosen(&seed.to_string()) != one));
}

#[test]
fn wrong_usage_and_bad_sources() {
    let root = tempfile::tempdir().unwrap();
    sources(root.path());
    let before = entries(root.path());
    assert_fails(&cache_set(root.path(), &[], &[]), 2, "SOURCES");
    assert_fails(&cache_set(root.path(), &["chat:train@0"], &[]), 2, "chat:train@0");
    assert_fails(&cache_set(root.path(), &["chat:train@200%"], &[]), 2, "up to 100");
    assert_fails(&cache_set(root.path(), &["chat:train@1%"], &[]), 1, "less than one of its 10 records");
    assert_fails(&cache_set(root.path(), &["chat:dev"], &[]), 1, "no split \"dev\": it has test, train");
    assert_fails(&cache_set(root.path(), &["chat"], &[]), 1, "several splits");
    assert_fails(&cache_set(root.path(), &["./nowhere"], &[]), 1, "./nowhere");
    assert_fails(&cache_set(root.path(), &["no/where"], &[]), 1, "HF_HUB_OFFLINE");
    put(root.path(), &[("none.jsonl", "{\"image\": null}\n")]);
    assert_fails(&cache_set(root.path(), &["none.jsonl"], &[]), 1, "no record of none.jsonl has an image");
    fs::remove_file(root.path().join("none.jsonl")).unwrap();
    fs::remove_file(root.path().join("chat/7.png")).unwrap();
    assert_fails(&cache_set(root.path(), &["chat:train"], &[]), 1, "7.png");
    assert_succeeds(&cache_set(root.path(), &["chat:train"], &["--max-bad", "1"]));
    assert_fails(&cache_set(root.path(), &["pictures"], &[]), 1, "--overwrite");
    fs::remove_dir_all(root.path().join("set")).unwrap();
    assert_eq!(entries(root.path()), before);
    let help = sae_data(&["cache-set", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("lmms-lab/LLaVA-NeXT-Data:train@5%"), "{help}");
}
