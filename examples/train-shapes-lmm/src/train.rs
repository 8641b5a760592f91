//! The recipe: warm the vision tower up on what each patch shows, then learn to answer.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use lmm_hooks::{Batch, Hooks, LlavaNext, PaddingSide};
use lmm_prep::{Inputs, LlavaNextConfig, Processor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use shapes_world::{Colour, Shape};
use tch::{Device, Kind, Tensor};
use torch_nn::Weights;

use crate::model_folder::{self, Size};
use crate::packing;
use crate::parameters::Parameters;
use crate::scenes::{self, Canvases, SceneBatch};

/// Data-set seed of the training scenes; evaluation and the demo use others.
const TRAINING_SCENES: u64 = 1_000;
/// How much a patch of background counts beside one of an object.
const BACKGROUND_WEIGHT: f64 = 0.3;
/// Weight of the patch loss while answering is learnt; it keeps what the warm-up found.
const PATCH_LOSS: f64 = 0.3;
/// Sharpness of the patch classifier's cosine-like logits.
const TEMPERATURE: f64 = 4.0;
/// Share of a phase that sees square canvases only, whose sequences are shortest.
const SQUARE_SHARE: f64 = 0.15;
/// Steps over which the learning rate rises.
const RISE: f64 = 150.0;

/// What can be chosen on the command line.
#[derive(clap::Args, Debug)]
pub(crate) struct TrainArgs {
    /// Folder to write the model to
    #[arg(long, default_value = "assets/shapes-lmm-s")]
    pub(crate) out: std::path::PathBuf,
    /// Steps of the tower's warm-up
    #[arg(long, default_value_t = 700)]
    pub(crate) warm_steps: usize,
    /// Steps of question answering
    #[arg(long, default_value_t = 4500)]
    pub(crate) steps: usize,
    /// Scenes in a step of question answering
    #[arg(long, default_value_t = 24)]
    pub(crate) batch: usize,
    /// Highest learning rate of both phases
    #[arg(long, default_value_t = 2e-3)]
    pub(crate) learning_rate: f64,
    /// Seed of parameters and question order
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
    /// Compute in float32 instead of bfloat16
    #[arg(long)]
    pub(crate) full_precision: bool,
}

/// Trains a model and writes its folder; the weights are saved every 250 steps.
pub(crate) fn train(args: &TrainArgs) -> Result<()> {
    model_folder::write(&args.out, Size::SMALL)?;
    let processor = Arc::new(Processor::load(&args.out)?);
    let config = LlavaNextConfig::load(&args.out)?;
    let mut parameters = Parameters::new(&LlavaNext::parameter_shapes(&config), args.seed as i64)?;
    eprintln!("{} parameters, {} words", parameters.count(), model_folder::words().len());
    let kind = if args.full_precision { Kind::Float } else { Kind::BFloat16 };
    let labels = PatchLabels::new();
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let started = Instant::now();

    let mut log = Log::new("tower");
    let mut batches = Batches::new(&processor, args.warm_steps, 2 * args.batch)?;
    for step in 0..args.warm_steps {
        let batch = batches.next(step)?;
        let step_model = StepModel::new(&config, &parameters, kind)?;
        let prompts: Vec<&Inputs> = batch.prompts.iter().collect();
        let prompts = Batch::new(&prompts, 0, Device::Cpu, kind, PaddingSide::Right)?;
        let (features, _) = step_model.image_tokens(&prompts, &batch, Until::Embeddings)?;
        let (loss, accuracy) = labels.loss(&step_model, &features, &batch);
        let progress = step as f64 / args.warm_steps as f64;
        parameters.step(&loss, args.learning_rate * rise(step) * (1.0 - 0.8 * progress));
        log.add(&[("loss", loss.double_value(&[])), ("patches right", accuracy)]);
        log.print_every(50, step + 1, args.warm_steps, started);
    }
    parameters.save(&args.out)?;

    let mut log = Log::new("answers");
    let mut batches = Batches::new(&processor, args.steps, args.batch)?;
    for step in 0..args.steps {
        let batch = batches.next(step)?;
        let step_model = StepModel::new(&config, &parameters, kind)?;
        let packed = packing::pack(&batch.scenes, &batch.prompts, processor.tokenizer(), kind, &mut rng)?;
        let (features, hidden) = step_model.image_tokens(&packed.batch, &batch, Until::End)?;
        let hidden = hidden.context("the forward pass ran to its end")?;
        let (patch_loss, accuracy) = labels.loss(&step_model, &features, &batch);
        let chosen = hidden.flatten(0, 1).index_select(0, &packed.predicting);
        let logits = step_model.model.lm_head(&chosen).to_kind(Kind::Float);
        let answer_loss = logits.cross_entropy_for_logits(&packed.targets);
        let right =
            logits.argmax(-1, false).eq_tensor(&packed.targets).to_kind(Kind::Float).mean(Kind::Float);
        let loss = &answer_loss + PATCH_LOSS * patch_loss;
        let progress = step as f64 / args.steps as f64;
        parameters.step(&loss, args.learning_rate * rise(step) * (1.0 - 0.95 * progress));
        log.add(&[
            ("loss", answer_loss.double_value(&[])),
            ("tokens right", right.double_value(&[])),
            ("patches right", accuracy),
        ]);
        log.print_every(50, step + 1, args.steps, started);
        if (step + 1) % 250 == 0 {
            parameters.save(&args.out)?;
        }
    }
    parameters.save(&args.out)
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

    /// The image's tokens as the language model gets them, `[scenes, tokens, hidden]`, and the hidden states after the
    /// last norm if the pass went that far.
    fn image_tokens(
        &self,
        prompts: &Batch,
        batch: &SceneBatch,
        until: Until,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let embeddings = RefCell::new(None);
        let mut hooks = Hooks::new().read("model.embed_tokens".parse()?, |_, tensor| {
            *embeddings.borrow_mut() = Some(tensor.shallow_clone());
        });
        if until == Until::Embeddings {
            hooks = hooks.stop_after_last();
        }
        let hidden = self.model.last_hidden(prompts, &mut hooks)?;
        drop(hooks);
        let embeddings = embeddings.into_inner().context("no embeddings were seen")?;
        let span = batch.prompts[0].layout.images[0];
        Ok((embeddings.narrow(1, span.start as i64, span.n_tokens() as i64), hidden))
    }
}

fn rise(step: usize) -> f64 {
    ((step + 1) as f64 / RISE).min(1.0)
}

/// What each patch shows, scored against the word embeddings of the colours and shapes: the tower learns
/// to see, and to say it in the language model's own vocabulary.
struct PatchLabels {
    colour_words: Tensor,
    shape_words: Tensor,
}

impl PatchLabels {
    fn new() -> Self {
        let words = model_folder::words();
        let id = |word: &str| words.iter().position(|w| w == word).expect("a word of the vocabulary") as i64;
        let ids = |names: Vec<&str>| {
            Tensor::from_slice(&std::iter::once("background").chain(names).map(id).collect::<Vec<_>>())
        };
        Self {
            colour_words: ids(Colour::ALL.iter().map(|c| c.name()).collect()),
            shape_words: ids(Shape::ALL.iter().map(|s| s.name()).collect()),
        }
    }

    /// The loss, and the share of object patches whose colour and shape are both right.
    fn loss(&self, step: &StepModel, features: &Tensor, batch: &SceneBatch) -> (Tensor, f64) {
        let (mut colours, mut shapes) = (Vec::new(), Vec::new());
        let span = batch.prompts[0].layout.images[0];
        let (base, cols) = (span.base.0 * span.base.1, span.high.1);
        for (scene, objects) in batch.scenes.iter().zip(&batch.patch_objects) {
            for (patch, &object) in objects.iter().enumerate() {
                let (colour, shape) = match object.checked_sub(1).map(|i| &scene.objects[i as usize]) {
                    None => (0, 0),
                    Some(o) => (1 + o.colour as i64, 1 + o.shape as i64),
                };
                colours.push(colour);
                shapes.push(shape);
                if patch >= base && (patch - base) % cols == cols - 1 {
                    colours.push(-1); // the newline that ends a row shows nothing
                    shapes.push(-1);
                }
            }
        }
        let (colours, shapes) = (Tensor::from_slice(&colours), Tensor::from_slice(&shapes));
        let patches = colours.ge(0).nonzero().squeeze_dim(1);
        let (colours, shapes) = (colours.index_select(0, &patches), shapes.index_select(0, &patches));
        let features = features.flatten(0, 1).index_select(0, &patches).to_kind(Kind::Float);
        let features = &features / (features.square().mean_dim(-1, true, Kind::Float) + 1e-6).sqrt();
        let scale = TEMPERATURE / (features.size()[1] as f64).sqrt();
        let score = |words: &Tensor| {
            features.matmul(&step.words.index_select(0, words).to_kind(Kind::Float).tr()) * scale
        };
        let (colour_scores, shape_scores) = (score(&self.colour_words), score(&self.shape_words));
        let objects = colours.gt(0);
        let weight = objects.to_kind(Kind::Float) * (1.0 - BACKGROUND_WEIGHT) + BACKGROUND_WEIGHT;
        let cross_entropy = |scores: &Tensor, classes: &Tensor| {
            let each =
                -scores.log_softmax(-1, Kind::Float).gather(1, &classes.unsqueeze(1), false).squeeze_dim(1);
            (each * &weight).sum(Kind::Float) / weight.sum(Kind::Float)
        };
        let right = colour_scores
            .argmax(-1, false)
            .eq_tensor(&colours)
            .logical_and(&shape_scores.argmax(-1, false).eq_tensor(&shapes))
            .masked_select(&objects);
        let loss = cross_entropy(&colour_scores, &colours) + cross_entropy(&shape_scores, &shapes);
        (loss, right.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]))
    }
}

/// Square canvases first, then all of them.
struct Batches {
    square: std::sync::mpsc::Receiver<Result<SceneBatch>>,
    all: std::sync::mpsc::Receiver<Result<SceneBatch>>,
    switch: usize,
}

impl Batches {
    fn new(processor: &Arc<Processor>, steps: usize, batch: usize) -> Result<Self> {
        let stream = |first, canvases| scenes::stream(processor, TRAINING_SCENES, first, batch, canvases);
        // Phases draw from far apart in the endless data set, so that no scene is met twice.
        let first = (steps as u64) << 32;
        Ok(Self {
            square: stream(first, Canvases::Square)?,
            all: stream(first + (1 << 31), Canvases::All)?,
            switch: (steps as f64 * SQUARE_SHARE) as usize,
        })
    }

    fn next(&mut self, step: usize) -> Result<SceneBatch> {
        let receiver = if step < self.switch { &self.square } else { &self.all };
        receiver.recv().context("the scene thread ended")?
    }
}

/// Means of what was measured since the last line.
struct Log {
    phase: &'static str,
    sums: Vec<(&'static str, f64)>,
    steps: usize,
}

impl Log {
    fn new(phase: &'static str) -> Self {
        Self { phase, sums: Vec::new(), steps: 0 }
    }

    fn add(&mut self, values: &[(&'static str, f64)]) {
        if self.sums.is_empty() {
            self.sums = values.iter().map(|&(name, _)| (name, 0.0)).collect();
        }
        for (sum, value) in self.sums.iter_mut().zip(values) {
            sum.1 += value.1;
        }
        self.steps += 1;
    }

    fn print_every(&mut self, every: usize, step: usize, of: usize, started: Instant) {
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
