//! [`DistinctImages`]: the images of a cache, each once, however many samples show it.

use std::collections::HashMap;

use act_cache::{Cache, SampleRecord};
use sae_types::SampleId;

/// The samples with a base tile, of those with the same image the first. Samples may be missing from a cache, so that a place here is
/// neither a sample's number nor a line of the cache.
#[derive(Debug)]
pub(crate) struct DistinctImages {
    /// The sample that stands for each image, ascending.
    samples: Vec<SampleId>,
    /// For each line of the cache the place of its image.
    places: Vec<Option<usize>>,
    cache: &'static Cache,
}

impl DistinctImages {
    pub(crate) fn of(cache: &'static Cache) -> Self {
        let layout = &cache.manifest().token_layout;
        let (mut samples, mut known) = (Vec::new(), HashMap::new());
        let mut place = |record: &'static SampleRecord| {
            record.base_tokens(layout)?;
            let next = samples.len();
            let place = match record.image_sha256.as_deref() {
                Some(hash) => *known.entry(hash).or_insert(next),
                None => next,
            };
            if place == next {
                samples.push(record.sample);
            }
            Some(place)
        };
        let places = cache.samples().iter().map(&mut place).collect();
        Self { samples, places, cache }
    }

    /// How many images there are.
    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// The sample that stands for each image, by place.
    pub(crate) fn samples(&self) -> &[SampleId] {
        &self.samples
    }

    /// The place of a sample's image; `None` of a sample that is not there, or shows none.
    pub(crate) fn place(&self, sample: SampleId) -> Option<usize> {
        let line = self.cache.samples().binary_search_by_key(&sample, |record| record.sample).ok()?;
        self.places[line]
    }
}
