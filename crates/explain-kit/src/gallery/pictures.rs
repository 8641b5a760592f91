//! [`Pictures`]: the images of a data set, decoded and fitted, those used last kept in a stated number of bytes.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use act_cache::Cache;
use explain::Fit;
use image::RgbImage;
use mm_data::Dataset;
use sae_types::SampleId;
use stage_kit::hash_bytes;

use crate::ExplainKitError;
use crate::error::Trying;

/// The images of a cache's data set. Threads may share it.
#[derive(Debug)]
pub struct Pictures {
    cache: &'static Cache,
    dataset: Arc<Dataset>,
    fit: Fit,
    /// Bytes of each of the two generations.
    budget: usize,
    kept: Mutex<Kept>,
}

/// Pictures in two generations: when the younger is full it becomes the elder, and what was not asked for since is dropped.
#[derive(Debug, Default)]
struct Kept {
    younger: HashMap<SampleId, Arc<RgbImage>>,
    elder: HashMap<SampleId, Arc<RgbImage>>,
    bytes: usize,
}

impl Pictures {
    /// Pictures in a size, of which `bytes` are kept for when they are asked for again.
    pub fn new(cache: &'static Cache, dataset: impl Into<Arc<Dataset>>, fit: Fit, bytes: usize) -> Self {
        Self { cache, dataset: dataset.into(), fit, budget: bytes / 2, kept: Mutex::default() }
    }

    /// The first image of a sample, upright as the model saw it, in the size it is shown in.
    ///
    /// # Errors
    /// When it cannot be read, or is not the one the cache was made of.
    pub fn get(&self, sample: SampleId) -> Result<Arc<RgbImage>, ExplainKitError> {
        if let Some(picture) = self.kept(|kept| kept.find(sample, self.budget)) {
            return Ok(picture);
        }
        let picture = Arc::new(self.load(sample).trying(|| format!("sample {sample}"))?);
        self.kept(|kept| kept.add(sample, &picture, self.budget));
        Ok(picture)
    }

    fn kept<T>(&self, use_it: impl FnOnce(&mut Kept) -> T) -> T {
        use_it(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn load(&self, sample: SampleId) -> Result<RgbImage, Box<dyn Error + Send + Sync>> {
        let n = self.dataset.len();
        if sample.index() >= n {
            return Err(format!("the data set has only {n} records").into());
        }
        let record = self.dataset.get(sample.index())?;
        let image = record.images.first().ok_or("the record has no image")?;
        let then = self.cache.sample(sample).and_then(|record| record.image_sha256.as_deref());
        if then.is_some_and(|then| then != hash_bytes(&image.bytes)) {
            return Err("the record shows another image than when the cache was made".into());
        }
        Ok(self.fit.apply(lmm_prep::decode_image_upright(&image.bytes)?))
    }
}

impl Kept {
    fn find(&mut self, sample: SampleId, budget: usize) -> Option<Arc<RgbImage>> {
        if let Some(picture) = self.younger.get(&sample) {
            return Some(Arc::clone(picture));
        }
        let picture = Arc::clone(self.elder.get(&sample)?);
        self.add(sample, &picture, budget);
        Some(picture)
    }

    fn add(&mut self, sample: SampleId, picture: &Arc<RgbImage>, budget: usize) {
        let bytes = picture.as_raw().len();
        if self.bytes + bytes > budget {
            self.elder = std::mem::take(&mut self.younger);
            self.bytes = 0;
        }
        if bytes <= budget && self.younger.insert(sample, Arc::clone(picture)).is_none() {
            self.bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_budget_is_kept_and_what_is_used_stays() {
        let picture = Arc::new(RgbImage::new(10, 10));
        let mut kept = Kept::default();
        let budget = 3 * 300;
        kept.add(SampleId(0), &picture, budget);
        for sample in 1..40 {
            kept.add(SampleId(sample), &picture, budget);
            assert!(kept.find(SampleId(0), budget).is_some(), "after {sample}");
            assert!(kept.younger.len() + kept.elder.len() <= 6 && kept.bytes <= budget);
        }
        assert!(kept.find(SampleId(20), budget).is_none());
        kept.add(SampleId(99), &picture, 299);
        assert!(kept.find(SampleId(99), 299).is_none(), "larger than all there is room for");
    }
}
