//! [`Gallery`]: the examples of a feature, masked and encoded.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use act_cache::{Cache, HookCache};
use anyhow::{Context, Result, bail};
use chat_client::Image;
use clap::ValueEnum;
use explain::{Cut, Edges, Encoding, Example, FeatureKey, Fit, Masking, Outcome, Shown};
use image::RgbImage;
use mm_data::{Field, OpenOptions, hub};
use sae_types::{FeatureId, HookPoint, SampleId};
use stage_kit::{RunManifest, UsageError, hash_file};

use crate::pictures::Pictures;
use explain_kit::Selection;

#[derive(Debug, clap::Args)]
pub(crate) struct GalleryArgs {
    /// Cache: a folder that sae-cache images wrote
    #[arg(long)]
    pub(crate) cache: PathBuf,
    /// The data set it was made of: parquet, an image folder, JSON, or a Hub id
    #[arg(long)]
    dataset: String,
    /// Split of the data set; default: the one in the cache's manifest
    #[arg(long)]
    split: Option<String>,
    /// Folder that image paths in JSON are relative to; default: the JSON file's own
    #[arg(long)]
    image_root: Option<PathBuf>,
    /// Go on although the data set's fingerprint is not the one in the cache: each image is compared by its own hash
    #[arg(long)]
    allow_drift: bool,
    /// Images per feature
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Examples")]
    max_examples: u32,
    /// Pass over features that are active in fewer images
    #[arg(long, default_value_t = 10, help_heading = "Examples")]
    min_activating: usize,
    /// Which images, by mean activation over the base tile; no image twice
    #[arg(long, value_enum, default_value_t = Picks::Top, help_heading = "Examples")]
    examples: Picks,
    /// Where light ends: fading over a patch, or at its edge
    #[arg(long, value_enum, default_value_t = MaskEdges::Bilinear, help_heading = "Examples")]
    mask: MaskEdges,
    /// Which patches are lit
    #[arg(long, value_enum, default_value_t = MaskCut::Positive, help_heading = "Examples")]
    cut: MaskCut,
    /// Light left where the feature is off, 0 (black) to 255
    #[arg(long, default_value_t = 31, help_heading = "Examples")]
    dim: u8,
    /// Shrink images, in their own aspect, until neither side is longer; 0: as they are
    #[arg(long, default_value_t = 336, help_heading = "Examples")]
    image_side: u32,
    /// Resize images to squares of this side instead, as msae does
    #[arg(long, conflicts_with = "image_side", help_heading = "Examples")]
    square: Option<NonZeroU32>,
    /// How images are sent
    #[arg(long, value_enum, default_value_t = ImageFormat::Jpeg, help_heading = "Examples")]
    image_format: ImageFormat,
    /// Of JPEG, 1 to 100
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100), help_heading = "Examples")]
    jpeg_quality: u8,
    /// MiB of decoded images kept for features that share them
    #[arg(long, default_value_t = 256, help_heading = "Examples")]
    picture_memory: usize,
}

/// Which samples of a ranking are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Picks {
    /// The first
    Top,
    /// Half of them the first, and the others drawn from as many equal parts of the ranking behind them
    Quantiles,
    /// Drawn from all
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MaskEdges {
    /// Fading, as msae
    Bilinear,
    /// At the edge of the patch
    Nearest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MaskCut {
    /// All with an activation, as msae
    Positive,
    /// Those with half of the image's largest activation or more
    HalfMaximum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImageFormat {
    Jpeg,
    Png,
}

/// The examples of every feature of a selection.
pub(crate) struct Gallery {
    hooks: BTreeMap<HookPoint, HookCache<'static>>,
    pictures: Pictures,
    chosen: act_cache::Selection,
    counterexamples: usize,
    min_activating: usize,
    masking: Masking,
    encoding: Encoding,
    jpeg_quality: u8,
}

/// What is shown of a feature.
pub(crate) struct Exhibit {
    pub(crate) shown: Vec<Shown>,
    frames: Vec<Frame>,
}

/// A picture as it is shown.
struct Frame {
    picture: Arc<RgbImage>,
    /// Masked, and by what; `None` for a counterexample, which is shown as it is.
    masked: Option<(RgbImage, Example)>,
    encoded: Image,
}

/// Opens a cache for as long as the process lives, so that threads may hold parts of it.
pub(crate) fn open_cache(path: &Path) -> Result<&'static Cache> {
    Ok(Box::leak(Box::new(Cache::open(path)?)))
}

/// The features that a cache stores, by hook point.
pub(crate) fn stored(cache: &'static Cache) -> Result<Vec<(&'static HookPoint, Vec<FeatureId>)>> {
    cache.hooks().map(|hook| Ok((hook, cache.hook(hook)?.stored()))).collect()
}

impl GalleryArgs {
    /// Opens data set and cache, and notes both with all that decides what is shown.
    pub(crate) fn open(
        &self,
        cache: &'static Cache,
        selection: &Selection,
        counterexamples: usize,
        seed: u64,
        manifest: &mut RunManifest,
    ) -> Result<Gallery> {
        let layout = &cache.manifest().token_layout;
        if layout.base.is_none() {
            bail!(
                "{} names no base tile, so that no heat map can be drawn: make it with `sae-cache images`, or use `sae-explain text`",
                self.cache.display()
            );
        }
        let options = OpenOptions {
            split: self.split.clone().or_else(|| cache.manifest().dataset.split.clone()),
            fields: vec![Field::Images],
            image_root: self.image_root.clone(),
            ..OpenOptions::default()
        };
        let dataset = hub::open_dataset(&self.dataset, &options)?;
        self.check_fingerprint(cache, dataset.fingerprint())?;
        manifest.input("cache", &self.cache.display(), hash_file(&self.cache.join("manifest.json"))?);
        manifest.input("dataset", &self.dataset, dataset.fingerprint());
        self.note_settings(counterexamples, seed, manifest);
        let hooks = selection.hooks().map(|hook| Ok((hook.clone(), cache.hook(hook)?)));
        let n = self.max_examples as usize;
        let chosen = match self.examples {
            Picks::Top => act_cache::Selection::Top(n),
            Picks::Random => act_cache::Selection::Random { n, seed },
            Picks::Quantiles => {
                act_cache::Selection::TopAndQuantiles { top: n - n / 2, parts: n / 2, per_part: 1, seed }
            }
        };
        let edges = match self.mask {
            MaskEdges::Bilinear => Edges::Bilinear,
            MaskEdges::Nearest => Edges::Nearest,
        };
        let cut = match self.cut {
            MaskCut::Positive => Cut::Positive,
            MaskCut::HalfMaximum => Cut::HalfMaximum,
        };
        let encoding = match self.image_format {
            ImageFormat::Jpeg => Encoding::Jpeg(self.jpeg_quality),
            ImageFormat::Png => Encoding::Png,
        };
        Ok(Gallery {
            hooks: hooks.collect::<Result<_>>()?,
            pictures: Pictures::new(cache, dataset, self.fit(), self.picture_memory.saturating_mul(1 << 20)),
            chosen,
            counterexamples,
            min_activating: self.min_activating,
            masking: Masking { cut, edges, dim: self.dim },
            encoding,
            jpeg_quality: self.jpeg_quality,
        })
    }

    fn fit(&self) -> Fit {
        match (self.square, self.image_side) {
            (Some(side), _) => Fit::Square(side.get()),
            (None, 0) => Fit::Own,
            (None, side) => Fit::Within(side),
        }
    }

    fn check_fingerprint(&self, cache: &Cache, now: &str) -> Result<()> {
        let source = &cache.manifest().dataset;
        if source.fingerprint == now {
            return Ok(());
        }
        let problem = if source.fingerprint.is_empty() {
            "the cache does not say of which data set it was made".to_owned()
        } else {
            format!(
                "{} is not the data set the cache was made of ({}): their fingerprints differ",
                self.dataset, source.name
            )
        };
        if self.allow_drift || source.fingerprint.is_empty() {
            tracing::warn!("{problem}; images with another hash than the cache's are left out");
            return Ok(());
        }
        let advice = format!(
            "see what differs with `sae-cache inspect {} --dataset {}`, or pass --allow-drift",
            self.cache.display(),
            self.dataset
        );
        Err(UsageError::new(format!("{problem}: {advice}")).into())
    }

    fn note_settings(&self, counterexamples: usize, seed: u64, manifest: &mut RunManifest) {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |v| v.get_name().to_owned())
        };
        let inputs: Vec<_> =
            manifest.inputs.iter().map(|input| (input.role.clone(), input.sha256.clone())).collect();
        manifest
            .settings
            .extend(inputs.into_iter().map(|(role, sha256)| (format!("--{role} (fingerprint)"), sha256)));
        let fit = match self.fit() {
            Fit::Within(side) => format!("{side}, own aspect"),
            Fit::Square(side) => format!("{side} x {side}"),
            Fit::Own => "their own".to_owned(),
        };
        let format = match self.image_format {
            ImageFormat::Jpeg => format!("jpeg, quality {}", self.jpeg_quality),
            ImageFormat::Png => "png".to_owned(),
        };
        manifest.settings.extend(
            [
                ("--max-examples", self.max_examples.to_string()),
                ("--min-activating", self.min_activating.to_string()),
                ("--examples", name(self.examples.to_possible_value())),
                ("--negatives", counterexamples.to_string()),
                ("--mask", name(self.mask.to_possible_value())),
                ("--cut", name(self.cut.to_possible_value())),
                ("--dim", self.dim.to_string()),
                ("--image-side or --square", fit),
                ("--image-format", format),
            ]
            .map(|(flag, value)| (flag.to_owned(), value)),
        );
        if self.examples != Picks::Top {
            manifest.settings.insert("--seed".to_owned(), seed.to_string());
        }
    }
}

impl Gallery {
    /// What is shown of a feature, or why nothing is.
    pub(crate) fn show(&self, key: &FeatureKey) -> Result<Exhibit, Outcome> {
        let failed = |error: anyhow::Error| Outcome::Failed(format!("{error:#}"));
        let enough = self.find(key).map_err(failed)?;
        let Some((examples, counterexamples)) = enough else {
            let reason = format!("active in fewer than {} images", self.min_activating);
            return Err(Outcome::Skipped(reason));
        };
        let mut exhibit = Exhibit { shown: Vec::new(), frames: Vec::new() };
        let mut problem = None;
        for example in examples {
            let (sample, score) = (example.sample, example.score);
            match self.frame(sample, Some(example)) {
                Ok(frame) => exhibit.push(frame, Shown { sample, score, not: false }),
                Err(error) => problem = Some(note(key, &error, problem)),
            }
        }
        if exhibit.frames.is_empty() {
            let problem = problem.unwrap_or_else(|| "there are no examples".to_owned());
            return Err(Outcome::Failed(format!("no image can be shown: {problem}")));
        }
        for sample in counterexamples {
            match self.frame(sample, None) {
                Ok(frame) => exhibit.push(frame, Shown { sample, score: 0.0, not: true }),
                Err(error) => drop(note(key, &error, None)),
            }
        }
        Ok(exhibit)
    }

    /// Examples and counterexamples; `None` if the feature is active in too few images.
    fn find(&self, key: &FeatureKey) -> Result<Option<(Vec<Example>, Vec<SampleId>)>> {
        let hook = self.hooks.get(&key.hook).with_context(|| format!("the cache has no {}", key.hook))?;
        let feature = hook.feature(key.feature)?;
        if explain::count_up_to(&feature, self.min_activating)? < self.min_activating {
            return Ok(None);
        }
        let examples = explain::examples(&feature, self.chosen)?;
        let found = explain::counterexamples(hook, &feature, &examples, self.counterexamples)?;
        Ok(Some((examples, found.into_iter().map(|found| found.sample).collect())))
    }

    fn frame(&self, sample: SampleId, example: Option<Example>) -> Result<Frame> {
        let picture = self.pictures.get(sample)?;
        let masked = example.map(|example| (self.masking.apply(&picture, &example.heat), example));
        let encoded = self.encoding.image(masked.as_ref().map_or(&*picture, |(lit, _)| lit))?;
        Ok(Frame { picture, masked, encoded })
    }

    /// Writes what is shown of a feature as msae does: the pictures, the masked pictures and the masks.
    pub(crate) fn save(&self, exhibit: &Exhibit, folder: &Path) -> Result<()> {
        let jpeg = Encoding::Jpeg(self.jpeg_quality);
        let write = |path: PathBuf, bytes: Vec<u8>| {
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::write(&path, bytes))
                .with_context(|| format!("cannot write {}", path.display()))
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
            write(folder.join(format!("activated_images/top{i}_activated.jpg")), jpeg.encode(lit)?)?;
            write(folder.join(format!("masks/{i}_mask.jpg")), jpeg.encode(&shade)?)?;
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
    pub(crate) fn counterexamples(&self) -> usize {
        self.shown.iter().filter(|shown| shown.not).count()
    }

    /// The pictures as they are sent, and the samples.
    pub(crate) fn into_parts(self) -> (Vec<Image>, Vec<Shown>) {
        (self.frames.into_iter().map(|frame| frame.encoded).collect(), self.shown)
    }
}

/// Warns of an example that is left out, and keeps the first reason.
fn note(key: &FeatureKey, error: &anyhow::Error, first: Option<String>) -> String {
    let problem = format!("{error:#}");
    tracing::warn!("{key}: an image is left out: {problem}");
    first.unwrap_or(problem)
}
