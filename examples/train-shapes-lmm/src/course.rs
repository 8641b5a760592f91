//! The training loop: warm the vision tower up on what each patch shows, then learn to answer.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use lmm_hooks::{Batch, Hooks, LlavaNext, PaddingSide};
use lmm_prep::{Inputs, LlavaNextConfig, Processor};
use tch::{Device, Kind, Tensor};
use torch_nn::Weights;

use crate::lessons::Lesson;
use crate::model_folder::{self, Size};
use crate::packing;
use crate::parameters::Parameters;
use crate::patch_words::PatchWordScores;

/// Steps over which the learning rate rises.
const RISE: f64 = 150.0;
/// Steps between two lines of the log, and between two saved states.
pub(crate) const LOG_EVERY: usize = 50;
pub(crate) const SAVE_EVERY: usize = 250;

/// What every recipe lets be chosen.
#[derive(clap::Args, Debug)]
pub(crate) struct CourseArgs {
    /// Highest learning rate of both phases
    #[arg(long, default_value_t = 1.5e-3)]
    pub(crate) learning_rate: f64,
    /// Seed of parameters and question order
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
    /// Compute in float32 instead of bfloat16
    #[arg(long)]
    pub(crate) full_precision: bool,
    /// Begin with the parameters of this model folder instead of random ones
    #[arg(long)]
    pub(crate) start_from: Option<PathBuf>,
}

/// How much patches count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PatchWeights {
    /// Of the patch loss while answering is learnt; it keeps what the warm-up found.
    pub(crate) loss: f64,
    /// Of a patch that shows no object, beside one that does.
    pub(crate) background: f64,
}

/// A model being trained.
pub(crate) struct Course {
    out: PathBuf,
    config: LlavaNextConfig,
    parameters: Parameters,
    patch_words: PatchWordScores,
    patch_loss: f64,
    kind: Kind,
    learning_rate: f64,
    started: Instant,
}

impl Course {
    /// Writes the model folder but for its weights, and starts these.
    pub(crate) fn new(size: Size, weights: PatchWeights, out: &Path, args: &CourseArgs) -> Result<Self> {
        model_folder::write(out, size)?;
        let config = LlavaNextConfig::load(out)?;
        let mut parameters = Parameters::new(&LlavaNext::parameter_shapes(&config), args.seed as i64)?;
        if let Some(folder) = &args.start_from {
            parameters.load(folder)?;
        }
        let vocabulary = model_folder::words(size);
        eprintln!("{} parameters, {} words", parameters.count(), vocabulary.len());
        Ok(Self {
            out: out.to_owned(),
            config,
            parameters,
            patch_words: PatchWordScores::new(&vocabulary, weights.background),
            patch_loss: weights.loss,
            kind: if args.full_precision { Kind::Float } else { Kind::BFloat16 },
            learning_rate: args.learning_rate,
            started: Instant::now(),
        })
    }

    /// Teaches the tower what patches show; the language model does not run.
    pub(crate) fn warm_up(
        &mut self,
        steps: usize,
        mut lesson: impl FnMut(usize) -> Result<Lesson>,
    ) -> Result<()> {
        let mut log = Log::new("tower");
        for step in 0..steps {
            let lesson = lesson(step)?;
            let model = StepModel::new(&self.config, &self.parameters, self.kind)?;
            let prompts: Vec<&Inputs> = lesson.prompts.iter().collect();
            let batch = Batch::new(&prompts, 0, Device::Cpu, self.kind, PaddingSide::Right)?;
            let (embeddings, _) = model.run(&batch, Until::Embeddings)?;
            let (loss, accuracy) = self.patch_words.loss(&lesson, &embeddings, &model.words);
            let progress = step as f64 / steps as f64;
            self.parameters.step(&loss, self.learning_rate * rise(step) * (1.0 - 0.8 * progress));
            log.add(&[("loss", loss.double_value(&[])), ("patches right", accuracy)]);
            log.print_every(LOG_EVERY, step + 1, steps, self.started);
        }
        self.parameters.save(&self.out)
    }

    /// Teaches the whole model to answer.
    pub(crate) fn answer(
        &mut self,
        processor: &Processor,
        steps: usize,
        mut lesson: impl FnMut(usize) -> Result<Lesson>,
    ) -> Result<()> {
        let mut log = Log::new("answers");
        for step in 0..steps {
            let lesson = lesson(step)?;
            let model = StepModel::new(&self.config, &self.parameters, self.kind)?;
            let packed = packing::pack(&lesson, processor.tokenizer(), self.kind)?;
            let (embeddings, hidden) = model.run(&packed.batch, Until::End)?;
            let hidden = hidden.context("the forward pass ran to its end")?;
            let (patch_loss, accuracy) = self.patch_words.loss(&lesson, &embeddings, &model.words);
            let chosen = hidden.flatten(0, 1).index_select(0, &packed.predicting);
            let logits = model.model.lm_head(&chosen).to_kind(Kind::Float);
            let answer_loss = logits.cross_entropy_for_logits(&packed.targets);
            let right =
                logits.argmax(-1, false).eq_tensor(&packed.targets).to_kind(Kind::Float).mean(Kind::Float);
            let loss = &answer_loss + self.patch_loss * patch_loss;
            let progress = step as f64 / steps as f64;
            self.parameters.step(&loss, self.learning_rate * rise(step) * (1.0 - 0.95 * progress));
            log.add(&[
                ("loss", answer_loss.double_value(&[])),
                ("tokens right", right.double_value(&[])),
                ("patches right", accuracy),
            ]);
            log.print_every(LOG_EVERY, step + 1, steps, self.started);
            if (step + 1) % SAVE_EVERY == 0 {
                self.parameters.save(&self.out)?;
            }
        }
        self.parameters.save(&self.out)
    }
}

/// How far a forward pass goes.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    Embeddings,
    End,
}

/// The model of one step: made of the parameters as they are now, in the dtype of the arithmetic.
struct StepModel {
    model: LlavaNext,
    /// The word embeddings, `[vocabulary, hidden]`.
    words: Tensor,
}

impl StepModel {
    fn new(config: &LlavaNextConfig, parameters: &Parameters, kind: Kind) -> Result<Self> {
        let tensors = parameters.cast(kind);
        let words = tensors
            .iter()
            .find(|(name, _)| name.ends_with("embed_tokens.weight"))
            .map(|(_, tensor)| tensor.shallow_clone())
            .context("the model has no word embeddings")?;
        Ok(Self { model: LlavaNext::from_weights(config.clone(), &Weights::from_tensors(tensors))?, words })
    }

    /// The prompts as the language model gets them, `[prompts, tokens, hidden]`, and the hidden states after the last norm
    /// if the pass went that far.
    fn run(&self, batch: &Batch, until: Until) -> Result<(Tensor, Option<Tensor>)> {
        let embeddings = RefCell::new(None);
        let mut hooks = Hooks::new().read("model.embed_tokens".parse()?, |_, tensor| {
            *embeddings.borrow_mut() = Some(tensor.shallow_clone());
        });
        if until == Until::Embeddings {
            hooks = hooks.stop_after_last();
        }
        let hidden = self.model.last_hidden(batch, &mut hooks)?;
        drop(hooks);
        Ok((embeddings.into_inner().context("no embeddings were seen")?, hidden))
    }
}

/// The share of the learning rate that the first steps have.
pub(crate) fn rise(step: usize) -> f64 {
    ((step + 1) as f64 / RISE).min(1.0)
}

/// Means of what was measured since the last line.
pub(crate) struct Log {
    phase: &'static str,
    sums: Vec<(&'static str, f64)>,
    steps: usize,
}

impl Log {
    pub(crate) fn new(phase: &'static str) -> Self {
        Self { phase, sums: Vec::new(), steps: 0 }
    }

    pub(crate) fn add(&mut self, values: &[(&'static str, f64)]) {
        if self.sums.is_empty() {
            self.sums = values.iter().map(|&(name, _)| (name, 0.0)).collect();
        }
        for (sum, value) in self.sums.iter_mut().zip(values) {
            sum.1 += value.1;
        }
        self.steps += 1;
    }

    pub(crate) fn print_every(&mut self, every: usize, step: usize, of: usize, started: Instant) {
        if self.steps < every && step < of {
            return;
        }
        let values: Vec<String> =
            self.sums.iter().map(|(name, sum)| format!("{name} {:.4}", sum / self.steps as f64)).collect();
        eprintln!(
            "{:6.0} s  {} {step}/{of}  {}",
            started.elapsed().as_secs_f64(),
            self.phase,
            values.join("  ")
        );
        *self = Self::new(self.phase);
    }
}
