//! Lessons of single scenes, drawn and preprocessed in the background: what `shapes-lmm-s` learns from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use anyhow::{Context, Result};
use lmm_prep::{Inputs, Processor};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use shapes_world::{CAPTION_REQUEST, QuestionKind, Scene};

use crate::lessons::{BACKGROUND, Lesson, PatchWords, Turn, image_words, object_under, probe_cells, prompt};

/// How many questions of the kinds that are not the point (position, caption) a scene is asked.
const POSITION_QUESTIONS: usize = 1;
const CAPTION_SHARE: f64 = 0.2;

/// Scenes of one canvas shape, so that their sequences are of one length.
pub(crate) struct SceneBatch {
    scenes: Vec<Scene>,
    prompts: Vec<Inputs>,
    patches: Vec<Vec<PatchWords>>,
}

/// Which canvases a batch may have.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Canvases {
    Square,
    All,
}

/// Makes batches of `batch` scenes of data-set seed `seed`, from scene `first` on.
pub(crate) fn stream(
    processor: &Arc<Processor>,
    seed: u64,
    first: u64,
    batch: usize,
    canvases: Canvases,
) -> Result<Receiver<Result<SceneBatch>>> {
    let processor = Arc::clone(processor);
    let (sender, receiver) = sync_channel(4);
    thread::Builder::new()
        .name("scenes".into())
        .spawn(move || {
            // One bucket per canvas shape; a full bucket is a batch, so canvases come in their natural shares.
            let mut buckets: BTreeMap<(u32, u32), Vec<Scene>> = BTreeMap::new();
            for index in first.. {
                let scene = Scene::generate(seed, index);
                if canvases == Canvases::Square && scene.width != scene.height {
                    continue;
                }
                let bucket = buckets.entry((scene.height, scene.width)).or_default();
                bucket.push(scene);
                if bucket.len() == batch && sender.send(prepare(&processor, std::mem::take(bucket))).is_err()
                {
                    return;
                }
            }
        })
        .context("starting the scene thread")?;
    Ok(receiver)
}

fn prepare(processor: &Processor, scenes: Vec<Scene>) -> Result<SceneBatch> {
    let prepared: Vec<(Inputs, Vec<PatchWords>)> = scenes
        .par_iter()
        .map(|scene| {
            let inputs = processor.prepare(&prompt(1), &[scene.render()])?;
            let labels = scene.label_map();
            let size = (scene.width as usize, scene.height as usize);
            let patches = image_words(&inputs.layout.images[0], |grid| {
                probe_cells(grid, size, |pixels| match object_under(labels.as_raw(), pixels) {
                    None => [Some(BACKGROUND), Some(BACKGROUND), None, None],
                    Some(index) => {
                        let object = &scene.objects[index];
                        [Some(object.colour.name()), Some(object.shape.name()), None, None]
                    }
                })
            });
            Ok((inputs, patches))
        })
        .collect::<Result<_>>()?;
    let (prompts, patches) = prepared.into_iter().unzip();
    Ok(SceneBatch { scenes, prompts, patches })
}

impl SceneBatch {
    /// The lesson, with questions in random order.
    pub(crate) fn lesson(self, rng: &mut ChaCha8Rng) -> Lesson {
        let turns = self.scenes.iter().map(|scene| turns(scene, rng)).collect();
        Lesson { prompts: self.prompts, patches: self.patches, turns }
    }
}

/// Everything worth asking about a scene.
fn turns(scene: &Scene, rng: &mut ChaCha8Rng) -> Vec<Turn> {
    let mut questions = scene.questions();
    questions.shuffle(rng);
    let mut positions_left = POSITION_QUESTIONS;
    questions.retain(|question| {
        question.kind != QuestionKind::Position || {
            let keep = positions_left > 0;
            positions_left = positions_left.saturating_sub(1);
            keep
        }
    });
    let turn = |question, answer| Turn { pictures: 1, question, answer };
    let mut turns: Vec<Turn> = questions.into_iter().map(|q| turn(q.text, q.answer.to_owned())).collect();
    if rng.random_bool(CAPTION_SHARE) {
        turns.push(turn(CAPTION_REQUEST.to_owned(), scene.caption()));
    }
    turns.shuffle(rng);
    turns
}
