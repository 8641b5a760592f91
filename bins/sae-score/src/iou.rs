//! `sae-score iou`: whether a feature is on where its explanation says.

mod annotate;
mod grounded;
mod record;
mod report;
mod segment;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use explain::{Cut, Edges, FeatureKey, HeatMap, Masking};
use explain_kit::{IMAGES, RunArgs, Stage};
use mm_data::Field;
use model_kit::TorchArgs;
use scoring::baselines::{translated, whole_image};
use scoring::{CountAs, ImageOutcome, Policy};
use stage_kit::{CommonArgs, RunManifest};

use crate::chance::{Draw, random};
use crate::explained::ExplainedArgs;
use crate::features::ImageRun;
use crate::images::{ImageArgs, Images, Seen};
use grounded::{Grounded, GroundingArgs};
use record::{ImageScores, IouRecord};
use segment::{Annotated, Segmenter};

const STAGE: Stage = Stage {
    name: "iou",
    suffix: Some("_iou"),
    extra: &["iou.summary.json", "iou.html"],
    keeps_images: true,
    flag: "--save-dir",
};

pub(crate) const EXAMPLE: &str = "\
Examples: with GroundingDINO and SAM, as the paper; against a data set's own masks:
  sae-score iou --explanations explained --refined --cache cache --dataset DATASET --save-dir iou --device cuda
  sae-score iou --explanations explained --cache cache --dataset shapes-test --masks annotations --save-dir iou

SAVE_DIR/iou.html shows the scores beside their baselines, iou.summary.json holds them, model_layers_24_iou.json is multimodal-sae's
form, and iou.jsonl, a line per feature, is what --resume reads.";

#[derive(Debug, clap::Args)]
pub(crate) struct IouArgs {
    #[command(flatten)]
    explained: ExplainedArgs,
    /// Folder to write
    #[arg(long)]
    save_dir: PathBuf,
    /// From which activation on a patch belongs to the feature's mask
    #[arg(long, value_enum, default_value_t = MaskCut::HalfMaximum)]
    mask_cut: MaskCut,
    /// Where the masks of what an explanation names come from
    #[arg(long, value_enum, default_value_t = Masks::Grounded)]
    masks: Masks,
    /// Leave images in which nothing is found out of the mean, instead of counting them 0. That goes for other features' explanations too, most
    /// of which are about something that is not in the image: what is left of that baseline are the few that are
    #[arg(long)]
    misses_apart: bool,
    /// Do not look for the explanations of other features, which halves the work of the models
    #[arg(long)]
    no_permuted: bool,
    /// Features with pictures in the report, half of them the best and half the worst
    #[arg(long, default_value_t = 24)]
    shown: usize,
    /// Keep each image with the feature's mask and what was found, in SAVE_DIR/images
    #[arg(long)]
    save_images: bool,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    grounding: GroundingArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What counts as on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MaskCut {
    /// Half of the image's largest activation, each pixel as its patch
    HalfMaximum,
    /// Any activation, each pixel as its patch
    Positive,
    /// Any activation, blurred, and every pixel that the blur touches: a patch becomes up to four times as large
    Msae,
}

/// Where masks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Masks {
    /// GroundingDINO's boxes, cut out by SAM
    Grounded,
    /// The data set's column `masks`, whose labels must be as the explanations
    Annotations,
}

impl MaskCut {
    /// The pixels `[height * width]` on which a feature is.
    fn mask(self, heat: &HeatMap, width: u32, height: u32) -> Vec<bool> {
        let cut = match self {
            Self::HalfMaximum => Cut::HalfMaximum,
            Self::Positive => Cut::Positive,
            Self::Msae => {
                let masking = Masking { cut: Cut::Positive, edges: Edges::Bilinear, dim: MSAE_DIM };
                let shade = masking.shade(heat, width, height);
                return shade.as_raw().iter().map(|&shade| shade < 255 - MSAE_DIM).collect();
            }
        };
        heat.mask(width, height, cut).pixels().to_vec()
    }
}

/// msae's mask images are 224 where the feature is off.
const MSAE_DIM: u8 = 31;

pub(crate) fn run(args: &IouArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    let fields: &[Field] = match args.masks {
        Masks::Grounded => &[Field::Images],
        Masks::Annotations => &[Field::Images, Field::Masks],
    };
    let mut run = ImageRun::open(&args.explained, &args.images, fields, common)?;
    args.note_settings(&mut run.manifest);
    let mut segmenter: Box<dyn Segmenter> = match args.masks {
        Masks::Grounded => Box::new(Grounded::open(&args.grounding, torch, &mut run.manifest)?),
        Masks::Annotations => {
            let dataset = run.finder.dataset();
            if !dataset.has_masks() {
                bail!("--masks annotations: {} has no column `masks`", dataset.name());
            }
            Box::new(Annotated::new(dataset))
        }
    };
    if !args.no_permuted {
        run.draw_others(common.seed);
    }
    let images = args.save_images.then(|| args.save_dir.join(IMAGES));
    let scorer = Scorer { cut: args.mask_cut, seed: common.seed, images };
    run.score(
        "scoring overlaps",
        STAGE,
        &args.save_dir,
        &args.run,
        |key, text, other, images| scorer.score(&mut *segmenter, key, text, other, images),
        |explained, finder, records| report::write(args, explained, finder, records),
    )
}

impl IouArgs {
    fn policy(&self) -> Policy {
        let no_detection = if self.misses_apart { CountAs::Apart } else { CountAs::Zero };
        Policy { no_detection, ..Policy::default() }
    }

    fn note_settings(&self, manifest: &mut RunManifest) {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        let settings = [
            ("--mask-cut", name(self.mask_cut.to_possible_value())),
            ("--masks", name(self.masks.to_possible_value())),
            ("--no-permuted", self.no_permuted.to_string()),
        ];
        manifest.settings.extend(settings.map(|(flag, value)| (flag.to_owned(), value)));
    }
}

/// Compares masks.
struct Scorer {
    cut: MaskCut,
    seed: u64,
    /// Where annotated images are kept, if they are.
    images: Option<PathBuf>,
}

impl Scorer {
    fn score(
        &self,
        segmenter: &mut dyn Segmenter,
        key: &FeatureKey,
        text: &str,
        other: Option<&str>,
        images: &Images,
    ) -> Result<IouRecord> {
        let mut record = IouRecord::new(key, text, other);
        let mut random = random(self.seed, key, Draw::MovedMask);
        for (at, Seen { example, picture }) in images.strongest.iter().enumerate() {
            let picture = match picture {
                Ok(picture) => picture,
                Err(reason) => {
                    record.images.push(ImageScores::failed(example.sample, reason));
                    continue;
                }
            };
            let (width, height) = picture.dimensions();
            let mask = self.cut.mask(&example.heat, width, height);
            let covered = mask.iter().filter(|&&on| on).count() as f64 / mask.len().max(1) as f64;
            let moved = translated(&mask, width as usize, height as usize, &mut random);
            let found = segmenter.find(example.sample, picture, text);
            if let (Some(folder), Ok(found)) = (&self.images, &found) {
                let folder = folder.join(key.hook.file_stem()).join(key.to_string());
                annotate::save(picture, &mask, found, &folder.join(format!("top_{at}.png")))?;
            }
            let outcome = |mask: &[bool], found: &Result<Vec<bool>>| match found {
                Ok(found) => ImageOutcome::of(mask, found),
                Err(error) => ImageOutcome::Failed(format!("{error:#}")),
            };
            record.images.push(ImageScores {
                sample: example.sample,
                covered,
                own: outcome(&mask, &found),
                other: other.map(|text| outcome(&mask, &segmenter.find(example.sample, picture, text))),
                moved: outcome(&moved, &found),
                whole: outcome(&whole_image(mask.len()), &found),
            });
        }
        for (example, picture) in &images.random {
            let (width, height) = picture.dimensions();
            let mask = self.cut.mask(&example.heat, width, height);
            record.random.push(match segmenter.find(example.sample, picture, text) {
                Ok(found) => ImageOutcome::of(&mask, &found),
                Err(error) => ImageOutcome::Failed(format!("{error:#}")),
            });
        }
        Ok(record)
    }
}
