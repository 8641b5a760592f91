//! Lessons of masked sets, drawn and preprocessed in the background: what `shapes-lmm-l` learns from.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use anyhow::{Context, Result};
use lmm_prep::{Inputs, Processor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use shapes_world::{Extent, Scene};

use crate::lessons::{
    BACKGROUND, DIM, Lesson, PatchWords, Turn, image_words, object_under, probe_cells, prompt,
};
use crate::lit::{LitPicture, LitSet, REQUEST, Shared};

/// Cells with at least this mean light are lit, with at most that are not; those between teach nothing.
const LIT: u32 = 160;
const UNLIT: u32 = 80;

/// Lessons are cut from this many batches of sets sorted by length, so that little is padding.
pub(crate) const POOL: usize = 8;

/// What the sets of a lesson are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) pictures: Pictures,
    /// How many there are.
    pub(crate) sets: usize,
}

/// The pictures of a set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pictures {
    /// One, lit all over.
    Unmasked,
    /// So many, masked.
    Masked(usize),
}

/// Makes lessons of sets of data-set seed `seed`, from set `first` on; `shape` says what those of a step are like.
pub(crate) fn stream(
    processor: &Arc<Processor>,
    seed: u64,
    first: u64,
    shape: impl Fn(usize) -> Shape + Send + 'static,
) -> Result<Receiver<Result<Lesson>>> {
    let processor = Arc::clone(processor);
    let (sender, receiver) = sync_channel(2);
    thread::Builder::new()
        .name("sets".into())
        .spawn(move || {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ first);
            let mut next = first;
            for pool in 0.. {
                let shape = shape(pool * POOL);
                let count = (POOL * shape.sets) as u64;
                let mut sets: Vec<Prepared> = match (next..next + count)
                    .into_par_iter()
                    .map(|index| Prepared::new(&processor, seed, index, shape.pictures))
                    .collect()
                {
                    Ok(sets) => sets,
                    Err(error) => {
                        let _ = sender.send(Err(error));
                        return;
                    }
                };
                next += count;
                sets.sort_by_key(|set| set.inputs.input_ids.len());
                let mut lessons = Vec::new();
                while !sets.is_empty() {
                    lessons.push(lesson(sets.split_off(sets.len() - shape.sets)));
                }
                lessons.shuffle(&mut rng);
                if lessons.into_iter().any(|lesson| sender.send(Ok(lesson)).is_err()) {
                    return;
                }
            }
        })
        .context("starting the thread of sets")?;
    Ok(receiver)
}

struct Prepared {
    inputs: Inputs,
    patches: Vec<PatchWords>,
    turns: Vec<Turn>,
}

impl Prepared {
    fn new(processor: &Processor, seed: u64, index: u64, pictures: Pictures) -> Result<Self> {
        let set = match pictures {
            Pictures::Unmasked => LitSet::unmasked(seed, index),
            Pictures::Masked(n) => LitSet::lesson(seed, index, n),
        };
        let images: Vec<_> = set.pictures.iter().map(LitPicture::render).collect();
        let inputs = processor.prepare(&prompt(images.len()), &images)?;
        let patches = set
            .pictures
            .iter()
            .zip(&inputs.layout.images)
            .flat_map(|(picture, span)| {
                let light = picture.light();
                let labels = picture.scene.label_map();
                let size = (picture.scene.width as usize, picture.scene.height as usize);
                image_words(span, |grid| {
                    probe_cells(grid, size, |pixels| words(&picture.scene, labels.as_raw(), &light, pixels))
                })
            })
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(index);
        let turns = set.firsts().flat_map(|shared| turns(shared, &mut rng)).collect();
        Ok(Self { inputs, patches, turns })
    }
}

/// What is asked after some pictures.
fn turns(shared: Shared<'_>, rng: &mut ChaCha8Rng) -> Vec<Turn> {
    /// Questions with either answer whether a description fits.
    const JUDGEMENTS: usize = 1;
    let turn = |question, answer| Turn { pictures: shared.pictures.len(), question, answer };
    let judgements = shared.judgements(rng, JUDGEMENTS).into_iter();
    std::iter::once(turn(REQUEST.to_owned(), shared.answer()))
        .chain(judgements.map(|(question, answer)| turn(question, answer.to_owned())))
        .collect()
}

/// What some pixels show, given which object each pixel of a picture shows and how much light is on it.
pub(crate) fn words(scene: &Scene, labels: &[u8], light: &[u8], pixels: &[usize]) -> PatchWords {
    let mean = pixels.iter().map(|&pixel| u32::from(light[pixel])).sum::<u32>() / pixels.len() as u32;
    match mean {
        LIT.. => match object_under(labels, pixels) {
            None => [Some(BACKGROUND); 4],
            Some(index) => {
                let object = &scene.objects[index];
                let [colour, texture, shape] = object.labels().map(Some);
                [colour, shape, texture, object.extent().map(Extent::name)]
            }
        },
        ..=UNLIT => [Some(DIM); 4],
        _ => [None; 4],
    }
}

fn lesson(sets: Vec<Prepared>) -> Lesson {
    let mut lesson = Lesson { prompts: Vec::new(), patches: Vec::new(), turns: Vec::new() };
    for set in sets {
        lesson.prompts.push(set.inputs);
        lesson.patches.push(set.patches);
        lesson.turns.push(set.turns);
    }
    lesson
}
