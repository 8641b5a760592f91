//! [`Engine`]: the one thread that owns the model and runs batch after batch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use lmm_hooks::GenerationOptions;
use lmm_prep::Inputs;
use model_kit::OpenModel;
use steering::{Plan, Steerer};

use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::queue::{BatchLimits, Closed, Job, Queue};
use crate::row::{Event, Row};

/// What the thread owns.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) model: OpenModel,
    pub(crate) steerer: Steerer,
    pub(crate) limits: BatchLimits,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Closes the queue when the thread ends, however it does, so that nobody waits for it.
struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(Closed::Gone);
    }
}

impl Engine {
    /// Starts the thread, which runs until the queue is closed.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub(crate) fn start(self) -> Result<JoinHandle<()>> {
        let name = "model".to_owned();
        let run = move || {
            let _closes = CloseOnDrop(self.queue.clone());
            while let Some(jobs) = self.queue.take(self.limits) {
                self.serve(&jobs);
            }
        };
        std::thread::Builder::new().name(name).spawn(run).context("cannot start the model's thread")
    }

    /// Answers a batch. Whatever goes wrong, panics of libtorch included, is the answer of its requests and of no others.
    fn serve(&self, jobs: &[Job]) {
        self.metrics.batches.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(rows = jobs.len(), "a batch begins");
        let reason = match catch_unwind(AssertUnwindSafe(|| self.run(jobs))) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(message_of(&*panic)),
        };
        self.metrics.running.store(0, Ordering::Relaxed);
        let Some(reason) = reason else { return };
        tracing::error!(rows = jobs.len(), "a batch failed: {reason}");
        for job in jobs {
            // To those that were already answered it says nothing: their receivers are done.
            let _ =
                job.events.send(Event::Failed(Problem::own("the model failed; the server's log says how")));
        }
    }

    fn run(&self, jobs: &[Job]) -> Result<()> {
        let OpenModel { network, processor, .. } = &self.model;
        let inputs: Vec<&Inputs> = jobs.iter().map(|job| &job.inputs).collect();
        let batch = self.model.prompts(&inputs)?;
        let options: Vec<GenerationOptions> = jobs.iter().map(|job| job.options.clone()).collect();
        let plans: Vec<Plan> = jobs.iter().map(|job| job.steering.clone()).collect();
        let steering = self.steerer.steering(&plans)?;
        let mut hooks = steering.hooks();
        let mut generation = network.start_generation(&batch, &options, &mut hooks)?;
        let mut rows: Vec<Row> = jobs.iter().map(|job| Row::new(processor, job)).collect();
        let count = |counter: &std::sync::atomic::AtomicU64, by: usize| {
            counter.fetch_add(by as u64, Ordering::Relaxed);
        };
        count(&self.metrics.prompt_tokens, batch.lengths().iter().sum());
        self.metrics.running.store(rows.len() as u64, Ordering::Relaxed);
        while let Some(tokens) = generation.step()? {
            count(&self.metrics.steps, 1);
            for (row, token) in tokens.iter().enumerate() {
                let Some(token) = token else { continue };
                count(&self.metrics.completion_tokens, 1);
                let goes_on = rows[row].accept(token)? && !rows[row].is_abandoned();
                if !goes_on {
                    generation.end(row);
                }
            }
            let running = (0..rows.len()).filter(|&row| !generation.has_ended(row)).count();
            self.metrics.running.store(running as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model_kit::TorchArgs;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    fn job(engine: &Engine, ids: Option<Vec<u32>>, steering: Plan) -> (Job, UnboundedReceiver<Event>) {
        let mut inputs = engine.model.processor.prepare("how many shapes are there ?", &[]).unwrap();
        if let Some(ids) = ids {
            inputs.layout.n_tokens = ids.len();
            inputs.input_ids = ids;
        }
        let (events, answers) = unbounded_channel();
        let options = GenerationOptions::greedy(4, vec![2]);
        (Job { inputs, options, stops: Vec::new(), steering, events, permits: Vec::new() }, answers)
    }

    fn last(answers: &mut UnboundedReceiver<Event>) -> Event {
        std::iter::from_fn(|| answers.try_recv().ok()).last().unwrap()
    }

    /// An error of the model's and a panic in libtorch: each is the answer of its own batch, and the next batch runs.
    #[test]
    fn a_batch_that_fails_harms_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = sae_core::SaeTensors {
            encoder_weight: vec![0.1; 128 * 2],
            encoder_bias: vec![0.0; 2],
            decoder_weight: vec![0.1; 128 * 2],
            decoder_bias: vec![0.0; 128],
            skip_weight: None,
        };
        let sae = sae_core::Sae::from_parts(sae_core::SaeConfig::new(128, 2, 1), tensors).unwrap();
        sae.save(&folder.path().join("model.layers.2"), sae_core::WeightDtype::F32).unwrap();
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes-lmm-s");
        let model = OpenModel::open(assets.to_str().unwrap(), TorchArgs::default()).unwrap();
        let steerer = crate::steer::load(folder.path().to_str().unwrap(), &model.network).unwrap();
        let limits = BatchLimits { rows: 4, tokens: 1000 };
        let (queue, metrics) = Default::default();
        let engine = Engine { model, steerer, limits, queue, metrics };
        // More room for an answer than there is memory in the world.
        let endless = GenerationOptions::greedy(1 << 40, vec![2]);
        let (broken, mut first) = job(&engine, Some(vec![1, 9999]), Plan::default());
        let (beside, mut second) = job(&engine, None, Plan::default());
        let (panics, mut third) = job(&engine, None, Plan::default());
        let panics = Job { options: endless, ..panics };
        let (good, mut fourth) = job(&engine, None, Plan::default());
        engine.serve(&[broken, beside]);
        engine.serve(&[panics]);
        engine.serve(&[good]);
        for answers in [&mut first, &mut second, &mut third] {
            let Event::Failed(problem) = last(answers) else { panic!("an answer after all") };
            assert_eq!(problem.status, 500);
        }
        assert!(matches!(last(&mut fourth), Event::End(_)));
        assert_eq!(engine.metrics.batches.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_gone() {
        let queue = Arc::new(Queue::default());
        let own = queue.clone();
        let thread = std::thread::spawn(move || {
            let _closes = CloseOnDrop(own);
            panic!("outside any batch");
        });
        assert!(thread.join().is_err());
        assert!(queue.is_closed());
    }
}
