//! [`Shards`]: the embeddings of all images, in one file per worker, each as far as it got.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use explain_kit::Pictures;
use sae_types::SampleId;
use stage_kit::{Interrupt, Interrupted, Progress, World, prefetch};
use vision_models::ImageEncoder;

/// Images that are embedded, and written, together.
const BATCH: usize = 64;

/// Where the embeddings lie: rows of f32 in little endian, of one worker's images each.
pub(crate) struct Shards<'a> {
    folder: &'a Path,
    world: World,
    /// The sample that shows each image.
    images: &'a [SampleId],
    width: usize,
}

/// Removes those of an earlier run.
pub(crate) fn clear(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("embeddings.") && name.ends_with(".f32") {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

impl<'a> Shards<'a> {
    pub(crate) fn new(folder: &'a Path, world: World, images: &'a [SampleId], width: usize) -> Self {
        Self { folder, world, images, width }
    }

    fn path(&self, rank: usize) -> PathBuf {
        self.folder.join(format!("embeddings.{rank}-of-{}.f32", self.world.size))
    }

    fn share(&self, rank: usize) -> Range<usize> {
        let at = |rank: usize| rank * self.images.len() / self.world.size;
        at(rank)..at(rank + 1)
    }

    /// Embeds those of this worker's images that are not yet.
    ///
    /// # Errors
    /// When an image cannot be read, or is not the one the cache was made of; when a signal came.
    pub(crate) fn embed(&self, encoder: &ImageEncoder, pictures: Pictures) -> Result<()> {
        let interrupt = Interrupt::defer();
        let path = self.path(self.world.rank);
        let failed = || format!("cannot write {}", path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(failed)?;
        file.try_lock().with_context(|| format!("another process is writing {}", path.display()))?;
        let row = 4 * self.width as u64;
        let share = self.share(self.world.rank);
        let done = (file.metadata()?.len() / row).min(share.len() as u64);
        // Half a row, which a kill leaves.
        file.set_len(done * row).with_context(failed)?;
        let progress = Progress::new("embedding", "images", Some(share.len() as u64));
        progress.skip(done);
        let left = &self.images[share.start + done as usize..share.end];
        let batches: Vec<Vec<SampleId>> = left.chunks(BATCH).map(<[SampleId]>::to_vec).collect();
        let ahead = NonZeroUsize::MIN;
        let picture = move |sample: SampleId| pictures.get(sample).map(Arc::unwrap_or_clone);
        let pictures = prefetch(batches.into_iter(), ahead, move |batch| {
            batch.into_iter().map(&picture).collect::<Result<Vec<_>, _>>()
        });
        for pictures in pictures {
            let pictures = pictures?;
            let vectors = encoder.embed(&pictures)?.to_device(tch::Device::Cpu);
            let values: Vec<f32> = Vec::try_from(vectors.reshape([-1]))?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes).with_context(failed)?;
            progress.inc(pictures.len() as u64);
            if let Some(signal) = interrupt.signal() {
                return Err(Interrupted(signal)).context("what was embedded is kept: go on with --resume");
            }
        }
        progress.finish();
        file.sync_all().with_context(failed)
    }

    /// All embeddings `[images, width]`, row by row; `None` while a worker is not done.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn read(&self) -> Result<Option<Vec<f32>>> {
        let mut values = Vec::with_capacity(self.images.len() * self.width);
        for rank in 0..self.world.size {
            let path = self.path(rank);
            let wanted = self.share(rank).len() * self.width * 4;
            match File::open(&path).and_then(|file| file.metadata()) {
                Ok(metadata) if metadata.len() == wanted as u64 => {}
                _ => return Ok(None),
            }
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        Ok(Some(values))
    }
}
