//! The launch files: `mpirun.sh` runs, loses a process and is stopped; the others are read.
//!
//! Without mpirun, or where `sae-train` was built without MPI, a test that needs them says so and is left out; `cargo xtask test` builds it with MPI.
#![expect(clippy::print_stderr, reason = "a test says why it is skipped")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline_tests::{Run, Scratch};

/// Tokens of a sample go through the model as they would alone, and codes are exchanged: the bytes of one process.
const TRAIN: &str = "model data --layers 2 --num-latents 64 --k 4 --batch-size 4 --forward-batch-size 1 --exchange codes \
                     --eval-examples 4 --lr 1e-3 --save-every 1 --collective-timeout 30";

fn launch_file(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../launch").join(name);
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `mpirun.sh` with the built `sae-train` and two processes, each on one thread.
fn mpirun(scratch: &Scratch, arguments: &str) -> Command {
    let script = "export SAE_TRAIN=$1; shift; exec bash \"$FILE\" \"$@\"";
    let mut command = scratch.script(&["bash"], script, "sae-train", arguments);
    command.env("FILE", launch_file("mpirun.sh")).env("PROCESSES", "2").env("THREADS", "1").env("GRACE", "3");
    for variable in ["HOSTFILE", "RESTARTS", "MPIRUN_FLAGS"] {
        command.env_remove(variable);
    }
    command
}

fn scratch() -> Option<Scratch> {
    let found = Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no mpirun here");
        return None;
    }
    let scratch = Scratch::new();
    // No model is looked for before the processes have found each other.
    let probe = scratch.finish(mpirun(&scratch, "nowhere nothing --layers 2 --save-dir probe"));
    if probe.stderr.contains("built without it") {
        eprintln!("skipped: sae-train was built without MPI");
        return None;
    }
    assert!(probe.code != Some(0) && probe.stderr.contains("nowhere"), "{probe}");
    scratch.run("sae-data", "shapes --count 24 --save-dir data");
    Some(scratch)
}

fn sae(scratch: &Scratch, folder: &str) -> Vec<u8> {
    fs::read(scratch.path(folder).join("model.layers.2/sae.safetensors")).unwrap()
}

/// A launcher that does not outlive its test, nor do the processes it starts.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        for mpirun in children(self.0.id(), "mpirun") {
            signal("-KILL", mpirun);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn children(parent: u32, name: &str) -> Vec<u32> {
    let output = Command::new("pgrep").args(["-P", &parent.to_string(), name]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect()
}

fn signal(name: &str, process: u32) -> bool {
    Command::new("kill").args([name, &process.to_string()]).status().unwrap().success()
}

impl Running {
    /// Starts the launcher and waits until checkpoint `step` of `folder` is there.
    fn until_checkpoint(scratch: &Scratch, mut command: Command, folder: &str, step: u64) -> Self {
        let log = fs::File::create(scratch.path("log")).unwrap();
        let mut running = Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let start = Instant::now();
        while last_step(scratch, folder) < Some(step) {
            let ended = running.0.try_wait().unwrap();
            let early = ended.is_some() || start.elapsed() > Duration::from_mins(4);
            assert!(!early, "{ended:?} before checkpoint {step}: {}", scratch.read("log"));
            sleep(Duration::from_millis(5));
        }
        running
    }

    /// The processes that mpirun started.
    fn ranks(&self) -> Vec<u32> {
        let mpirun = children(self.0.id(), "mpirun");
        mpirun.into_iter().flat_map(|mpirun| children(mpirun, "sae-train")).collect()
    }
}

/// The highest step in a checkpoint folder.
fn last_step(scratch: &Scratch, folder: &str) -> Option<u64> {
    let names = fs::read_dir(scratch.path(folder)).ok()?.flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max()
}

#[test]
fn mpirun_trains_in_two_processes() {
    let Some(scratch) = scratch() else { return };
    scratch.run("sae-train", &format!("{TRAIN} --save-dir one"));
    fs::write(scratch.path("hosts"), "localhost slots=2\n").unwrap();
    let launch = || {
        let mut command = mpirun(&scratch, &format!("{TRAIN} --save-dir out"));
        command.env("HOSTFILE", scratch.path("hosts")).env("MPIRUN_FLAGS", "--tag-output");
        scratch.finish(command).ends_with(0)
    };
    launch().says(&["worker 0 of 2, from OMPI_COMM_WORLD_RANK", "[1,0]<stderr>"]);
    assert_eq!(scratch.json("out/run.json")["counts"]["processes"], 2);
    assert!(sae(&scratch, "one") == sae(&scratch, "out"));
    // The same command once more finds nothing to do.
    launch().says(&["finished already"]);
    // Latents shared out, and nothing to measure: no process has all of the autoencoder at any time.
    let latents =
        TRAIN.replace("--eval-examples 4", "--eval-examples 0 --distribute latents --save-dir latents");
    scratch.finish(mpirun(&scratch, &latents)).ends_with(0);
    assert_eq!(scratch.json("latents/evaluation.json"), serde_json::json!({}));
    assert_eq!(sae(&scratch, "latents").len(), sae(&scratch, "one").len());
}

#[test]
fn mpirun_starts_again_what_lost_a_process() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} --epochs 6");
    scratch.run("sae-train", &format!("{train} --save-dir one"));
    let mut command = mpirun(&scratch, &format!("{train} --save-dir out"));
    command.env("RESTARTS", "1");
    let mut running = Running::until_checkpoint(&scratch, command, "out.checkpoint", 4);
    let ranks = running.ranks();
    assert_eq!(ranks.len(), 2, "{}", scratch.read("log"));
    assert!(signal("-KILL", ranks[1]));
    let status = running.0.wait().unwrap();
    let log = scratch.read("log");
    assert!(status.success(), "{status}\n{log}");
    for words in ["signal 9", "started again, 1 of 1 times", "going on from"] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    assert!(sae(&scratch, "one") == sae(&scratch, "out"));
}

#[test]
fn mpirun_stops_with_a_checkpoint_when_it_is_told_to() {
    let Some(scratch) = scratch() else { return };
    let train = format!("{TRAIN} --epochs 1000").replace("--save-every 1", "--save-every 5");
    let mut command = mpirun(&scratch, &format!("{train} --save-dir out"));
    command.env("RESTARTS", "3");
    let mut running = Running::until_checkpoint(&scratch, command, "out.checkpoint", 5);
    let before = last_step(&scratch, "out.checkpoint");
    assert!(signal("-TERM", running.0.id()));
    let status = running.0.wait().unwrap();
    let log = scratch.read("log");
    assert!(!status.success() && log.contains("go on with --resume"), "{status}\n{log}");
    assert!(!log.contains("started again"), "{log}");
    assert!(last_step(&scratch, "out.checkpoint") > before, "{log}");
}

#[test]
fn slurm_queues_again_what_failed_or_ran_out_of_time_but_not_what_was_cancelled() {
    let scratch = Scratch::new();
    let commands = scratch.path("commands");
    fs::create_dir(&commands).unwrap();
    for (name, line) in
        [("srun", "exit $ENDS"), ("squeue", "echo $STATE"), ("scontrol", "echo \"$@\" >>requeued")]
    {
        use std::os::unix::fs::PermissionsExt;
        let path = commands.join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", commands.display(), std::env::var("PATH").unwrap());
    let is_requeued = |ends: i32, state: &str| {
        let mut job = Command::new("bash");
        job.arg(launch_file("slurm.sbatch")).current_dir(scratch.path(".")).env("PATH", &path);
        job.env("SLURM_SUBMIT_DIR", scratch.path(".")).env("SLURM_JOB_ID", "7").env("SLURM_JOB_NAME", "sae");
        job.env("SLURM_RESTART_COUNT", "50").env("ENDS", ends.to_string()).env("STATE", state);
        let output = job.env_remove("SLURM_GPUS_ON_NODE").output().unwrap();
        assert_eq!(output.status.code(), Some(ends), "{output:?}");
        fs::remove_file(scratch.path("requeued")).is_ok()
    };
    assert!(is_requeued(143, "RUNNING") && !is_requeued(143, "COMPLETING"));
    assert!(!is_requeued(2, "RUNNING") && !is_requeued(0, "RUNNING"));
    // Five failures, with as many ends of time between them as there may be.
    for _ in 0..5 {
        assert!(is_requeued(1, "RUNNING") && is_requeued(143, "RUNNING"));
    }
    assert!(!is_requeued(1, "RUNNING"));
    assert!(!is_requeued(0, "RUNNING") && is_requeued(1, "RUNNING"));
}

/// Whatever `text` says to `sae-train`, in lines that start with `before`.
fn flags<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let lines = text.lines().map(str::trim_start).filter_map(|line| line.strip_prefix(before));
    let words = lines.flat_map(|line| line.split([' ', '=', '"', '(', ')']));
    words.filter(|word| word.starts_with("--") && word.len() > 2).collect()
}

#[test]
fn launch_files_are_sound_and_say_what_sae_train_understands() {
    let scratch = Scratch::new();
    let Run { stdout: help, .. } = scratch.run("sae-train", "--help");
    for name in ["mpirun.sh", "torchrun.sh", "slurm.sbatch"] {
        let path = launch_file(name);
        let status = Command::new("bash").arg("-n").arg(&path).status().unwrap();
        assert!(status.success(), "{name}: bash -n");
    }
    let read = |name: &str| fs::read_to_string(launch_file(name)).unwrap();
    let (slurm, kubernetes) = (read("slurm.sbatch"), read("kubernetes.yaml"));
    let (torchrun, mpirun) = (read("torchrun.sh"), read("mpirun.sh"));
    let said = [
        (flags(&slurm, "--layers"), 3),
        (flags(&slurm, "--batch-size"), 3),
        (flags(&slurm, "arguments+="), 3),
        (flags(&kubernetes, "- "), 13),
        (flags(&torchrun, "exec torchrun \"${flags[@]}\""), 2),
        (flags(&mpirun, "setsid mpirun"), 1),
    ];
    for (flags, count) in said {
        assert_eq!(flags.len(), count, "{flags:?}");
        for flag in flags {
            assert!(
                help.contains(&format!(" {flag} ")) || help.contains(&format!(" {flag}\n")),
                "sae-train has no {flag}"
            );
        }
    }
    // The variables that pods do not have from Kubernetes.
    for name in ["WORLD_SIZE", "MASTER_ADDR", "LMM_SAE_PORT"] {
        assert!(kubernetes.contains(&format!("- name: {name}\n")), "{name}");
    }
    for name in ["mpirun.sh", "torchrun.sh"] {
        let run = Command::new("bash").arg(launch_file(name)).output().unwrap();
        let usage = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.code() == Some(2) && usage.contains("SAE_TRAIN=PATH"), "{usage}");
    }
}
