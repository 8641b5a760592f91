//! The recipes of the two models: what they are taught, in which order.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use anyhow::{Context, Result};
use lmm_prep::Processor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::course::{Course, CourseArgs, PatchWeights};
use crate::lit_lessons::{self, Pictures, Shape};
use crate::model_folder::Size;
use crate::scenes::{self, Canvases, SceneBatch};

/// Data-set seeds of what is trained on; evaluation and the demo use others.
const TRAINING_SCENES: u64 = 1_000;
const TRAINING_SETS: u64 = 1_001;
/// Where the phases of the small model begin in the endless data set: far apart, so that no scene is met twice.
const WARM_UP_SCENES: u64 = 700 << 32;
const ANSWER_SCENES: u64 = 4500 << 32;
/// Share of a phase of the small model that sees square canvases only, whose sequences are shortest.
const SQUARE_SHARE: f64 = 0.15;
/// Share of the large model's steps with one or two pictures, whose sequences are shortest.
const FEW_PICTURES_SHARE: f64 = 0.15;

/// What can be chosen of the small model's recipe.
#[derive(clap::Args, Debug)]
pub(crate) struct TrainArgs {
    /// Folder to write the model to
    #[arg(long, default_value = "assets/shapes-lmm-s")]
    pub(crate) out: PathBuf,
    /// Steps of the tower's warm-up
    #[arg(long, default_value_t = 700)]
    pub(crate) warm_steps: usize,
    /// Steps of question answering
    #[arg(long, default_value_t = 4500)]
    pub(crate) steps: usize,
    /// Scenes in a step of question answering
    #[arg(long, default_value_t = 24, value_parser = positive)]
    pub(crate) batch: usize,
    #[command(flatten)]
    pub(crate) course: CourseArgs,
}

/// What can be chosen of the large model's recipe.
#[derive(clap::Args, Debug)]
pub(crate) struct TrainExplainerArgs {
    /// Folder to write the model to
    #[arg(long, default_value = "assets/shapes-lmm-l")]
    pub(crate) out: PathBuf,
    /// Steps of the tower's warm-up
    #[arg(long, default_value_t = 2000)]
    pub(crate) warm_steps: usize,
    /// Steps of explaining
    #[arg(long, default_value_t = 4500)]
    pub(crate) steps: usize,
    /// Pictures in a step
    #[arg(long, default_value_t = 40, value_parser = positive)]
    pub(crate) batch: usize,
    /// First set of the endless data set; another for a run that goes on from an earlier one
    #[arg(long, default_value_t = 0)]
    pub(crate) first_set: u64,
    #[command(flatten)]
    pub(crate) course: CourseArgs,
}

/// Trains `shapes-lmm-s` and writes its folder.
pub(crate) fn train(args: &TrainArgs) -> Result<()> {
    let weights = PatchWeights { loss: 0.3, background: 0.3 };
    let mut course = Course::new(Size::SMALL, weights, &args.out, &args.course)?;
    let processor = Arc::new(Processor::load(&args.out)?);
    let mut rng = ChaCha8Rng::seed_from_u64(args.course.seed);
    let mut scenes = Scenes::new(&processor, WARM_UP_SCENES, args.warm_steps, 2 * args.batch)?;
    // The tower needs no questions, and the random stream is that of the answers.
    let mut unused = ChaCha8Rng::seed_from_u64(0);
    course.warm_up(args.warm_steps, |step| Ok(scenes.next(step)?.lesson(&mut unused)))?;
    let mut scenes = Scenes::new(&processor, ANSWER_SCENES, args.steps, args.batch)?;
    course.answer(&processor, args.steps, |step| Ok(scenes.next(step)?.lesson(&mut rng)))
}

/// Trains `shapes-lmm-l` and writes its folder.
pub(crate) fn train_explainer(args: &TrainExplainerArgs) -> Result<()> {
    // Most of a masked picture is dim: what is not would be drowned.
    let weights = PatchWeights { loss: 1.0, background: 0.05 };
    let mut course = Course::new(Size::LARGE, weights, &args.out, &args.course)?;
    let processor = Arc::new(Processor::load(&args.out)?);
    // Phases draw from far apart in the endless data set, so that no set is met twice.
    let phase = 1 << 32;
    let batch = args.batch;
    // Pools of steps are alike; successive ones differ.
    let turn = |step: usize| step / lit_lessons::POOL;
    let single = move |step| {
        let pictures = if turn(step) % 2 == 0 { Pictures::Unmasked } else { Pictures::Masked(1) };
        Shape { pictures, sets: batch }
    };
    let warm = lit_lessons::stream(&processor, TRAINING_SETS, args.first_set, single)?;
    course.warm_up(args.warm_steps, |_| next(&warm))?;
    drop(warm);
    let few = (args.steps as f64 * FEW_PICTURES_SHARE) as usize;
    let shape = move |step: usize| {
        const FEW: [usize; 2] = [1, 2];
        const MANY: [usize; 5] = [5, 3, 5, 2, 5];
        let pictures = if step < few { FEW[turn(step) % FEW.len()] } else { MANY[turn(step) % MANY.len()] };
        Shape { pictures: Pictures::Masked(pictures), sets: (batch / pictures).max(1) }
    };
    let sets = lit_lessons::stream(&processor, TRAINING_SETS, args.first_set + phase, shape)?;
    course.answer(&processor, args.steps, |_| next(&sets))
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

pub(crate) fn next<T>(stream: &Receiver<Result<T>>) -> Result<T> {
    stream.recv().context("the thread that prepares lessons ended")?
}

/// Square canvases first, then all of them.
struct Scenes {
    square: Receiver<Result<SceneBatch>>,
    all: Receiver<Result<SceneBatch>>,
    switch: usize,
}

impl Scenes {
    fn new(processor: &Arc<Processor>, first: u64, steps: usize, batch: usize) -> Result<Self> {
        let stream = |first, canvases| scenes::stream(processor, TRAINING_SCENES, first, batch, canvases);
        Ok(Self {
            square: stream(first, Canvases::Square)?,
            all: stream(first + (1 << 31), Canvases::All)?,
            switch: (steps as f64 * SQUARE_SHARE) as usize,
        })
    }

    fn next(&mut self, step: usize) -> Result<SceneBatch> {
        next(if step < self.switch { &self.square } else { &self.all })
    }
}
