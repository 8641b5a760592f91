//! [`Metrics`]: what the server has done and is doing, in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How a chat request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With an answer.
    Answered,
    /// For its content.
    Refused,
    /// For want of a place.
    Busy,
    /// The client went away.
    Abandoned,
    /// By the server's fault.
    Failed,
}

const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Answered, "answered"),
    (Outcome::Refused, "refused"),
    (Outcome::Busy, "busy"),
    (Outcome::Abandoned, "abandoned"),
    (Outcome::Failed, "failed"),
];

/// Upper bounds of the histogram of seconds.
const SECONDS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Counters and gauges.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: [AtomicU64; OUTCOMES.len()],
    pub(crate) running: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    seconds: [AtomicU64; SECONDS.len()],
    microseconds: AtomicU64,
}

impl Metrics {
    /// Everything, with how many requests are waiting now, arriving and being prepared included.
    pub(crate) fn render(&self, waiting: usize) -> String {
        let mut out = String::new();
        let mut say = |name: &str, kind: &str, help: &str, lines: &[(String, String)]| {
            let _ = writeln!(out, "# HELP lmm_serve_{name} {help}\n# TYPE lmm_serve_{name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(out, "lmm_serve_{name}{labels} {value}");
            }
        };
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let one = |value: u64| vec![(String::new(), value.to_string())];
        let requests: Vec<_> = OUTCOMES
            .iter()
            .zip(&self.requests)
            .map(|((_, name), count)| (format!("{{outcome=\"{name}\"}}"), read(count).to_string()))
            .collect();
        say("requests_total", "counter", "Chat requests that have ended, by how.", &requests);
        say(
            "waiting",
            "gauge",
            "Requests that wait for the model, those that arrive or are prepared included.",
            &one(waiting as u64),
        );
        say(
            "running",
            "gauge",
            "Rows of the running batch that are still writing.",
            &one(read(&self.running)),
        );
        say("batches_total", "counter", "Batches begun.", &one(read(&self.batches)));
        say("steps_total", "counter", "Forward passes.", &one(read(&self.steps)));
        say("prompt_tokens_total", "counter", "Tokens of prompts read.", &one(read(&self.prompt_tokens)));
        let tokens = one(read(&self.completion_tokens));
        say("completion_tokens_total", "counter", "Tokens written.", &tokens);
        let count: u64 = self.requests.iter().map(read).sum();
        let mut seconds: Vec<_> = SECONDS
            .iter()
            .zip(&self.seconds)
            .map(|(bound, count)| (format!("_bucket{{le=\"{bound}\"}}"), read(count).to_string()))
            .collect();
        seconds.push(("_bucket{le=\"+Inf\"}".to_owned(), count.to_string()));
        seconds.push(("_sum".to_owned(), (read(&self.microseconds) as f64 / 1e6).to_string()));
        seconds.push(("_count".to_owned(), count.to_string()));
        say("request_seconds", "histogram", "From the head of a request to its end.", &seconds);
        out
    }

    fn ended(&self, outcome: Outcome, took: Duration) {
        for ((known, _), count) in OUTCOMES.iter().zip(&self.requests) {
            if *known == outcome {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.microseconds.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        for (bound, count) in SECONDS.iter().zip(&self.seconds) {
            if took.as_secs_f64() <= *bound {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A request under way. One that is dropped before it has ended was abandoned.
#[derive(Debug)]
pub(crate) struct Ticket {
    metrics: Arc<Metrics>,
    started: Instant,
    outcome: Outcome,
}

impl Ticket {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, started: Instant::now(), outcome: Outcome::Abandoned }
    }

    /// Counts it as ended in this way.
    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.metrics.ended(self.outcome, self.started.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prometheus_reads() {
        let metrics = Arc::new(Metrics::default());
        Ticket::new(metrics.clone()).end(Outcome::Answered);
        drop(Ticket::new(metrics.clone()));
        metrics.ended(Outcome::Busy, Duration::from_secs(3));
        metrics.running.store(4, Ordering::Relaxed);
        let text = metrics.render(7);
        for line in [
            "# TYPE lmm_serve_requests_total counter",
            "lmm_serve_requests_total{outcome=\"answered\"} 1",
            "lmm_serve_requests_total{outcome=\"abandoned\"} 1",
            "lmm_serve_requests_total{outcome=\"failed\"} 0",
            "lmm_serve_waiting 7",
            "lmm_serve_running 4",
            "lmm_serve_request_seconds_bucket{le=\"0.05\"} 2",
            "lmm_serve_request_seconds_bucket{le=\"2.5\"} 2",
            "lmm_serve_request_seconds_bucket{le=\"10\"} 3",
            "lmm_serve_request_seconds_bucket{le=\"+Inf\"} 3",
            "lmm_serve_request_seconds_count 3",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
    }
}
