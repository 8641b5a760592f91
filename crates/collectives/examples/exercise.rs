//! What the MPI tests run on every rank: each call checked against arithmetic by hand, and the ways in which ranks fail.
//!
//! `mpirun -n 3 exercise MODE [SECONDS]`, MODE being one of `all`, `steps`, `kill`, `sleep`, `differ`, `panic`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it reports to the test that runs it")]

use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use collectives::{Collective, CollectiveError, Mpi, NumbersMut, Reduction};

const TIMEOUT: Duration = Duration::from_secs(3);
/// Small, so that a few thousand numbers take several rounds, the last of them not full.
const ROUND_BYTES: usize = 1000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_else(|| "all".into());
    let seconds: f64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0.5);
    let start = Instant::now();
    let ranks = match Mpi::start_in_rounds(TIMEOUT, ROUND_BYTES) {
        Ok(ranks) => ranks,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(3);
        }
    };
    let rank = ranks.rank();
    let last = ranks.size() - 1;
    let result = match mode.as_str() {
        "all" => everything(&ranks),
        "steps" => steps(&ranks, Duration::from_secs_f64(seconds)),
        "kill" => {
            if rank == last {
                thread::spawn(move || {
                    thread::sleep(Duration::from_secs_f64(seconds));
                    Command::new("kill").args(["-9", &std::process::id().to_string()]).status()
                });
            }
            steps(&ranks, Duration::from_mins(1))
        }
        "sleep" => steps(&ranks, Duration::from_millis(100)).and_then(|()| {
            if rank == last {
                thread::sleep(Duration::from_mins(1));
            }
            ranks.broadcast(0, &mut vec![1; 5000])
        }),
        "differ" if rank == last => ranks.broadcast(0, &mut Vec::new()),
        "differ" => ranks.all_reduce(NumbersMut::F64(&mut [1.0; 7]), Reduction::Sum),
        "panic" if rank == last => panic!("on purpose"),
        "panic" => ranks.barrier(),
        other => {
            eprintln!("error: no mode {other:?}");
            return ExitCode::from(2);
        }
    };
    let waited = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            // One write per line: the ranks share a pipe.
            let line = format!("rank {rank} ok {:?}\n", ranks.traffic());
            print!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let again = ranks.barrier();
            assert_eq!(again.as_ref(), Err(&error), "later calls give the first error");
            let line = format!("rank {rank} failed after {waited:.1} s: {error}\n");
            eprint!("{line}");
            // The others' words should come out before the launcher ends them.
            thread::sleep(Duration::from_millis(500));
            ExitCode::from(3)
        }
    }
}

/// Sums in a loop, checked, until rank 0 says that `time` is over.
fn steps(ranks: &dyn Collective, time: Duration) -> Result<(), CollectiveError> {
    let start = Instant::now();
    let expected = (0..ranks.size()).sum::<usize>() as f32;
    for step in 0_u64.. {
        let mut numbers = vec![ranks.rank() as f32; 2000];
        ranks.all_reduce(NumbersMut::F32(&mut numbers), Reduction::Sum)?;
        assert!(numbers.iter().all(|number| *number == expected), "step {step}: {numbers:?}");
        let mut over = vec![u8::from(start.elapsed() >= time)];
        ranks.broadcast(0, &mut over)?;
        if over == [1] {
            println!("rank {} of {} made {} steps", ranks.rank(), ranks.size(), step + 1);
            break;
        }
    }
    Ok(())
}

/// Every call, type, length 0, uneven lengths, one round and several.
fn everything(ranks: &dyn Collective) -> Result<(), CollectiveError> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let mut sent = 0;
    let mut received = 0;
    for len in [0, 1, 125, 1000, 3001] {
        reductions(ranks, len)?;
        sent += len * (4 * 3 + 8 * 3 + 8 * 3 + 2);
    }
    if size > 1 {
        received += sent;
    } else {
        sent = 0;
    }

    // A sum whose order matters has the same bits everywhere.
    let mut numbers: Vec<f32> =
        (0..3001_i32).map(|i| 0.1 + 1e7 * (rank as f32) + (i as f32).sin() * 1e-3).collect();
    ranks.all_reduce(NumbersMut::F32(&mut numbers), Reduction::Sum)?;
    let own: Vec<u8> = numbers.iter().flat_map(|number| number.to_bits().to_le_bytes()).collect();
    let mut all = Vec::new();
    ranks.all_gather(&own, &mut all)?;
    assert!(all.chunks(own.len()).all(|other| other == own), "ranks have other bits");
    let mut not_a_number = [if rank == 0 { f32::NAN } else { rank as f32 }];
    ranks.all_reduce(NumbersMut::F32(&mut not_a_number), Reduction::Max)?;
    assert!(not_a_number[0].is_nan(), "{not_a_number:?}");
    if size > 1 {
        sent += 2 * own.len() + 4;
        received += own.len() + (size - 1) * own.len() + 4;
    }

    for unit in [0, 1, 700, 4000] {
        let part =
            |rank: usize| -> Vec<u8> { (0..unit * rank).map(|i| (i % 251) as u8 ^ (rank as u8)).collect() };
        let own = part(rank);
        let joined: Vec<u8> = (0..size).flat_map(part).collect();
        let lens: Vec<usize> = (0..size).map(|rank| unit * rank).collect();
        let mut all = vec![1; 10];
        assert_eq!(ranks.all_gather(&own, &mut all)?, lens);
        assert_eq!(all, joined);
        let others = joined.len() - own.len();
        sent += if size > 1 { own.len() } else { 0 };
        received += others;
        for root in 0..size {
            let mut all = vec![1; 10];
            let got = ranks.gather(root, &own, &mut all)?;
            if rank == root {
                assert_eq!((got, &all), (lens.clone(), &joined));
                received += others;
            } else {
                assert!(got.is_empty() && all.is_empty());
                sent += own.len();
            }
            let mut bytes = if rank == root { part(size) } else { vec![9; 3 * rank] };
            ranks.broadcast(root, &mut bytes)?;
            assert_eq!(bytes, part(size));
            if size > 1 && rank == root {
                sent += bytes.len();
            } else if size > 1 {
                received += bytes.len();
            }
        }
    }
    ranks.barrier()?;

    let traffic = ranks.traffic();
    assert_eq!(traffic.calls, (5 * 11 + 3 + 4 * (1 + 2 * size) + 1) as u64);
    assert_eq!((traffic.sent_bytes, traffic.received_bytes), (sent as u64, received as u64));
    Ok(())
}

/// 11 all-reduces of `len` elements.
fn reductions(ranks: &dyn Collective, len: usize) -> Result<(), CollectiveError> {
    let size = ranks.size();
    let value = |rank: usize, i: usize| ((i * 7 + rank * 13) % 101) as i64 - 50;
    let own: Vec<i64> = (0..len).map(|i| value(ranks.rank(), i)).collect();
    for reduction in [Reduction::Sum, Reduction::Max, Reduction::Min] {
        let expected: Vec<i64> = (0..len)
            .map(|i| {
                let values = (0..size).map(|rank| value(rank, i));
                let combined = match reduction {
                    Reduction::Sum => Some(values.sum()),
                    Reduction::Max => values.max(),
                    Reduction::Min => values.min(),
                };
                combined.unwrap_or_default()
            })
            .collect();
        let mut numbers = own.clone();
        ranks.all_reduce(NumbersMut::I64(&mut numbers), reduction)?;
        assert_eq!(numbers, expected, "{reduction:?} of i64");
        let mut numbers: Vec<f32> = own.iter().map(|number| *number as f32).collect();
        ranks.all_reduce(NumbersMut::F32(&mut numbers), reduction)?;
        assert!(numbers.iter().zip(&expected).all(|(a, b)| *a == *b as f32), "{reduction:?} of f32");
        let mut numbers: Vec<f64> = own.iter().map(|number| *number as f64 / 8.0).collect();
        ranks.all_reduce(NumbersMut::F64(&mut numbers), reduction)?;
        assert!(numbers.iter().zip(&expected).all(|(a, b)| *a == *b as f64 / 8.0), "{reduction:?} of f64");
        if reduction != Reduction::Sum {
            let mut numbers: Vec<u8> = own.iter().map(|number| (*number + 50) as u8).collect();
            ranks.all_reduce(NumbersMut::U8(&mut numbers), reduction)?;
            assert!(
                numbers.iter().zip(&expected).all(|(a, b)| i64::from(*a) == b + 50),
                "{reduction:?} of u8"
            );
        }
    }
    Ok(())
}
