//! [`CollectiveError`]: why a collective call failed, which ranks are to blame, and what to do.

use std::time::Duration;

/// Why a collective call failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// Ranks did not come to a call in time.
    #[error("{}", timed_out(call, *number, *waited, missing, *answered, *rank, *size))]
    TimedOut {
        /// The function.
        call: String,
        /// Which of this rank's calls it was, from 1.
        number: u64,
        /// For how long this rank waited.
        waited: Duration,
        /// The ranks that gave no sign of life. Empty where all did, and where the engine cannot tell.
        missing: Vec<usize>,
        /// How many of the others gave one.
        answered: usize,
        /// This rank.
        rank: usize,
        /// The number of ranks.
        size: usize,
    },
    /// Ranks left, or gave up, before a call.
    #[error(
        "{} of {size} left before {call} (call {number}, on rank {rank}): {reason}; look for the first error in its log, then start the job again with --resume",
        ranks(lost)
    )]
    Lost {
        /// The function.
        call: String,
        /// Which of this rank's calls it was, from 1.
        number: u64,
        /// The ranks that left.
        lost: Vec<usize>,
        /// How that is known.
        reason: String,
        /// This rank.
        rank: usize,
        /// The number of ranks.
        size: usize,
    },
    /// Ranks made different calls.
    #[error(
        "rank {rank} of {size} is in {call} (call {number}), but {}: the ranks run different programs or options, or this is a fault of the program",
        differing(others)
    )]
    Mismatch {
        /// This rank's call, with type, length and root.
        call: String,
        /// Which of this rank's calls it was, from 1.
        number: u64,
        /// The ranks whose call differs, and what it is.
        others: Vec<(usize, String)>,
        /// This rank.
        rank: usize,
        /// The number of ranks.
        size: usize,
    },
    /// The engine failed.
    #[error(
        "{engine} failed in {call} on rank {rank} of {size}: {message} (code {code}); start the job again with --resume"
    )]
    Engine {
        /// MPI, NCCL or CUDA.
        engine: &'static str,
        /// The engine's function.
        call: String,
        /// The engine's number for the error.
        code: i32,
        /// The engine's words for it.
        message: String,
        /// This rank.
        rank: usize,
        /// The number of ranks.
        size: usize,
    },
    /// The engine cannot be started here.
    #[error("{engine} cannot be used: {reason}")]
    Unavailable {
        /// MPI, NCCL or CUDA.
        engine: &'static str,
        /// Why, and what helps.
        reason: String,
    },
    /// The ranks did not find each other at the start.
    #[error("rank {rank} of {size} found no team at {address}: {problem}")]
    Rendezvous {
        /// Where they were to meet.
        address: String,
        /// What went wrong, and what to do.
        problem: String,
        /// The ranks that did not come, as far as this rank knows.
        missing: Vec<usize>,
        /// This rank.
        rank: usize,
        /// The number of ranks.
        size: usize,
    },
}

/// "rank 2" or "ranks 1, 2 and 5".
pub(crate) fn ranks(ranks: &[usize]) -> String {
    match ranks {
        [] => "no rank".into(),
        [one] => format!("rank {one}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            format!("ranks {} and {last}", first.join(", "))
        }
    }
}

fn timed_out(
    call: &str,
    number: u64,
    waited: Duration,
    missing: &[usize],
    answered: usize,
    rank: usize,
    size: usize,
) -> String {
    let seconds = waited.as_secs_f64().round();
    if missing.is_empty() {
        let why = if answered + 1 == size {
            "every rank answers, but the data does not get through; look at the network"
        } else {
            "a rank is dead, cut off or stuck, and which one only the logs of the others can tell"
        };
        return format!(
            "rank {rank} of {size} waited {seconds} s in {call} (call {number}): {why}; start the job again with --resume"
        );
    }
    let they = if missing.len() == 1 { "it is" } else { "they are" };
    format!(
        "{} of {size} did not reach {call} (call {number}) within {seconds} s of rank {rank}; {they} dead, cut off or stuck: start the job again with --resume",
        ranks(missing)
    )
}

fn differing(others: &[(usize, String)]) -> String {
    let each: Vec<String> = others.iter().map(|(rank, call)| format!("rank {rank} is in {call}")).collect();
    each.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed_out_with(missing: Vec<usize>, answered: usize) -> String {
        let call = "all_reduce".to_owned();
        let waited = Duration::from_secs(30);
        CollectiveError::TimedOut { call, number: 17, waited, missing, answered, rank: 0, size: 4 }
            .to_string()
    }

    #[test]
    fn a_time_out_names_the_ranks_and_the_way_on() {
        assert_eq!(
            timed_out_with(vec![2], 2),
            "rank 2 of 4 did not reach all_reduce (call 17) within 30 s of rank 0; it is dead, cut off or stuck: start the job again with --resume"
        );
        assert!(timed_out_with(vec![1, 2, 3], 0).starts_with("ranks 1, 2 and 3 of 4 did not reach"));
        assert!(timed_out_with(Vec::new(), 3).contains("every rank answers"));
        assert!(timed_out_with(Vec::new(), 0).contains("only the logs of the others"));
    }

    #[test]
    fn a_mismatch_names_both_calls() {
        let others = vec![(1, "barrier".to_owned())];
        let call = "broadcast from rank 0".to_owned();
        let message = CollectiveError::Mismatch { call, number: 3, others, rank: 0, size: 2 }.to_string();
        assert!(message.starts_with(
            "rank 0 of 2 is in broadcast from rank 0 (call 3), but rank 1 is in barrier: the ranks run"
        ));
    }
}
