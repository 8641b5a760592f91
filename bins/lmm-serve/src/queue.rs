//! [`Queue`]: prepared requests that wait for the model, and which of them run together.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use lmm_hooks::GenerationOptions;
use lmm_prep::Inputs;
use steering::Plan;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use crate::problem::Problem;
use crate::row::Event;

/// A request that is ready for the model.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) inputs: Inputs,
    pub(crate) options: GenerationOptions,
    pub(crate) stops: Vec<String>,
    pub(crate) steering: Plan,
    /// Where its answer goes; closed once the client has left.
    pub(crate) events: UnboundedSender<Event>,
    /// Of the server's memory, given back when it runs.
    pub(crate) permits: Vec<OwnedSemaphorePermit>,
}

/// How much runs at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    /// Rows.
    pub(crate) rows: usize,
    /// Tokens of all rows, padding and room for the answers included: what the key-value cache holds.
    pub(crate) tokens: usize,
}

/// Requests in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Job>,
    closed: Option<Closed>,
}

/// Why nothing runs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The server ends; another may take its place.
    ShuttingDown,
    /// The model's thread has ended by itself.
    Gone,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, or answers it if nothing runs any more.
    pub(crate) fn push(&self, job: Job) {
        let mut state = self.lock();
        if let Some(reason) = state.closed {
            turn_away(&job, reason);
            return;
        }
        state.waiting.push_back(job);
        self.changed.notify_one();
    }

    /// Whether nothing runs any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Takes nothing more, and answers those who wait. The first reason counts.
    pub(crate) fn close(&self, reason: Closed) {
        let mut state = self.lock();
        let reason = *state.closed.get_or_insert(reason);
        state.waiting.drain(..).for_each(|job| turn_away(&job, reason));
        self.changed.notify_all();
    }

    /// Waits for requests and gives those that run next: the first in line, and behind it all that are steered alike, up
    /// to the limits. Requests whose client has left are dropped. `None` once closed.
    pub(crate) fn take(&self, limits: BatchLimits) -> Option<Vec<Job>> {
        let mut state = self.lock();
        loop {
            if state.closed.is_some() {
                return None;
            }
            state.waiting.retain(|job| !job.events.is_closed());
            if let Some(first) = state.waiting.pop_front() {
                let mut batch = take_along(first, &mut state.waiting, limits);
                for job in &mut batch {
                    job.permits.clear();
                }
                return Some(batch);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn turn_away(job: &Job, reason: Closed) {
    let problem = match reason {
        Closed::ShuttingDown => Problem::busy("the server is shutting down"),
        Closed::Gone => Problem::gone(),
    };
    // Its client may have left.
    let _ = job.events.send(Event::Failed(problem));
}

fn take_along(first: Job, waiting: &mut VecDeque<Job>, limits: BatchLimits) -> Vec<Job> {
    let mut prompt = first.inputs.input_ids.len();
    let mut answer = first.options.max_new_tokens;
    let mut batch = vec![first];
    let mut index = 0;
    while index < waiting.len() && batch.len() < limits.rows {
        let job = &waiting[index];
        let longest = prompt.max(job.inputs.input_ids.len());
        let most = answer.max(job.options.max_new_tokens);
        let fits = (batch.len() + 1).saturating_mul(longest + most) <= limits.tokens;
        if fits && job.steering == batch[0].steering {
            (prompt, answer) = (longest, most);
            batch.extend(waiting.remove(index));
        } else {
            index += 1;
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lmm_prep::TokenLayout;
    use steering::{HookPoint, Steerable};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    fn job(prompt: usize, answer: usize, steered: Option<f32>) -> (Job, UnboundedReceiver<Event>) {
        let layout = TokenLayout { images: Vec::new(), n_tokens: prompt };
        let inputs = Inputs { input_ids: vec![1; prompt], images: Vec::new(), layout, turns: Vec::new() };
        let asked = steered.map(|value| ("0".to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>();
        let steerable = Steerable::new(BTreeMap::from([(HookPoint::layer(0), 1)]), f32::MAX);
        let steering = crate::steer::of_request(&steerable, &asked).unwrap();
        let (events, answers) = unbounded_channel();
        let options = GenerationOptions::greedy(answer, Vec::new());
        (Job { inputs, options, stops: Vec::new(), steering, events, permits: Vec::new() }, answers)
    }

    fn lengths(queue: &Queue, rows: usize, tokens: usize) -> Option<Vec<usize>> {
        let batch = queue.take(BatchLimits { rows, tokens })?;
        Some(batch.iter().map(|job| job.inputs.input_ids.len()).collect())
    }

    #[test]
    fn those_who_are_steered_alike_and_fit_run_together_in_order() {
        let queue = Queue::default();
        let mut answers = Vec::new();
        let mut add = |prompt, answer, steered| {
            let (job, answer) = job(prompt, answer, steered);
            queue.push(job);
            answers.push(answer);
        };
        // 50 would make it 3 rows of 60; 11 has a steering of its own.
        for (prompt, answer, steered) in [
            (10, 5, None),
            (11, 5, Some(1.0)),
            (12, 9, None),
            (50, 10, None),
            (13, 5, None),
            (14, 5, None),
            (15, 5, Some(1.0)),
        ] {
            add(prompt, answer, steered);
        }
        assert_eq!(lengths(&queue, 3, 100).unwrap(), [10, 12, 13]);
        assert_eq!(lengths(&queue, 3, 100).unwrap(), [11, 15]);
        // One row runs whatever it takes.
        assert_eq!(lengths(&queue, 3, 20).unwrap(), [50]);
        assert_eq!(lengths(&queue, 3, 20).unwrap(), [14]);
    }

    #[test]
    fn who_left_is_dropped_and_who_waits_at_the_end_is_told() {
        let queue = Queue::default();
        let (gone, answer) = job(1, 1, None);
        drop(answer);
        let (there, _answer) = job(2, 1, None);
        queue.push(gone);
        queue.push(there);
        assert_eq!(lengths(&queue, 9, 100).unwrap(), [2]);
        let ((waits, mut first), (late, mut second)) = (job(3, 1, None), job(4, 1, None));
        queue.push(waits);
        queue.close(Closed::ShuttingDown);
        // As the model's thread does when it ends.
        queue.close(Closed::Gone);
        queue.push(late);
        for answer in [&mut first, &mut second] {
            assert!(
                matches!(answer.try_recv(), Ok(Event::Failed(problem)) if problem.message.contains("shutting down"))
            );
        }
        assert_eq!(lengths(&queue, 9, 100), None);
    }

    /// Coming back helps nobody then, so that it is no 503.
    #[test]
    fn who_comes_to_a_server_whose_model_is_gone_is_told() {
        let queue = Queue::default();
        let ((waits, mut first), (late, mut second)) = (job(3, 1, None), job(4, 1, None));
        queue.push(waits);
        queue.close(Closed::Gone);
        queue.push(late);
        for answer in [&mut first, &mut second] {
            let Ok(Event::Failed(problem)) = answer.try_recv() else { panic!("no answer") };
            assert!(problem.status == 500 && problem.message.contains("gone"), "{problem:?}");
        }
    }
}
