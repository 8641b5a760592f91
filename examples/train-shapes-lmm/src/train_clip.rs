//! The recipe of shapes-clip: patches learn to be said in single words, then pictures and texts meet.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use lmm_prep::{ClipConfig, ImageProcessor, PreprocessorConfig, Tokenizer, TokenizerClass};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use torch_nn::Weights;
use vision_models::ClipModel;

use crate::clip_folder::{self, GRID};
use crate::clip_pictures::{Picture, View};
use crate::clip_texts::{Text, texts_of};
use crate::course::{CourseArgs, LOG_EVERY, Log, SAVE_EVERY, rise};
use crate::descriptions::Fit;
use crate::lessons::{BACKGROUND, DIM, PatchWords};
use crate::parameters::{Parameters, Stored};
use crate::patch_words::PatchWordScores;
use crate::train::{next, positive};

/// Data-set seed of what is trained on; evaluation and the demo use others.
const TRAINING_PICTURES: u64 = 1_002;
/// Of 20 pictures, so many are whole and so many lit in part; the others are cut out.
const VIEWS: [(View, usize); 3] = [(View::Whole, 8), (View::Lit, 9), (View::Part, 3)];
/// Weights of a patch that shows no object, and of the patch loss beside the contrast.
const BACKGROUND_WEIGHT: f64 = 0.1;
const PATCH_LOSS: f64 = 1.0;
/// What the cosine of a patch and a word is multiplied by.
const PATCH_SCALE: f64 = 10.0;
/// CLIP's bound on what cosines are multiplied by.
const LARGEST_SCALE: f64 = 100.0;
/// As good as minus infinity, but for gradients.
const VERY_LOW: f64 = -1e4;

/// What can be chosen of the recipe.
#[derive(clap::Args, Debug)]
pub(crate) struct TrainClipArgs {
    /// Folder to write the model to
    #[arg(long, default_value = "assets/shapes-clip")]
    pub(crate) out: PathBuf,
    /// Steps in which patches alone are learnt
    #[arg(long, default_value_t = 500)]
    pub(crate) warm_steps: usize,
    /// Steps in which pictures and texts meet
    #[arg(long, default_value_t = 2000)]
    pub(crate) steps: usize,
    /// Pictures in a step
    #[arg(long, default_value_t = 96, value_parser = positive)]
    pub(crate) batch: usize,
    /// First picture of the endless data set; another for a run that goes on from an earlier one
    #[arg(long, default_value_t = 0)]
    pub(crate) first_picture: u64,
    #[command(flatten)]
    pub(crate) course: CourseArgs,
}

/// What a step learns from.
struct Lesson {
    /// `[pictures, 3, side, side]`, flat.
    pixels: Vec<f32>,
    patches: Vec<PatchWords>,
    /// Ids of the texts, and how many of them, at the end, are captions.
    texts: Vec<Vec<u32>>,
    captions: usize,
    /// `[pictures, texts]`, flat.
    fits: Vec<Fit>,
}

struct Prepare {
    processor: ImageProcessor,
    tokenizer: Tokenizer,
    batch: usize,
    first_picture: u64,
}

impl Prepare {
    fn lesson(&self, step: u64) -> Result<Lesson> {
        let first = self.first_picture + step * self.batch as u64;
        let pictures: Vec<(Picture, Vec<f32>)> = (0..self.batch)
            .into_par_iter()
            .map(|place| {
                let picture = Picture::draw(TRAINING_PICTURES, first + place as u64, view(place));
                let pixels = self.processor.whole(&picture.image)?;
                Ok((picture, pixels.into_raw_vec_and_offset().0))
            })
            .collect::<Result<_>>()?;
        let (pictures, pixels): (Vec<Picture>, Vec<Vec<f32>>) = pictures.into_iter().unzip();
        let mut rng = ChaCha8Rng::seed_from_u64(TRAINING_PICTURES);
        rng.set_stream(first);
        let (texts, captions) = texts_of(&pictures, &mut rng);
        let fits = pictures.iter().flat_map(|picture| texts.iter().map(|text| picture.fit(text))).collect();
        let ids = |text: &Text| Ok(self.tokenizer.encode(&text.words, true)?);
        Ok(Lesson {
            pixels: pixels.concat(),
            patches: pictures.into_iter().flat_map(|picture| picture.patches).collect(),
            texts: texts.iter().map(ids).collect::<Result<_>>()?,
            captions,
            fits,
        })
    }

    /// Lessons, made while others are learnt from.
    fn stream(self) -> Result<Receiver<Result<Lesson>>> {
        let (sender, receiver) = sync_channel(4);
        thread::Builder::new()
            .name("pictures".into())
            .spawn(move || {
                for step in 0.. {
                    if sender.send(self.lesson(step)).is_err() {
                        return;
                    }
                }
            })
            .context("starting the thread of pictures")?;
        Ok(receiver)
    }
}

/// How the picture at a place of the batch is shown.
fn view(place: usize) -> View {
    let all: usize = VIEWS.iter().map(|view| view.1).sum();
    // A stride prime to their number mixes them in batches of any size.
    let mut at = place * 7 % all;
    for (view, count) in VIEWS {
        if at < count {
            return view;
        }
        at -= count;
    }
    View::Part
}

/// Trains shapes-clip and writes its folder.
pub(crate) fn train(args: &TrainClipArgs) -> Result<()> {
    clip_folder::write(&args.out)?;
    let config = ClipConfig::load(&args.out)?;
    let mut parameters = Parameters::new(&ClipModel::parameter_shapes(&config), args.course.seed as i64)?;
    if let Some(folder) = &args.course.start_from {
        parameters.load(folder)?;
    }
    let kind = if args.course.full_precision { Kind::Float } else { Kind::BFloat16 };
    let tokenizer = Tokenizer::load_or(&args.out, TokenizerClass::Clip)?;
    let vocabulary = patch_vocabulary();
    let patch_words = PatchWordScores::new(&vocabulary, BACKGROUND_WEIGHT);
    let vocabulary: Vec<Vec<u32>> =
        vocabulary.iter().map(|word| Ok(tokenizer.encode(word, true)?)).collect::<Result<_>>()?;
    let processor = ImageProcessor::new(PreprocessorConfig::load_whole(&args.out)?);
    let lessons = Prepare { processor, tokenizer, batch: args.batch, first_picture: args.first_picture };
    let lessons = lessons.stream()?;
    let side = config.vision_config.image_size as i64;
    eprintln!("{} parameters", parameters.count());

    let started = Instant::now();
    for (phase, steps, contrasts) in [("patches", args.warm_steps, false), ("pairs", args.steps, true)] {
        let mut log = Log::new(phase);
        for step in 0..steps {
            let lesson = next(&lessons)?;
            let weights = Weights::from_tensors(parameters.cast(kind));
            let model = ClipModel::load(&weights.root(), &config);
            let pixels = Tensor::from_slice(&lesson.pixels).view([args.batch as i64, 3, side, side]);
            let tokens = unit(&model.token_features(&pixels));
            let patches = tokens.narrow(1, 1, (GRID * GRID) as i64).flatten(0, 1);
            let words = unit(&model.text_features(&model.text().batch(&vocabulary, Device::Cpu)));
            let (patch_loss, seen) =
                patch_words.loss_of(&(patches * PATCH_SCALE), &lesson.patches.iter(), &words);
            let mut loss = patch_loss;
            let mut measured = vec![("patches right", seen)];
            if contrasts {
                let scale = model.logit_scale().to_kind(Kind::Float).clamp_max(LARGEST_SCALE.ln()).exp();
                let scores = tokens.select(1, 0).matmul(&texts(&model, &lesson).tr()) * &scale;
                let fits = Fits::new(&lesson.fits, args.batch);
                let contrast = fits.contrast(&scores);
                measured = vec![
                    ("loss", contrast.double_value(&[])),
                    ("best text fits", fits.best_text(&scores)),
                    ("scale", scale.double_value(&[])),
                    ("patches right", seen),
                ];
                loss = contrast + loss * PATCH_LOSS;
            }
            let progress = step as f64 / steps as f64;
            let fall = if contrasts { 1.0 - 0.97 * progress } else { 1.0 - 0.5 * progress };
            parameters.step(&loss, args.course.learning_rate * rise(step) * fall);
            log.add(&measured);
            log.print_every(LOG_EVERY, step + 1, steps, started);
            if (step + 1) % SAVE_EVERY == 0 {
                parameters.save_as(&args.out, Stored::F16)?;
            }
        }
    }
    parameters.save_as(&args.out, Stored::F16)
}

/// What patches may show, as texts.
fn patch_vocabulary() -> Vec<String> {
    let words = crate::clip_texts::single_words();
    let words = words.into_iter().map(|description| Text::of(description).words);
    words.filter(|word| word != BACKGROUND).chain([BACKGROUND, DIM].map(str::to_owned)).collect()
}

/// The texts of a lesson, `[texts, projection]`, of unit length. Captions are long, and run apart.
fn texts(model: &ClipModel, lesson: &Lesson) -> Tensor {
    let (short, long) = lesson.texts.split_at(lesson.texts.len() - lesson.captions);
    let parts: Vec<Tensor> = [short, long]
        .into_iter()
        .filter(|texts| !texts.is_empty())
        .map(|texts| model.text_features(&model.text().batch(texts, Device::Cpu)))
        .collect();
    unit(&Tensor::cat(&parts, 0))
}

fn unit(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let lengths = (features.square().sum_dim_intlist(-1, true, Kind::Float) + 1e-12).sqrt();
    features / lengths
}

/// Which texts fit which pictures, `[pictures, texts]`.
struct Fits {
    /// 1 or 0.
    yes: Tensor,
    is_yes: Tensor,
    is_not_no: Tensor,
    is_unclear: Tensor,
}

impl Fits {
    fn new(fits: &[Fit], pictures: usize) -> Self {
        let shape = [pictures as i64, (fits.len() / pictures) as i64];
        let are = |wanted: Fit| {
            let flags: Vec<bool> = fits.iter().map(|&fit| fit == wanted).collect();
            Tensor::from_slice(&flags).view(shape)
        };
        let is_yes = are(Fit::Yes);
        Self {
            yes: is_yes.to_kind(Kind::Float),
            is_yes,
            is_not_no: are(Fit::No).logical_not(),
            is_unclear: are(Fit::Unclear),
        }
    }

    /// The contrastive loss of `scores [pictures, texts]`, both ways: each pair that fits against all pairs of its row, then of
    /// its column, that do not. InfoNCE would also set pairs that fit against each other, and a picture fits many texts.
    fn contrast(&self, scores: &Tensor) -> Tensor {
        let misfits = scores.masked_fill(&self.is_not_no, VERY_LOW);
        let one_way = |dim: i64| {
            let others = misfits.logsumexp(dim, true);
            let each = (others - scores).softplus() * &self.yes;
            let count = self.yes.sum_dim_intlist(dim, false, Kind::Float);
            let mean = each.sum_dim_intlist(dim, false, Kind::Float) / count.clamp_min(1.0);
            mean.sum(Kind::Float) / count.gt(0.0).sum(Kind::Float)
        };
        (one_way(1) + one_way(0)) * 0.5
    }

    /// The share of pictures whose best text fits.
    fn best_text(&self, scores: &Tensor) -> f64 {
        let best = scores.masked_fill(&self.is_unclear, VERY_LOW).argmax(1, true);
        self.is_yes.gather(1, &best, false).to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contrast_sets_what_fits_against_what_does_not_and_nothing_else() {
        // Two pictures, three texts; the last text is unclear for the second picture.
        let fits = Fits::new(&[Fit::Yes, Fit::No, Fit::No, Fit::Yes, Fit::Yes, Fit::Unclear], 2);
        let values = [2.0f64, 1.0, 0.5, 0.3, 0.7, 9.0];
        let scores = Tensor::from_slice(&values).view([2, 3]).to_kind(Kind::Float);
        let against = |fitting: f64, others: &[f64]| {
            (1.0 + others.iter().map(|other| (other - fitting).exp()).sum::<f64>()).ln()
        };
        // Rows: the first picture has one fitting text against two; nothing is against the second's.
        let rows = 0.5 * against(2.0, &[1.0, 0.5]);
        // Columns: nothing is against the first text's pictures; the second text's one against the first picture.
        let columns = 0.5 * against(0.7, &[1.0]);
        let got = fits.contrast(&scores).double_value(&[]);
        assert!((got - f64::midpoint(rows, columns)).abs() < 1e-6, "{got}");
        assert_eq!(fits.best_text(&scores), 1.0);
    }

    #[test]
    fn views_come_in_their_shares() {
        let count = |wanted| (0..20).filter(|&place| view(place) == wanted).count();
        assert_eq!([count(View::Whole), count(View::Lit), count(View::Part)], [8, 9, 3]);
    }
}
