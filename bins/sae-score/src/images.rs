//! What `iou` and `clip` share: a feature's images, random ones, and what other features were said to show.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use act_cache::{Cache, HookCache};
use anyhow::{Result, ensure};
use explain::{Example, FeatureKey, Fit};
use explain_kit::{Pictures, Selection, SourceArgs, hook_of, hooks_of};
use image::RgbImage;
use mm_data::Field;
use sae_types::{HookPoint, SampleId};
use scoring::Random;
use scoring::baselines::{other_images, permuted};
use stage_kit::RunManifest;

use crate::explained::Explained;

/// The stream of chance of the permutation; those of features are by number.
const PERMUTATION: u64 = u64::MAX;

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

/// An image with where a feature is on in it.
pub(crate) type Seen = (Example, Arc<RgbImage>);

/// What is looked at of a feature.
pub(crate) struct Images {
    /// The images in which it is strongest, in order.
    pub(crate) strongest: Vec<Seen>,
    /// Random ones.
    pub(crate) random: Vec<Seen>,
}

/// Finds the images of features.
pub(crate) struct Finder {
    hooks: BTreeMap<HookPoint, HookCache<'static>>,
    cache: &'static Cache,
    pictures: Pictures,
    max_examples: usize,
    random_images: usize,
    seed: u64,
}

impl ImageArgs {
    /// Opens the data set, and notes it with all that decides which images are looked at.
    pub(crate) fn open(
        &self,
        source: &SourceArgs,
        cache: &'static Cache,
        selection: &Selection,
        seed: u64,
        manifest: &mut RunManifest,
    ) -> Result<Finder> {
        let dataset = source.open(cache, &[Field::Images], manifest)?;
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
            pictures: Pictures::new(cache, dataset, fit, memory),
            max_examples: self.max_examples as usize,
            random_images: self.random_images as usize,
            seed,
        })
    }
}

impl Finder {
    /// The images of a feature.
    ///
    /// # Errors
    /// When it is on in none, or one cannot be read.
    pub(crate) fn find(&self, key: &FeatureKey) -> Result<Images> {
        let feature = hook_of(&self.hooks, &key.hook)?.feature(key.feature)?;
        let strongest = explain::top_examples(&feature, self.max_examples)?;
        ensure!(!strongest.is_empty(), "the feature is on in no image's base tile");
        let without: Vec<usize> = strongest.iter().map(|example| example.sample.index()).collect();
        let mut random = Random::new(self.seed, u64::from(key.feature.0));
        let others = other_images(self.cache.samples().len(), &without, self.random_images, &mut random);
        let others = others.into_iter().map(|sample| explain::example_in(&feature, SampleId(sample as u32)));
        let seen = |example: Example| {
            let picture = self.pictures.get(example.sample)?;
            Ok((example, picture))
        };
        Ok(Images {
            strongest: strongest.into_iter().map(seen).collect::<Result<_>>()?,
            random: others.map(|example| seen(example?)).collect::<Result<_>>()?,
        })
    }
}

/// For explained features what another one was said to show.
#[derive(Debug, Default)]
pub(crate) struct OtherTexts(BTreeMap<FeatureKey, String>);

impl OtherTexts {
    /// Gives each feature the text of another one, the same whatever worker asks.
    pub(crate) fn of(explained: &Explained, seed: u64) -> Self {
        let text = |key: &FeatureKey| explained.texts.get(key).unwrap_or_default().to_owned();
        let texts: Vec<String> = explained.all.iter().map(text).collect();
        let Some(permuted) = permuted(&texts, &mut Random::new(seed, PERMUTATION)) else {
            tracing::warn!("only one feature is explained: there is no other explanation to compare with");
            return Self::default();
        };
        if permuted.same_text > 0 {
            tracing::warn!(
                "of {} features {} are compared with an explanation that says the same: most are explained alike",
                texts.len(),
                permuted.same_text
            );
        }
        let sources = permuted.sources.into_iter().map(|source| texts[source].clone());
        Self(explained.all.iter().cloned().zip(sources).collect())
    }

    pub(crate) fn get(&self, key: &FeatureKey) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}
