//! MPI between network namespaces, each a machine to it, whose cables are cut in mid-run. Skipped, with the reason, without root or `ip`.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests, which say why they are skipped")]

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use support::{Ended, exercise, start, wait};

/// The time-out of `exercise`, that of its roll call, what mpirun takes to notice a lost daemon, and a few seconds on a busy machine.
const SOON: f64 = 3.0 + 2.0 + 5.0 + 10.0;
/// When cables are cut, counted from the start.
const CUT_AFTER: f64 = 3.0;

/// Machines that are gone when this is dropped.
struct Machines {
    name: String,
    subnet: String,
    count: usize,
}

impl Machines {
    /// `count` machines, or `None` where this process may not make them. `test` tells apart tests that run at once.
    fn up(test: u8, count: usize) -> Option<Self> {
        let name = format!("lm{}{}", std::process::id() % 10_000, char::from(b'a' + test));
        let machines = Self { name, subnet: format!("10.77.{test}"), count };
        let probe = format!("{}-probe", machines.name);
        let made = Command::new("ip").args(["netns", "add", &probe]).output();
        if !made.as_ref().is_ok_and(|output| output.status.success()) {
            let reason = made.map_or_else(|error| error.to_string(), |output| text(&output));
            eprintln!("skipped: no network namespaces here: {reason}");
            return None;
        }
        assert!(Command::new("ip").args(["netns", "del", &probe]).status().unwrap().success());
        let output = machines.script(&["up", &count.to_string(), "1ms"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        eprint!("{}", text(&output));
        Some(machines)
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/netns.sh");
        let mut command = Command::new(script);
        command.args(arguments).env("NETNS_NAME", &self.name).env("NETNS_SUBNET", &self.subnet);
        command
    }

    fn mpirun(&self, mode: &[&str]) -> Command {
        let mut command = self.script(&["mpirun", &self.count.to_string()]);
        command.arg(exercise()).args(mode);
        command
    }

    fn succeeds(&self, arguments: &[&str]) {
        let output = self.script(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }

    /// Starts steps that go on for `seconds`, and cuts a cable when they are under way.
    fn cut(&self, machine: &str, seconds: &str, meanwhile: impl FnOnce()) -> Ended {
        let run = start(&mut self.mpirun(&["steps", seconds]));
        std::thread::sleep(Duration::from_secs_f64(CUT_AFTER));
        self.succeeds(&["cut", machine]);
        meanwhile();
        wait(run)
    }

    /// Processes that are left on any machine.
    fn processes(&self) -> String {
        (0..self.count)
            .map(|machine| {
                let name = format!("{}{machine}", self.name);
                text(&Command::new("ip").args(["netns", "pids", &name]).output().unwrap())
            })
            .collect()
    }

    /// Waits until all processes have ended by themselves, those that mpirun cannot reach, too.
    fn assert_empty_soon(&self) {
        let start = Instant::now();
        while !self.processes().is_empty() {
            assert!(start.elapsed().as_secs_f64() < SOON, "processes are left: {}", self.processes());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        let _ = self.script(&["down"]).status();
    }
}

fn text(output: &Output) -> String {
    [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat()
}

#[test]
fn every_call_works_over_tcp() {
    for count in [2, 3] {
        let Some(machines) = Machines::up(1, count) else { return };
        wait(start(&mut machines.mpirun(&["all"]))).succeeded(count);
    }
}

#[test]
fn a_rank_that_is_cut_off_is_named_and_all_end() {
    let Some(machines) = Machines::up(2, 3) else { return };
    let ended = machines.cut("2", "60", || ());
    ended.failed_within(CUT_AFTER + SOON);
    ended.says("rank 2 of 3 did not reach ");
    ended.says("within 3 s of rank 0; it is dead, cut off or stuck");
    machines.assert_empty_soon();
}

#[test]
fn the_ranks_that_rank_0_is_cut_off_from_are_named() {
    let Some(machines) = Machines::up(3, 3) else { return };
    let ended = machines.cut("0", "60", || ());
    ended.failed_within(CUT_AFTER + SOON);
    ended.says("ranks 1 and 2 of 3 did not reach ");
    machines.assert_empty_soon();
}

#[test]
fn a_cut_shorter_than_the_time_out_is_survived() {
    let Some(machines) = Machines::up(4, 2) else { return };
    let ended = machines.cut("1", "8", || {
        std::thread::sleep(Duration::from_millis(800));
        machines.succeeds(&["mend", "1"]);
    });
    ended.succeeded(2);
}
