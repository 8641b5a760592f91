//! [`Finder`]: a feature's images, and random ones.
//!
//! An image that cannot be had, or is not the one the cache was made of, is no reason to leave the feature out: of the strongest it
//! stands with its reason, and in place of a random one another is drawn.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use act_cache::{Cache, HookCache};
use anyhow::{Result, ensure};
use explain::{Example, FeatureKey, Fit};
use explain_kit::{Pictures, Selection, SourceArgs, hook_of, hooks_of};
use image::RgbImage;
use mm_data::{Dataset, Field};
use sae_types::HookPoint;
use scoring::baselines::other_images;
use stage_kit::RunManifest;

use crate::chance::{Draw, random};
use crate::distinct::DistinctImages;

/// So many times the random images that are wanted are drawn, since not every one may be had.
const DRAWN: usize = 4;

/// Which images of a feature are looked at, and how large.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// Images per feature, those with the highest mean activation over the base tile
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Images")]
    pub(crate) max_examples: u32,
    /// Random images per feature, msae's baseline; each is looked at once more
    #[arg(long, default_value_t = 5, help_heading = "Images")]
    random_images: u32,
    /// Shrink images, in their own aspect, until neither side is longer; 0: as they are
    #[arg(long, default_value_t = 1024, help_heading = "Images")]
    image_side: u32,
    /// Resize images to squares of this side instead, as msae does (336)
    #[arg(long, conflicts_with = "image_side", help_heading = "Images")]
    square: Option<NonZeroU32>,
    /// MiB of decoded images kept for features that share them
    #[arg(long, default_value_t = 256, help_heading = "Images")]
    picture_memory: usize,
}

/// One of the images in which a feature is strongest.
pub(crate) struct Seen {
    /// Where it is on.
    pub(crate) example: Example,
    /// The picture, or why it cannot be had.
    pub(crate) picture: Result<Arc<RgbImage>, String>,
}

/// What is looked at of a feature.
pub(crate) struct Images {
    /// The images in which it is strongest, in order.
    pub(crate) strongest: Vec<Seen>,
    /// Random ones, none of those and no image twice.
    pub(crate) random: Vec<(Example, Arc<RgbImage>)>,
}

/// Finds the images of features.
pub(crate) struct Finder {
    hooks: BTreeMap<HookPoint, HookCache<'static>>,
    cache: &'static Cache,
    distinct: DistinctImages,
    dataset: Arc<Dataset>,
    pictures: Pictures,
    max_examples: usize,
    random_images: usize,
    seed: u64,
}

impl ImageArgs {
    /// Opens the data set to read these fields, and notes it with all that decides which images are looked at.
    pub(crate) fn open(
        &self,
        source: &SourceArgs,
        cache: &'static Cache,
        selection: &Selection,
        fields: &[Field],
        seed: u64,
        manifest: &mut RunManifest,
    ) -> Result<Finder> {
        let dataset = Arc::new(source.open(cache, fields, manifest)?);
        let fit = match (self.square, self.image_side) {
            (Some(side), _) => Fit::Square(side.get()),
            (None, 0) => Fit::Own,
            (None, side) => Fit::Within(side),
        };
        let size = match fit {
            Fit::Within(side) => format!("{side}, own aspect"),
            Fit::Square(side) => format!("{side} x {side}"),
            Fit::Own => "their own".to_owned(),
        };
        let settings = [
            ("--max-examples", self.max_examples.to_string()),
            ("--random-images", self.random_images.to_string()),
            ("--image-side or --square", size),
            ("--seed", seed.to_string()),
        ];
        manifest.settings.extend(settings.map(|(flag, value)| (flag.to_owned(), value)));
        let memory = self.picture_memory.saturating_mul(1 << 20);
        Ok(Finder {
            hooks: hooks_of(cache, selection)?,
            cache,
            distinct: DistinctImages::of(cache),
            pictures: Pictures::new(cache, Arc::clone(&dataset), fit, memory),
            dataset,
            max_examples: self.max_examples as usize,
            random_images: self.random_images as usize,
            seed,
        })
    }
}

impl Finder {
    /// The data set, with the fields it was opened with.
    pub(crate) fn dataset(&self) -> Arc<Dataset> {
        Arc::clone(&self.dataset)
    }

    /// The images in their own size, none of which is kept.
    pub(crate) fn originals(&self) -> Pictures {
        Pictures::new(self.cache, self.dataset(), Fit::Own, 0)
    }

    /// The images of the cache.
    pub(crate) fn distinct(&self) -> &DistinctImages {
        &self.distinct
    }

    /// The images in which a feature is strongest.
    ///
    /// # Errors
    /// When it is on in none, or the cache cannot be read.
    pub(crate) fn strongest(&self, key: &FeatureKey) -> Result<Vec<Seen>> {
        let feature = hook_of(&self.hooks, &key.hook)?.feature(key.feature)?;
        let strongest = explain::top_examples(&feature, self.max_examples)?;
        ensure!(!strongest.is_empty(), "the feature is on in no image's base tile");
        let seen = |example: Example| {
            let picture = self.pictures.get(example.sample).map_err(|error| error.told());
            Seen { example, picture }
        };
        Ok(strongest.into_iter().map(seen).collect())
    }

    /// The images of a feature.
    ///
    /// # Errors
    /// As [`Finder::strongest`].
    pub(crate) fn find(&self, key: &FeatureKey) -> Result<Images> {
        let strongest = self.strongest(key)?;
        let feature = hook_of(&self.hooks, &key.hook)?.feature(key.feature)?;
        let without: Vec<usize> =
            strongest.iter().filter_map(|seen| self.distinct.place(seen.example.sample)).collect();
        let mut chance = random(self.seed, key, Draw::RandomImages);
        let n_drawn = DRAWN * self.random_images;
        let drawn = other_images(self.distinct.len(), &without, n_drawn, &mut chance);
        let mut random = Vec::new();
        for place in drawn {
            if random.len() == self.random_images {
                break;
            }
            let sample = self.distinct.samples()[place];
            match self.pictures.get(sample) {
                Ok(picture) => random.push((explain::example_in(&feature, sample)?, picture)),
                Err(error) => tracing::debug!("{key}: another random image is drawn: {}", error.told()),
            }
        }
        Ok(Images { strongest, random })
    }
}
