//! Training runs that are stopped, killed or run out of disk, and go on.

use std::fs;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline_tests::Scratch;
use sae_core::Sae;

/// Two hook points, accumulated gradients, AuxK, normalised vectors, a best autoencoder: all that a checkpoint has to hold.
const TRAIN: &str = "model data --layers 1,2 --num-latents 64 --k 4 --activation batch-topk --batch-size 2 --epochs 3 \
                     --grad-acc-steps 2 --auxk-alpha 0.03125 --dead-feature-threshold 2000 --centre --scale-norm \
                     --optimizer adam8bit --eval-examples 2 --eval-every 6 --lr 1e-3 --save-every 1";

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.run("sae-data", "shapes --count 30 --save-dir data");
    scratch
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(child: &mut Running, what: &str, reached: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_mins(5), "{what}: not reached");
        if child.0.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_millis(3));
    }
    true
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_bytes() {
    let scratch = scratch();
    scratch.run("sae-train", &format!("{TRAIN} --save-dir whole"));
    let checkpoint = scratch.path("out.checkpoint");
    let mut kills = 0;
    let mut next = 1;
    loop {
        let mut child = Running(
            scratch.command("sae-train", &format!("{TRAIN} --save-dir out --resume")).spawn().unwrap(),
        );
        // At a moment of its own each time: right behind a checkpoint, or somewhat later, in the middle of the next.
        let reached =
            wait_until(&mut child, "a checkpoint", || scratch.last_step("out.checkpoint") >= Some(next));
        if !reached {
            assert_eq!(child.0.wait().unwrap().code(), Some(0));
            break;
        }
        sleep(Duration::from_millis(7 * (kills % 5)));
        child.0.kill().unwrap();
        kills += 1;
        next = scratch.last_step("out.checkpoint").map_or(1, |step| step + 3);
    }
    assert!(kills >= 3, "killed {kills} times only");
    scratch.assert_same("whole", "out");
    assert!(!checkpoint.exists());
    assert!(
        !scratch.listing().iter().any(|(path, _)| path.to_string_lossy().contains(".part-")),
        "parts are left"
    );
}

fn signal(child: &Running, name: &str) {
    let kill = format!("kill -{name} {}", child.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn a_signal_writes_a_checkpoint_and_resume_goes_on_from_it() {
    let scratch = scratch();
    // Never by itself.
    let train = TRAIN.replace("--save-every 1", "--save-every 0");
    scratch.run("sae-train", &format!("{train} --save-dir whole"));
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let out = format!("out-{name}");
        let mut child =
            Running(scratch.command("sae-train", &format!("{train} --save-dir {out}")).spawn().unwrap());
        let metrics = scratch.path(&format!("{out}.checkpoint/metrics.jsonl"));
        assert!(wait_until(&mut child, "the loop", || metrics.exists()));
        signal(&child, name);
        assert_eq!(child.0.wait().unwrap().code(), Some(code));
        assert!(scratch.last_step(&format!("{out}.checkpoint")).is_some() && !scratch.path(&out).exists());
        scratch.run("sae-train", &format!("{train} --save-dir {out} --resume")).says(&["going on from"]);
        scratch.assert_same("whole", &out);
        // Once more has nothing to do, and says so only to who asks for the same.
        scratch.run("sae-train", &format!("{train} --save-dir {out} --resume")).says(&["finished already"]);
        let other = train.replace("--k 4", "--k 5");
        scratch.refuses("sae-train", &format!("{other} --save-dir {out} --resume"), 1, &["--k: [4]"]);
    }
}

/// A run of 12 steps, stopped somewhere, with a checkpoint in `out.checkpoint`.
fn stopped() -> Scratch {
    let scratch = scratch();
    let mut child =
        Running(scratch.command("sae-train", &format!("{TRAIN} --save-dir out")).spawn().unwrap());
    assert!(wait_until(&mut child, "a checkpoint", || scratch.last_step("out.checkpoint").is_some()));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    scratch
}

#[test]
fn flags_that_contradict_the_checkpoint_are_listed() {
    let scratch = stopped();
    let other = TRAIN.replace("--k 4", "--k 5").replace("--lr 1e-3", "--lr 2e-3");
    let words = [
        "--resume would mix two runs",
        "--k: [4] in the checkpoint, [5] now",
        "--lr: 0.001",
        "0.002",
        "--seed",
    ];
    scratch.refuses("sae-train", &format!("{other} --save-dir out --resume --seed 1"), 1, &words);
    let grown = TRAIN.replace("data", "more");
    scratch.run("sae-data", "shapes --count 31 --save-dir more");
    scratch.refuses("sae-train", &format!("{grown} --save-dir out --resume"), 1, &["DATASET's fingerprint"]);
    // Without either flag nothing is lost by mistake.
    scratch.refuses("sae-train", &format!("{TRAIN} --save-dir out"), 2, &["--resume", "--overwrite"]);
    scratch.run("sae-train", &format!("{TRAIN} --save-dir out --overwrite"));
    assert!(!scratch.path("out.checkpoint").exists());
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let scratch = stopped();
    let step = scratch.last_step("out.checkpoint").unwrap();
    let file = scratch.path(&format!("out.checkpoint/step-{step:08}/model.layers.2/trainer.safetensors"));
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let run = scratch.command("sae-train", &format!("{TRAIN} --save-dir out --resume"));
    scratch.finish(run).ends_with(1).says(&["trainer.safetensors"]);
}

#[test]
fn a_full_disk_leaves_the_last_good_checkpoint() {
    let scratch = stopped();
    let before = scratch.last_step("out.checkpoint").unwrap();
    // A file that may not grow fails to be written as on a full disk.
    let resume = format!("{TRAIN} --save-dir out --resume");
    let limited = scratch.script(&["sh"], "trap '' XFSZ; ulimit -f 40; exec \"$@\"", "sae-train", &resume);
    scratch.finish(limited).ends_with(1).says(&["out.checkpoint"]);
    assert_eq!(scratch.last_step("out.checkpoint"), Some(before));
    Sae::load(&scratch.path(&format!("out.checkpoint/step-{before:08}/model.layers.2"))).unwrap();
    scratch.run("sae-train", &resume);
    scratch.run("sae-train", &format!("{TRAIN} --save-dir whole"));
    scratch.assert_same("whole", "out");
}

#[test]
fn two_runs_do_not_share_a_checkpoint_folder() {
    let scratch = scratch();
    let long = TRAIN.replace("--epochs 3", "--epochs 500");
    let mut first = Running(scratch.command("sae-train", &format!("{long} --save-dir out")).spawn().unwrap());
    assert!(wait_until(&mut first, "a checkpoint", || scratch.last_step("out.checkpoint").is_some()));
    let second = scratch.command("sae-train", &format!("{TRAIN} --save-dir out --resume"));
    scratch.finish(second).ends_with(1).says(&["out.checkpoint", &first.0.id().to_string()]);
}
