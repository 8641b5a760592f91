//! `sae-data shapes` from outside: what it writes, and what wrong use and bad places get.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use mm_data::{Dataset, Role};

use crate::support::{assert_fails, entries, sae_data};

fn shapes(folder: &Path, more: &[&str]) -> Output {
    let folder = folder.to_str().unwrap();
    sae_data(&[&["shapes", "--save-dir", folder], more].concat()).output().unwrap()
}

#[test]
fn writes_a_data_set() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("set");
    let output = shapes(&folder, &["--count", "12", "--seed", "7", "--offset", "3", "--split", "held_out"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(output.stdout.is_empty());
    assert!(log.contains("shapes: 12 scenes in"), "{log}");
    assert_eq!(entries(&folder), ["README.md", "data", "run.json"]);
    assert_eq!(entries(root.path()), ["set"]);

    let run: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["counts"]["scenes"], 12);
    assert_eq!(run["seed"], 7);
    assert_eq!(run["arguments"][0], "shapes");

    let set = Dataset::open(&folder, Some("held_out")).unwrap();
    assert_eq!(set.len(), 12);
    for index in 0..12 {
        let sample = set.get(index).unwrap();
        let scene = shapes_world::Scene::generate(7, 3 + index as u64);
        assert_eq!(sample.id, Some(format!("7-{}", 3 + index)));
        assert_eq!(sample.caption, Some(scene.caption()));
        let image = image::load_from_memory(&sample.images[0].bytes).unwrap().into_rgb8();
        assert_eq!(image, scene.render());

        let turns = &sample.conversations;
        assert_eq!(turns.len(), 2 * scene.questions().len());
        assert!(turns[0].text.starts_with("<image>\n"), "{turns:?}");
        let marks: usize = turns.iter().map(|turn| turn.text.matches("<image>").count()).sum();
        assert_eq!(marks, 1);
        let roles =
            turns.iter().enumerate().map(|(i, _)| if i % 2 == 0 { Role::User } else { Role::Assistant });
        assert!(turns.iter().map(|turn| turn.role).eq(roles));

        assert_eq!(sample.masks.len(), scene.objects.len());
        for (number, mask) in sample.masks.iter().enumerate() {
            assert_eq!(mask.labels, scene.objects[number].descriptions());
            assert_eq!(image::load_from_memory(&mask.png).unwrap().into_luma8(), scene.mask(number));
        }
    }
}

#[test]
fn the_same_flags_give_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| root.path().join(name));
    for folder in [&one, &two] {
        assert!(shapes(folder, &["--count", "5", "-q"]).status.success());
    }
    for name in ["README.md", "data/train-00000-of-00001.parquet"] {
        assert_eq!(fs::read(one.join(name)).unwrap(), fs::read(two.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn wrong_usage_is_2() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("set");
    assert_fails(&shapes(&folder, &[]), 2, "--count");
    assert_fails(&shapes(&folder, &["--count", "0"]), 2, "--count");
    assert_fails(&shapes(&folder, &["--count", "3", "--split", "a/b"]), 2, "--split \"a/b\"");
    assert_fails(&shapes(&folder, &["--count", "3", "--rank", "0"]), 2, "--world-size");
    assert_fails(&shapes(&folder, &["--count", "3", "--rank", "0", "--world-size", "2"]), 2, "works alone");
    assert_fails(&shapes(&folder, &["--count", "3", "--offset", "18446744073709551615"]), 2, "--offset");
    assert_fails(&sae_data(&["circles"]).output().unwrap(), 2, "circles");
    assert!(entries(root.path()).is_empty());
    let help = sae_data(&["shapes", "--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--save-dir"));
}

#[test]
fn occupied_folders_are_refused_or_replaced() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("set");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("precious"), "x").unwrap();
    assert_fails(&shapes(&folder, &["--count", "3"]), 1, "--overwrite");
    assert_eq!(entries(&folder), ["precious"]);
    assert!(shapes(&folder, &["--count", "3", "--overwrite"]).status.success());
    assert_eq!(entries(&folder), ["README.md", "data", "run.json"]);
    assert_eq!(entries(root.path()), ["set"]);

    let file = root.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_fails(&shapes(&file, &["--count", "3"]), 1, "is not a folder");
    assert_fails(&shapes(&file.join("below"), &["--count", "3"]), 1, "file");
}

/// A file size limit stands for a full disk: the write fails in the same place.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("set");
    let script = r#"trap "" XFSZ; ulimit -f 8; exec "$0" shapes --count 200 --save-dir "$1""#;
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_sae-data"), folder.to_str().unwrap()])
        .output()
        .unwrap();
    assert_fails(&output, 1, "train-00000-of-00001.parquet");
    assert!(entries(root.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("set");
    let mut child = sae_data(&["shapes", "--count", "1000000", "--save-dir", folder.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while entries(root.path()).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(entries(root.path()), [format!(".set.part-{}", child.id())]);
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(entries(root.path()).is_empty());
}
