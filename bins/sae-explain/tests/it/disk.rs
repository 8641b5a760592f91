//! A disk that fills up, and what must never be on it.

use std::process::Command;

use pipeline_tests::chat::{Reply, Server};

use crate::support::{Scratch, WIDTH, images, stderr};

#[test]
fn a_full_disk_is_told_and_the_run_goes_on_once_there_is_room() {
    let scratch = Scratch::new();
    let long = "long ".repeat(1000);
    let server = Server::start(move |_, _| Reply::answer(&format!("{long}\n[EXPLANATION]: x")));
    std::fs::create_dir(scratch.path("disk")).unwrap();
    let namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"];
    let mount = "mount -t tmpfs -o size=32k tmpfs disk";
    let in_namespace = |script: &str| {
        let mut command = Command::new(namespace[0]);
        command.args(&namespace[1..]).arg(script).current_dir(scratch.path(""));
        command
    };
    if !in_namespace(mount).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: mounting a small file system is not permitted here");
        return;
    }
    let script = format!(
        "{mount} || exit 77; \"$@\" && exit 78; mount -o remount,size=8m disk; \"$@\" --resume || exit 79; cp -r disk/out out"
    );
    let arguments = images(&server.endpoint()).replace("out", "disk/out");
    let run = in_namespace(&script)
        .arg("sh")
        .arg(env!("CARGO_BIN_EXE_sae-explain"))
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = stderr(&run);
    assert_eq!(run.status.code(), Some(0), "{text}");
    assert!(text.contains("No space left on device") && text.contains("--resume"), "{text}");
    let mut features: Vec<u32> =
        scratch.records("out/explanations.jsonl").iter().map(|record| record.feature.0).collect();
    features.sort_unstable();
    assert_eq!(features, (0..WIDTH).collect::<Vec<_>>());
}

#[test]
fn the_key_is_sent_and_never_written() {
    const KEY: &str = "sk-very-secret-0123456789";
    let scratch = Scratch::new();
    let server = Server::start(|number, _| match number {
        0 => Reply::error(400, "bad"),
        _ => Reply::answer("[EXPLANATION]: x"),
    });
    let output = scratch
        .command(&format!(
            "{} --api-key-env MY_KEY -vv --features 0-3 --save-images",
            images(&server.endpoint())
        ))
        .env("MY_KEY", KEY)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(server.heads().iter().all(|head| head.contains(&format!("Bearer {KEY}"))));
    let holds = |bytes: &[u8]| bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes());
    assert!(!holds(&output.stderr) && !holds(&output.stdout));
    let mut folders = vec![scratch.path("out")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
                assert!(!holds(&std::fs::read(&path).unwrap()), "{}", path.display());
            }
        }
    }
    assert!(files > 10);
}
