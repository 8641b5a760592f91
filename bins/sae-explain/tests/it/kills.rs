//! A run that is killed again and again.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pipeline_tests::chat::{Reply, Server};

use crate::support::{COMMON, Scratch, WIDTH, images};

/// How often the run is killed, unless `SAE_EXPLAIN_KILLS` says otherwise.
const KILLS: usize = 10;
const CONCURRENCY: usize = 3;

/// How many requests are answered, and in which round: the server holds the others, so that how fast anything is plays no part.
#[derive(Default)]
struct Gate {
    round: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Gate {
    /// Begins a round, in which `answers` requests are answered. Those of an earlier round are not any more.
    fn begin(&self, round: usize, answers: usize) {
        *self.round.lock().unwrap() = (round, answers);
        self.changed.notify_all();
    }

    /// Returns when a request that comes now is to be answered, or its sender is dead.
    fn pass(&self) {
        let mut state = self.round.lock().unwrap();
        let round = state.0;
        while state.0 == round && state.1 == 0 {
            state = self.changed.wait(state).unwrap();
        }
        if state.0 == round {
            state.1 -= 1;
        }
    }
}

#[test]
fn kills_lose_and_repeat_at_most_what_is_on_its_way() {
    let kills = std::env::var("SAE_EXPLAIN_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let scratch = Scratch::new();
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let server = Server::start(move |_, _| {
        held.pass();
        Reply::answer("[EXPLANATION]: x")
    });
    let run = format!("{} --concurrency {CONCURRENCY} --resume", images(&server.endpoint()));
    let mut answers = 0;
    for kill in 0..kills {
        // Some kills come upon an answer, but the features outlast them all.
        let answer = usize::from(kill % 3 > 0 && answers + CONCURRENCY + 1 < COMMON as usize);
        answers += answer;
        gate.begin(kill + 1, answer);
        let before = server.count();
        let mut child = scratch.start(&run);
        // At any moment: before the first request, between a request and its line, while the line is written.
        while server.count() == before && kill % 7 > 0 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis((kill as u64 * 37) % 100));
        assert!(child.try_wait().unwrap().is_none(), "the run of kill {kill} ended by itself");
        let _ = child.kill();
        child.wait().unwrap();
        // Whatever there is, is whole.
        if scratch.path("out/run.json").exists() {
            assert!(scratch.json("out/run.json")["settings"].is_object());
        }
    }
    gate.begin(kills + 1, usize::MAX);
    scratch.succeeds(&run);
    let mut lines: BTreeMap<u32, usize> = BTreeMap::new();
    for record in scratch.records("out/explanations.jsonl") {
        *lines.entry(record.feature.0).or_default() += 1;
    }
    assert!(lines.values().all(|&n| n == 1) && lines.keys().copied().eq(0..WIDTH), "{lines:?}");
    let repeated = server.count() - COMMON as usize;
    println!(
        "{kills} kills, {answers} answers before them, {repeated} requests repeated, at most {} allowed",
        kills * CONCURRENCY
    );
    assert!(repeated <= kills * CONCURRENCY, "{repeated} repeated by {kills} kills");
    assert_eq!(scratch.json("out/model_layers_1.json").as_array().unwrap().len(), COMMON as usize);
}
