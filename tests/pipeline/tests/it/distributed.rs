//! `sae-train` in two and three processes under mpirun: the results of one, lost processes, other numbers of them.
//!
//! Without mpirun there is nothing to test; where it is, `cargo xtask test` builds the binaries with MPI.

#![expect(clippy::print_stderr, reason = "says why a test is skipped")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline_tests::{Run, Scratch};
use sae_core::Sae;

/// Tokens of a sample go through the model as they would alone, so that nothing depends on how samples are shared out.
const TRAIN: &str = "model data --num-latents 64 --k 4 --batch-size 5 --forward-batch-size 1 --eval-examples 3 --lr 1e-3 \
                     --collective-timeout 60";

/// Width of the embedded model's vectors.
const WIDTH: u32 = 128;

/// Two hook points, accumulated gradients, all terms of the loss, normalised vectors, 8-bit moments, a best autoencoder.
const EVERYTHING: &str = "--layers 1,2 --multi-topk --matryoshka 0.25 --auxk-alpha 0.03125 --dead-feature-threshold 500 \
                          --grad-acc-steps 2 --micro-acc-steps 2 --optimizer adam8bit --centre --scale-norm --eval-every 2 \
                          --max-norm-multiple 3 --text-weight 0.5 --epochs 2";

fn scratch() -> Option<Scratch> {
    let found = Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no mpirun here");
        return None;
    }
    let scratch = Scratch::new();
    scratch.run("sae-data", "shapes --count 28 --save-dir data");
    Some(scratch)
}

/// `mpirun` of `program` in `processes` processes.
fn mpirun(scratch: &Scratch, processes: usize, arguments: &str) -> Command {
    let script =
        format!("exec mpirun --allow-run-as-root --oversubscribe --bind-to none -n {processes} \"$@\"");
    let mut command = scratch.script(&["sh"], &script, "sae-train", arguments);
    // Ranks share the cores with each other and with other tests.
    command.env("RAYON_NUM_THREADS", "1");
    command
}

/// The same where each process first does `before`, in shell.
fn mpirun_after(scratch: &Scratch, processes: usize, before: &str, arguments: &str) -> Command {
    let script = format!(
        "exec mpirun --allow-run-as-root --oversubscribe --bind-to none -n {processes} \
         sh -c '{before}; exec \"$@\"' sh \"$@\""
    );
    let mut command = scratch.script(&["sh"], &script, "sae-train", arguments);
    // Without shared memory, whose files a process that may write no large ones could not make either.
    command.env("RAYON_NUM_THREADS", "1").env("OMPI_MCA_btl", "self,tcp");
    command
}

#[track_caller]
fn trained(scratch: &Scratch, processes: usize, arguments: &str) -> Run {
    scratch.finish(mpirun(scratch, processes, arguments)).ends_with(0)
}

fn fvu(scratch: &Scratch, folder: &str) -> f64 {
    scratch.json(&format!("{folder}/evaluation.json"))["model.layers.2"]["fvu"].as_f64().unwrap()
}

#[test]
fn exchanged_codes_give_the_bytes_of_one_process() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} {EVERYTHING} --exchange codes");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    for processes in [2, 3] {
        trained(&scratch, processes, &format!("{train} --save-dir out-{processes}"));
        scratch.assert_same("one", &format!("out-{processes}"));
    }
    let run = scratch.json("out-3/run.json");
    assert_eq!(run["counts"]["processes"], 3);
    assert!(run["counts"]["collective bytes received"].as_u64().unwrap() > 0);
}

#[test]
fn autoencoders_on_processes_of_their_own_have_the_bytes_of_one_process() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} {EVERYTHING} --activation topk,batch-topk --distribute modules")
        .replace("--multi-topk", "");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    // Four autoencoders; of five processes one has none.
    for processes in [2, 3, 5] {
        trained(&scratch, processes, &format!("{train} --save-dir out-{processes}"));
        let (left, right) = (scratch.results("one"), scratch.results(&format!("out-{processes}")));
        assert!(left.keys().eq(right.keys()), "{:?}\n{:?}", left.keys(), right.keys());
        for (name, bytes) in &left {
            assert!(*bytes == right[name], "{name} differs on {processes} processes");
        }
    }
}

#[test]
fn gradients_and_shared_latents_agree_with_one_process() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} --layers 2 --epochs 2 --eval-every 3");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    for (name, flags) in [("gradients", "--exchange gradients"), ("latents", "--distribute latents")] {
        trained(&scratch, 3, &format!("{train} {flags} --save-dir {name}"));
        let sae = Sae::load(&scratch.path(name).join("model.layers.2")).unwrap();
        assert_eq!((sae.num_latents(), sae.k()), (64, 4));
        let (one, three) = (fvu(&scratch, "one"), fvu(&scratch, name));
        assert!((one - three).abs() < 1e-4 * one, "{name}: {three} against {one}");
        assert!(scratch.path(name).join("best/model.layers.2/sae.safetensors").exists());
    }
    let left: Vec<_> =
        scratch.listing().into_iter().filter(|(path, _)| path.ends_with("evaluated")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A job that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Process ids of the ranks.
    fn ranks(&self) -> Vec<u32> {
        let parent = self.0.id().to_string();
        let output = Command::new("pgrep").args(["-P", &parent, "sae-train"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Waits for the end and returns exit code and stderr.
    fn end(&mut self) -> (Option<i32>, String) {
        use std::io::Read;
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

/// Waits for checkpoint `step`; false where the job ended first.
fn reaches(scratch: &Scratch, job: &mut Running, folder: &str, step: u64) -> bool {
    let start = Instant::now();
    while scratch.last_step(folder) < Some(step) {
        assert!(start.elapsed() < Duration::from_mins(4), "checkpoint {step} of {folder} is not reached");
        if job.0.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn whichever_process_is_killed_any_number_goes_on_to_the_same_bytes() {
    let Some(scratch) = scratch() else { return };
    let train =
        format!("{TRAIN} --layers 1,2 --epochs 6 --optimizer adam8bit --save-every 1 --exchange codes");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    let resumed = format!("{train} --save-dir out --resume");
    for (kill, (victim, processes)) in [(0, 2), (1, 2), (2, 3), (0, 3)].into_iter().enumerate() {
        let mut job = Running::start(mpirun(&scratch, processes, &resumed));
        let step = scratch.last_step("out.checkpoint").unwrap_or(0) + 3;
        assert!(reaches(&scratch, &mut job, "out.checkpoint", step), "{:?}", job.end());
        sleep(Duration::from_millis(9 * kill as u64));
        let mut ranks = job.ranks();
        assert_eq!(ranks.len(), processes, "{ranks:?}");
        ranks.sort_unstable();
        let killed = Instant::now();
        signal("-KILL", ranks[victim]);
        let (code, said) = job.end();
        assert!(code != Some(0) && killed.elapsed() < Duration::from_secs(30), "{code:?}\n{said}");
        assert!(said.contains("signal 9"), "{said}");
    }
    // One process goes on with what three left.
    scratch.run("sae-train", &resumed);
    scratch.assert_same("one", "out");
    assert!(!scratch.path("out.checkpoint").exists());
}

#[test]
fn shared_latents_go_on_on_another_number_of_processes() {
    let Some(scratch) = scratch() else { return };
    let train =
        format!("{TRAIN} --layers 2 --epochs 6 --optimizer adam8bit --grad-acc-steps 2 --save-every 1");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    let latents = format!("{train} --distribute latents --save-dir out --resume");
    for (processes, name) in [(3, "-KILL"), (2, "-KILL")] {
        let mut job = Running::start(mpirun(&scratch, processes, &latents));
        let step = scratch.last_step("out.checkpoint").unwrap_or(0) + 3;
        assert!(reaches(&scratch, &mut job, "out.checkpoint", step), "{:?}", job.end());
        signal(name, job.ranks()[0]);
        assert_ne!(job.end().0, Some(0));
    }
    trained(&scratch, 3, &latents);
    let (one, out) = (fvu(&scratch, "one"), fvu(&scratch, "out"));
    assert!((one - out).abs() < 1e-3 * one, "{out} against {one}");
}

#[test]
fn a_signal_to_one_process_makes_all_of_them_write_a_checkpoint() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} --layers 2 --epochs 30 --exchange codes");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    let mut job = Running::start(mpirun(&scratch, 2, &format!("{train} --save-every 2 --save-dir out")));
    assert!(reaches(&scratch, &mut job, "out.checkpoint", 2), "{:?}", job.end());
    signal("-TERM", job.ranks()[1]);
    let (code, said) = job.end();
    assert_ne!(code, Some(0));
    assert!(said.contains("go on with --resume"), "{said}");
    trained(&scratch, 3, &format!("{train} --save-every 2 --save-dir out --resume"));
    scratch.assert_same("one", "out");
}

#[test]
fn what_cannot_work_ends_all_processes_with_a_reason() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} --layers 2");
    let fails = |processes: usize, arguments: &str, words: &[&str]| {
        let started = Instant::now();
        let run = scratch.finish(mpirun(&scratch, processes, arguments));
        assert!(run.code != Some(0) && started.elapsed() < Duration::from_secs(50), "{run}");
        run.says(words);
    };
    fails(
        3,
        &format!("{train} --batch-size 2 --save-dir out").replace("--batch-size 5", ""),
        &["--batch-size 2"],
    );
    fails(
        2,
        &format!("{train} --num-latents 1 --k 1 --distribute latents --save-dir out")
            .replace("--num-latents 64 --k 4", ""),
        &["num_latents"],
    );
    fails(2, &format!("{train} --collective nccl --save-dir out"), &["NCCL"]);
    fails(2, &format!("{train} --save-dir data"), &["data", "--overwrite"]);
    fails(2, &format!("nowhere {TRAIN} --layers 2 --save-dir out").replacen("model ", "", 1), &["nowhere"]);
    assert!(!scratch.path("out").exists() && !scratch.path("out.checkpoint").exists());
}

#[test]
fn samples_that_cannot_be_read_are_counted_over_all_processes() {
    let Some(scratch) = scratch() else { return };
    scratch.images("pictures", 14);
    for bad in [2, 5, 9] {
        fs::write(scratch.path("pictures").join(format!("{bad:03}.png")), "no picture").unwrap();
    }
    // Epochs have other orders: a bad sample is met by several processes, and counts once. One of the three is held out.
    let train = format!("{TRAIN} --layers 2 --epochs 6 --save-every 1 --exchange codes")
        .replace("model data", "model pictures");
    scratch.run("sae-train", &format!("{train} --max-bad 2 --save-dir one"));
    trained(&scratch, 2, &format!("{train} --max-bad 2 --save-dir out"));
    let list = |folder: &str| scratch.read(&format!("{folder}/bad_records.jsonl"));
    assert_eq!(list("one").lines().count(), 2);
    assert_eq!(list("one"), list("out"));
    assert_eq!(scratch.json("out/run.json")["counts"]["bad records"], 2);
    let bytes = |folder: &str| fs::read(scratch.path(folder).join("model.layers.2/sae.safetensors")).unwrap();
    assert!(bytes("one") == bytes("out"));
    let run = scratch.finish(mpirun(&scratch, 3, &format!("{train} --max-bad 1 --save-dir few")));
    assert_ne!(run.code, Some(0));
    run.says(&["--max-bad"]);
}

#[test]
fn a_process_that_does_not_see_the_output_folder_ends_all_before_any_work() {
    let Some(scratch) = scratch() else { return };
    for machine in ["machine-0", "machine-1"] {
        fs::create_dir(scratch.path(machine)).unwrap();
    }
    let train = TRAIN.replace("model data", "../model ../data");
    for distribute in ["data", "modules", "latents"] {
        let train = format!("{train} --layers 1,2 --distribute {distribute} --save-dir out");
        let run = scratch.finish(mpirun_after(&scratch, 2, "cd machine-$OMPI_COMM_WORLD_RANK", &train));
        assert_ne!(run.code, Some(0), "{run}");
        let run = run.says(&["out.checkpoint: --save-dir must be on a file system that all processes see"]);
        for machine in ["machine-0", "machine-1"] {
            let left: Vec<_> = fs::read_dir(scratch.path(machine)).unwrap().flatten().collect();
            assert!(left.is_empty(), "{left:?}\n{run}");
        }
    }
}

#[test]
fn a_full_disk_of_the_first_process_is_told() {
    let Some(scratch) = scratch() else { return };
    let limited = "trap \"\" XFSZ; [ $OMPI_COMM_WORLD_RANK = 1 ] || ulimit -f 40";
    let train = format!("{TRAIN} --layers 2 --save-every 1 --save-dir out");
    let run = scratch.finish(mpirun_after(&scratch, 2, limited, &train));
    assert_ne!(run.code, Some(0), "{run}");
    run.says(&["rank 0 failed: see its message", "model.layers.2", "File too large"]);
    assert!(!scratch.path("out").exists() && !scratch.path("out.checkpoint").exists());
}

#[test]
fn one_process_that_cannot_start_tells_why_and_ends_all() {
    let Some(scratch) = scratch() else { return };
    let other_world = "[ $OMPI_COMM_WORLD_RANK = 0 ] || export RANK=0 WORLD_SIZE=3";
    let started = Instant::now();
    let run =
        scratch.finish(mpirun_after(&scratch, 2, other_world, &format!("{TRAIN} --layers 2 --save-dir out")));
    assert!(run.code != Some(0) && started.elapsed() < Duration::from_secs(30), "{run}");
    run.says(&["to it this process is rank 1 of 2, to the launcher rank 0 of 3"]);
}

#[test]
fn an_address_for_another_program_is_left_alone() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} --layers 2 --max-examples 5");
    let one = scratch.command("sae-train", &format!("{train} --save-dir one"));
    for mut command in [one, mpirun(&scratch, 2, &format!("{train} --save-dir two"))] {
        command.env("MASTER_ADDR", "elsewhere").env_remove("MASTER_PORT").env_remove("LMM_SAE_PORT");
        scratch.finish(command).ends_with(0);
    }
}

#[test]
fn needs_are_those_of_all_processes_of_a_machine() {
    let Some(scratch) = scratch() else { return };
    let train = TRAIN.replace("--num-latents 64", "--num-latents 65536");
    let train = format!("{train} --layers 2 --distribute latents --save-dir out --dry-run");
    let evaluation = |train: &str| {
        let run = trained(&scratch, 2, train);
        assert!(run.stdout.contains("memory of each of 2 processes"), "{run}");
        let line =
            run.stdout.lines().find_map(|line| line.trim().strip_prefix("evaluation and saving, about"));
        let mut words = line.unwrap().split_whitespace();
        let bytes: f64 = words.next().unwrap().parse().unwrap();
        assert_eq!(words.next(), Some("MB"), "{run}");
        bytes
    };
    // Its own half, and to measure it the whole.
    let parameters = 65536.0 * 2.0 * 4.0 * f64::from(WIDTH) / 1e6;
    let more = evaluation(&train) - evaluation(&train.replace("--eval-examples 3", "--eval-examples 0"));
    assert!((more / parameters - 1.0).abs() < 0.05, "{more} MB more for {parameters}");
    let wide = train.replace("--num-latents 65536", "--num-latents 1073741824");
    let run = scratch.finish(mpirun(&scratch, 2, &wide));
    assert_ne!(run.code, Some(0), "{run}");
    run.says(&["for each of 2 processes", "fewer processes on a machine, or --eval-examples 0"]);
}

/// Network namespaces joined by cables with a delay, each a machine to MPI; gone when this is dropped.
struct Machines<'a> {
    scratch: &'a Scratch,
    count: usize,
}

impl<'a> Machines<'a> {
    /// Nothing, with the reason told, where this process may not make any.
    fn up(scratch: &'a Scratch, count: usize) -> Option<Self> {
        let machines = Self { scratch, count };
        let probe = format!("{}-probe", Self::name());
        let made = Command::new("ip").args(["netns", "add", &probe]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no network namespaces here");
            return None;
        }
        assert!(Command::new("ip").args(["netns", "del", &probe]).status().unwrap().success());
        assert!(machines.script(&format!("up {count} 1ms"), "").status().unwrap().success());
        Some(machines)
    }

    fn name() -> String {
        format!("lp{}", std::process::id() % 100_000)
    }

    /// `scripts/netns.sh` with `arguments`, and behind them a run of `sae-train`, if any.
    fn script(&self, arguments: &str, train: &str) -> Command {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/netns.sh");
        let train = (!train.is_empty()).then(|| self.scratch.command("sae-train", train));
        let mut command = Command::new(script);
        command.args(arguments.split_whitespace()).current_dir(self.scratch.path("."));
        if let Some(train) = train {
            command.arg(train.get_program()).args(train.get_args());
        }
        command.env("NETNS_NAME", Self::name()).env("NETNS_SUBNET", "10.77.9");
        command.env("RAYON_NUM_THREADS", "1").env("OMP_NUM_THREADS", "1");
        command.env("MPIRUN_FLAGS", "--bind-to none -x RAYON_NUM_THREADS -x OMP_NUM_THREADS");
        command
    }

    /// Process ids on all machines.
    fn processes(&self) -> String {
        let of = |machine| {
            let name = format!("{}{machine}", Self::name());
            let output = Command::new("ip").args(["netns", "pids", &name]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        (0..self.count).map(of).collect()
    }
}

impl Drop for Machines<'_> {
    fn drop(&mut self) {
        let _ = self.script("down", "").status();
    }
}

#[test]
fn a_machine_that_is_cut_off_stops_the_job_which_goes_on_elsewhere_to_the_same_bytes() {
    let Some(scratch) = scratch() else { return };
    let Some(machines) = Machines::up(&scratch, 3) else { return };
    let train = format!("{TRAIN} --layers 1,2 --epochs 40 --save-every 1 --exchange codes");
    let train = train.replace("--collective-timeout 60", "--collective-timeout 3");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    let resumed = format!("{train} --save-dir out --resume");
    let mut job = Running::start(machines.script("mpirun 3", &resumed));
    assert!(reaches(&scratch, &mut job, "out.checkpoint", 4), "{:?}", job.end());
    assert!(machines.script("cut 2", "").status().unwrap().success());
    let cut = Instant::now();
    let (code, said) = job.end();
    assert!(code != Some(0) && cut.elapsed() < Duration::from_secs(40), "{:?}\n{said}", cut.elapsed());
    assert!(said.contains("rank 2 of 3 did not reach") && said.contains("--resume"), "{said}");
    // The one that nobody reaches ends too, by its own time-out.
    while !machines.processes().is_empty() {
        assert!(cut.elapsed() < Duration::from_mins(1), "left: {}", machines.processes());
        sleep(Duration::from_millis(100));
    }
    drop(machines);
    trained(&scratch, 2, &resumed);
    scratch.assert_same("one", "out");
}
