//! Runs that cannot end as they began: a full disk, a signal, a reader that goes away.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline_tests::Scratch;
use sae_core::Sae;
use sae_types::HookPoint;

const TRAIN: &str = "model images --layers 2 --num-latents 64 --k 4 --eval-examples 1 --save-dir out";
const CACHE: &str = "images model images --sae sae --save-dir out";

fn scratch(images: usize) -> Scratch {
    let scratch = Scratch::new();
    scratch.images("images", images);
    scratch.sae("sae", &HookPoint::layer(2), 128, 64, 4);
    scratch
}

/// A file that may not grow fails to be written as on a full disk, on any machine.
#[test]
fn a_file_that_cannot_grow() {
    let scratch = scratch(3);
    let before = scratch.listing();
    for (program, arguments, names) in [
        ("sae-data", "shapes --count 40 --save-dir out", ".parquet"),
        ("sae-train", TRAIN, "sae.safetensors"),
        ("sae-cache", &format!("{CACHE} --n-splits 1"), "model.layers.2"),
    ] {
        // Blocks of 512 or 1024 bytes. Without the trap the process would die of SIGXFSZ, as it does not on a full disk.
        let limited = scratch.script(&["sh"], "trap '' XFSZ; ulimit -f 4; exec \"$@\"", program, arguments);
        let run = scratch.finish(limited).ends_with(1).says(&[names]);
        assert_eq!(scratch.listing(), before, "something was left\n{run}");
    }
}

/// The same on a small file system of its own, where the system lets tests mount one.
#[test]
fn a_full_disk() {
    let scratch = scratch(3);
    std::fs::create_dir(scratch.path("disk")).unwrap();
    let namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh"];
    let mount = "mount -t tmpfs -o size=64k tmpfs disk";
    let probe = Command::new(namespace[0])
        .args(&namespace[1..])
        .args(["-c", mount])
        .current_dir(scratch.path(""))
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: mounting a small file system is not permitted here");
        return;
    }
    for (program, arguments, says) in [
        ("sae-data", "shapes --count 200 --save-dir disk/out", "No space left on device"),
        // Sees before it starts that there is no room.
        (
            "sae-train",
            "model images --layers 2 --num-latents 256 --eval-examples 1 --save-dir disk/out",
            "kB free",
        ),
    ] {
        // What is left on the disk, but for `.` and `..`, follows the run's own words.
        let script =
            format!("{mount} || exit 77; \"$@\"; code=$?; echo left: $(ls -A disk). >&2; exit $code");
        let run = scratch.finish(scratch.script(&namespace, &script, program, arguments));
        run.ends_with(1).says(&["disk/", says, "left: ."]);
    }
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a file `name` is in the folder that is being written.
fn wait_for(scratch: &Scratch, child: &mut Child, name: &str) {
    let start = Instant::now();
    let is_there = |(path, _): &(PathBuf, u64)| {
        path.to_string_lossy().contains(".out.part-") && path.ends_with(Path::new(name))
    };
    while !scratch.listing().iter().any(is_there) {
        assert!(start.elapsed() < Duration::from_mins(5), "no {name} was begun");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote {name}");
        sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn interrupted(scratch: &Scratch, program: &str, arguments: &str, begun: &str, signal: &str, code: i32) {
    let before = scratch.listing();
    let mut child = Running(scratch.command(program, arguments).spawn().unwrap());
    wait_for(scratch, &mut child.0, begun);
    let kill = format!("kill -{signal} {}", child.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let mut stderr = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(code), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert_eq!(scratch.listing(), before, "something was left\n{stderr}");
}

#[test]
fn a_signal_in_the_middle() {
    let scratch = scratch(4);
    let forever = "shapes --count 1000000 --save-dir out";
    interrupted(&scratch, "sae-data", forever, "data", "INT", 130);
}

#[test]
fn a_reader_of_stdout_that_goes_away_loses_nothing() {
    let scratch = scratch(3);
    let mut child = scratch.command("sae-train", TRAIN).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{stderr}");
    assert!(scratch.path("out/run.json").exists(), "{stderr}");
    Sae::load(&scratch.path("out/model.layers.2")).unwrap();
}
