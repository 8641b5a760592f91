//! MPI with two and three ranks: every call, and the ways in which ranks fail.

mod support;

use std::process::Command;

use support::{Ended, exercise, start, wait};

/// The time-out of `exercise` and of its roll call, and a few seconds for mpirun on a busy machine.
const SOON: f64 = 3.0 + 2.0 + 10.0;

fn run(size: usize, mode: &str) -> Ended {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", &size.to_string()]);
    wait(start(command.arg(exercise()).arg(mode)))
}

#[test]
fn every_call_gives_what_arithmetic_by_hand_gives() {
    for size in [1, 2, 3] {
        run(size, "all").succeeded(size);
    }
}

#[test]
fn a_process_without_a_launcher_is_one_rank() {
    wait(start(Command::new(exercise()).arg("all"))).succeeded(1);
}

#[test]
fn a_killed_rank_ends_the_job() {
    for size in [2, 3] {
        run(size, "kill").failed_within(SOON).says("exited on signal 9");
    }
}

#[test]
fn a_panicking_rank_ends_the_job() {
    run(3, "panic").failed_within(SOON).says("on purpose");
}

#[test]
fn a_sleeping_rank_is_named_by_all_others() {
    for size in [2, 3] {
        let ended = run(size, "sleep");
        ended.failed_within(SOON);
        for rank in 0..size - 1 {
            let message = format!(
                "rank {} of {size} did not reach broadcast (call {}) within 3 s of rank {rank}; it is dead, cut off or stuck",
                size - 1,
                number(&ended.output),
            );
            ended.says(&message);
        }
    }
}

/// The number of the call that the output names first.
fn number(output: &str) -> &str {
    output.split_once("(call ").and_then(|(_, rest)| rest.split_once(')')).map_or("?", |(number, _)| number)
}

#[test]
fn ranks_in_different_calls_are_told_both() {
    for size in [2, 3] {
        let ended = run(size, "differ");
        ended.failed_within(SOON);
        let last = size - 1;
        for rank in 0..last {
            ended.says(&format!(
                "rank {rank} of {size} is in all_reduce (Sum of 7 f64) (call 1), but rank {last} is in broadcast from rank 0"
            ));
        }
        ended.says(&format!(
            "rank {last} of {size} is in broadcast from rank 0 (call 1), but rank 0 is in all_reduce (Sum of 7 f64)"
        ));
    }
}
