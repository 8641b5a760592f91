//! [`Gallery`]: the examples of a feature, masked and encoded.

mod args;
mod pictures;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use act_cache::{Cache, HookCache};
use chat_client::Image;
use explain::{Encoding, Example, FeatureKey, Masking, Outcome, Shown};
use image::RgbImage;
use mm_data::Field;
use sae_types::{HookPoint, SampleId};
use stage_kit::RunManifest;

use crate::error::Trying;
use crate::{ExplainKitError, Selection};

use args::value_name;
pub use args::{MaskArgs, Picks, PictureArgs};
pub use pictures::Pictures;
pub use source::{ReadingArgs, SourceArgs, note_cache, open_cache, require_base_tile, stored};

/// The examples of features: flatten it into a binary's arguments.
#[derive(Debug, clap::Args)]
pub struct GalleryArgs {
    /// Where they come from
    #[command(flatten)]
    pub source: SourceArgs,
    /// Images per feature
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Examples")]
    max_examples: u32,
    /// Pass over features that are active in fewer images
    #[arg(long, default_value_t = 10, help_heading = "Examples")]
    min_activating: usize,
    /// Which images, by mean activation over the base tile; no image twice
    #[arg(long, value_enum, default_value_t = Picks::Top, help_heading = "Examples")]
    examples: Picks,
    #[command(flatten)]
    mask: MaskArgs,
    #[command(flatten)]
    picture: PictureArgs,
}

/// The examples of every feature of a selection.
#[derive(Debug)]
pub struct Gallery {
    hooks: BTreeMap<HookPoint, HookCache<'static>>,
    pictures: Pictures,
    chosen: act_cache::Selection,
    counterexamples: usize,
    min_activating: usize,
    masking: Masking,
    encoding: Encoding,
    /// How files are kept that are no PNG.
    jpeg: Encoding,
}

/// What is shown of a feature.
#[derive(Debug)]
pub struct Exhibit {
    shown: Vec<Shown>,
    frames: Vec<Frame>,
}

/// What there is to show of a feature.
struct Found {
    examples: Vec<Example>,
    counterexamples: Vec<SampleId>,
}

/// A picture as it is shown.
#[derive(Debug)]
struct Frame {
    picture: Arc<RgbImage>,
    /// Masked, and by what; `None` for a counterexample, which is shown as it is.
    masked: Option<(RgbImage, Example)>,
    encoded: Image,
}

impl GalleryArgs {
    /// Opens data set and cache, and notes both with all that decides what is shown.
    ///
    /// # Errors
    /// When one cannot be read, they do not belong together, or the cache is not one of images.
    pub fn open(
        &self,
        cache: &'static Cache,
        selection: &Selection,
        counterexamples: usize,
        seed: u64,
        manifest: &mut RunManifest,
    ) -> Result<Gallery, ExplainKitError> {
        require_base_tile(cache, &self.source.cache)?;
        let dataset = self.source.open(cache, &[Field::Images], manifest)?;
        self.note_settings(counterexamples, seed, manifest);
        let n = self.max_examples as usize;
        let chosen = match self.examples {
            Picks::Top => act_cache::Selection::Top(n),
            Picks::Random => act_cache::Selection::Random { n, seed },
            Picks::Quantiles => {
                act_cache::Selection::TopAndQuantiles { top: n - n / 2, parts: n / 2, per_part: 1, seed }
            }
        };
        Ok(Gallery {
            hooks: hooks_of(cache, selection)?,
            pictures: self.picture.pictures(cache, dataset),
            chosen,
            counterexamples,
            min_activating: self.min_activating,
            masking: self.mask.masking(),
            encoding: self.picture.encoding(),
            jpeg: self.picture.jpeg(),
        })
    }

    fn note_settings(&self, counterexamples: usize, seed: u64, manifest: &mut RunManifest) {
        self.mask.note_settings(manifest);
        self.picture.note_settings(manifest);
        manifest.settings.extend(
            [
                ("--max-examples", self.max_examples.to_string()),
                ("--min-activating", self.min_activating.to_string()),
                ("--examples", value_name(&self.examples)),
                ("--negatives", counterexamples.to_string()),
            ]
            .map(|(flag, value)| (flag.to_owned(), value)),
        );
        if self.examples != Picks::Top {
            manifest.settings.insert("--seed".to_owned(), seed.to_string());
        }
    }
}

/// The parts of a cache that a selection is about.
///
/// # Errors
/// When one cannot be read.
pub fn hooks_of(
    cache: &'static Cache,
    selection: &Selection,
) -> Result<BTreeMap<HookPoint, HookCache<'static>>, ExplainKitError> {
    selection.hooks().map(|hook| Ok((hook.clone(), cache.hook(hook)?))).collect()
}

impl Gallery {
    /// What is shown of a feature.
    ///
    /// # Errors
    /// The outcome of a feature of which nothing is shown: it is passed over, or failed.
    pub fn show(&self, key: &FeatureKey) -> Result<Exhibit, Outcome> {
        let enough = self.find(key).map_err(|error| Outcome::Failed(error.told()))?;
        let Some(Found { examples, counterexamples }) = enough else {
            let reason = format!("active in fewer than {} images", self.min_activating);
            return Err(Outcome::Skipped(reason));
        };
        let mut exhibit = Exhibit { shown: Vec::new(), frames: Vec::new() };
        let mut problem = None;
        for example in examples {
            let (sample, score) = (example.sample, example.score);
            match self.frame(sample, Some(example)) {
                Ok(frame) => exhibit.push(frame, Shown::example(sample, score)),
                Err(error) => problem = Some(note(key, &error, problem)),
            }
        }
        if exhibit.frames.is_empty() {
            let problem = problem.unwrap_or_else(|| "there are no examples".to_owned());
            return Err(Outcome::Failed(format!("no image can be shown: {problem}")));
        }
        for sample in counterexamples {
            match self.frame(sample, None) {
                Ok(frame) => exhibit.push(frame, Shown::counterexample(sample)),
                Err(error) => drop(note(key, &error, None)),
            }
        }
        Ok(exhibit)
    }

    /// Examples and counterexamples; `None` if the feature is active in too few images.
    fn find(&self, key: &FeatureKey) -> Result<Option<Found>, ExplainKitError> {
        let hook = hook_of(&self.hooks, &key.hook)?;
        let feature = hook.feature(key.feature)?;
        if explain::count_up_to(&feature, self.min_activating)? < self.min_activating {
            return Ok(None);
        }
        let examples = explain::examples(&feature, self.chosen)?;
        let found = explain::counterexamples(hook, &feature, &examples, self.counterexamples)?;
        let counterexamples = found.into_iter().map(|found| found.sample).collect();
        Ok(Some(Found { examples, counterexamples }))
    }

    fn frame(&self, sample: SampleId, example: Option<Example>) -> Result<Frame, ExplainKitError> {
        let picture = self.pictures.get(sample)?;
        let masked = example.map(|example| (self.masking.apply(&picture, &example.heat), example));
        let encoded = self.encoding.image(masked.as_ref().map_or(&*picture, |(lit, _)| lit))?;
        Ok(Frame { picture, masked, encoded })
    }

    /// Writes what is shown of a feature as msae does: the pictures, the masked pictures and the masks.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, exhibit: &Exhibit, folder: &Path) -> Result<(), ExplainKitError> {
        let write = |path: PathBuf, bytes: Vec<u8>| {
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::write(&path, bytes))
                .trying(|| format!("cannot write {}", path.display()))
        };
        let mut n = [0, 0];
        for frame in &exhibit.frames {
            let Some((lit, example)) = &frame.masked else {
                write(
                    folder.join(format!("images/not_{}.png", n[1])),
                    Encoding::Png.encode(&frame.picture)?,
                )?;
                n[1] += 1;
                continue;
            };
            let (width, height) = frame.picture.dimensions();
            let shade =
                image::DynamicImage::ImageLuma8(self.masking.shade(&example.heat, width, height)).into_rgb8();
            let i = n[0];
            write(folder.join(format!("images/top_{i}.png")), Encoding::Png.encode(&frame.picture)?)?;
            write(folder.join(format!("activated_images/top{i}_activated.jpg")), self.jpeg.encode(lit)?)?;
            write(folder.join(format!("masks/{i}_mask.jpg")), self.jpeg.encode(&shade)?)?;
            n[0] += 1;
        }
        Ok(())
    }
}

impl Exhibit {
    fn push(&mut self, frame: Frame, shown: Shown) {
        self.frames.push(frame);
        self.shown.push(shown);
    }

    /// How many of the pictures, the last ones, are counterexamples.
    pub fn counterexamples(&self) -> usize {
        self.shown.iter().filter(|shown| shown.not).count()
    }

    /// The pictures as they are sent, and the samples.
    pub fn into_parts(self) -> (Vec<Image>, Vec<Shown>) {
        (self.frames.into_iter().map(|frame| frame.encoded).collect(), self.shown)
    }
}

/// The part of the cache that is a hook point's.
///
/// # Errors
/// When there is none.
pub fn hook_of<'h>(
    hooks: &'h BTreeMap<HookPoint, HookCache<'static>>,
    hook: &HookPoint,
) -> Result<&'h HookCache<'static>, ExplainKitError> {
    hooks.get(hook).ok_or_else(|| ExplainKitError::UnknownHook {
        hook: hook.clone(),
        known: hooks.keys().cloned().collect(),
    })
}

/// Warns of an example that is left out, and keeps the first reason.
fn note(key: &FeatureKey, error: &ExplainKitError, first: Option<String>) -> String {
    let problem = error.told();
    tracing::warn!("{key}: an image is left out: {problem}");
    first.unwrap_or(problem)
}
