//! A stream of training batches, drawn and preprocessed in the background.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use anyhow::{Context, Result};
use lmm_prep::{Inputs, Processor};
use rayon::prelude::*;
use shapes_world::Scene;

use crate::packing;

/// Scenes of one canvas shape, so that their sequences are of one length.
pub(crate) struct SceneBatch {
    pub(crate) scenes: Vec<Scene>,
    /// `packing::PROMPT` with the image of each.
    pub(crate) prompts: Vec<Inputs>,
    /// For each scene, per base patch and then per patch of the unpadded grid: 0 background, else 1 + object.
    pub(crate) patch_objects: Vec<Vec<u8>>,
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
            let mut buckets: std::collections::BTreeMap<(u32, u32), Vec<Scene>> =
                std::collections::BTreeMap::new();
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
    let prepared: Vec<(Inputs, Vec<u8>)> = scenes
        .par_iter()
        .map(|scene| {
            let prompt = processor.prepare(packing::PROMPT, &[scene.render()])?;
            let labels = scene.label_map();
            let span = prompt.layout.images[0];
            let mut objects = patch_objects(scene, labels.as_raw(), span.base);
            objects.extend(patch_objects(scene, labels.as_raw(), span.high));
            Ok((prompt, objects))
        })
        .collect::<Result<_>>()?;
    let (prompts, patch_objects) = prepared.into_iter().unzip();
    Ok(SceneBatch { scenes, prompts, patch_objects })
}

/// The object that covers most of each cell of a `rows` x `cols` grid laid over the scene, 0 where none
/// covers two fifths of it.
fn patch_objects(scene: &Scene, labels: &[u8], (rows, cols): (usize, usize)) -> Vec<u8> {
    const PROBES: usize = 6;
    let (width, height) = (scene.width as usize, scene.height as usize);
    let mut cells = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        for col in 0..cols {
            let mut seen = [0usize; 8];
            for y in 0..PROBES {
                for x in 0..PROBES {
                    let py = (2 * (row * PROBES + y) + 1) * height / (2 * rows * PROBES);
                    let px = (2 * (col * PROBES + x) + 1) * width / (2 * cols * PROBES);
                    seen[labels[py * width + px] as usize] += 1;
                }
            }
            let (object, &count) =
                seen.iter().enumerate().skip(1).max_by_key(|&(_, count)| *count).expect("objects");
            cells.push(if count * 5 >= PROBES * PROBES * 2 { object as u8 } else { 0 });
        }
    }
    cells
}
