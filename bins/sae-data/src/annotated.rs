//! Other people's annotated images as a parquet data set with masks: what `sae-data coco` and `ade20k` share.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Cursor;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use image::{ImageError, ImageReader};
use mm_data::annotations::AnnotatedImages;
use mm_data::{BadRecordCounter, BadRecords, Choice, DataError, Field, ImageColumn, Sample, Share};
use stage_kit::{Existing, OutputFolder, Progress, RunManifest};

use crate::shards::{self, ShardWriter};

/// Flags of both.
#[derive(clap::Args)]
pub(crate) struct AnnotatedArgs {
    /// Name of the split to write
    #[arg(long, default_value = "test")]
    split: String,
    /// Take this many of the images listed, chosen by --seed and kept in their order; default: all
    #[arg(long)]
    max_examples: Option<NonZeroUsize>,
    /// Keep images in which nothing is annotated, which are never scored against masks
    #[arg(long)]
    keep_unannotated: bool,
    /// Records in one parquet file
    #[arg(long, default_value_t = NonZeroUsize::new(5000).expect("5000 is not 0"))]
    shard_size: NonZeroUsize,
    /// Leave out up to this many bad records (missing images, broken annotations) instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    max_bad: u64,
    /// The folder to make
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Writes the data set of the images that `open` gives, which `command` reads from `source`.
pub(crate) fn write<T: AnnotatedImages>(
    args: &AnnotatedArgs,
    seed: u64,
    command: &str,
    source: &Path,
    open: impl FnOnce() -> Result<T, DataError>,
) -> anyhow::Result<()> {
    shards::check_split(&args.split)?;
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(seed);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let mut images = open()?;
    manifest.input("annotations", &source.display(), images.fingerprint());
    let share = args.max_examples.map_or(Share::All, |count| Share::Count(count.get()));
    let chosen = Choice::Seeded(seed).indices(share.of(images.len()), images.len());

    let mut bad = BadRecordCounter::new(BadRecords::up_to(args.max_bad));
    for stray in images.take_strays() {
        bad.admit(Err::<(), _>(stray))?;
    }
    let fields = [Field::Images, Field::Masks];
    let mut writer =
        ShardWriter::create(&output, &args.split, ImageColumn::Single, &fields, args.shard_size)?;
    let progress = Progress::new(command, "images", Some(chosen.len() as u64));
    let mut unannotated = 0;
    let mut masks = BTreeMap::new();
    for index in chosen {
        progress.inc(1);
        let index = index as usize;
        let record = images.get(index).and_then(|sample| match check_sizes(&sample) {
            Ok(()) => Ok(sample),
            Err(cause) => Err(images.unusable(index, Box::new(cause))),
        });
        let Some(sample) = bad.admit(record)? else { continue };
        if sample.masks.is_empty() {
            unannotated += 1;
            if !args.keep_unannotated {
                continue;
            }
        }
        for mask in &sample.masks {
            *masks.entry(mask.labels.join(", ")).or_insert(0_u64) += 1;
        }
        writer.push(sample)?;
    }
    progress.finish();
    if masks.is_empty() {
        anyhow::bail!("no image of {} has an annotated region", source.display());
    }
    manifest.count("records", writer.records());
    manifest.count("masks", masks.values().sum());
    manifest.count("images without masks", unannotated);
    manifest.count("files", writer.finish()? as u64);
    shards::note_bad(&bad, &output, &mut manifest)?;
    let name = args.save_dir.file_name().unwrap_or_default().to_string_lossy();
    shards::write_card(&output, &name, &args.split, &card(command, &masks))?;
    output.commit(manifest)?;
    tracing::info!("wrote {}", args.save_dir.display());
    Ok(())
}

fn card(command: &str, masks: &BTreeMap<String, u64>) -> String {
    let mut text = format!(
        "Images (`image`) with the pixels of what is annotated in them (`masks`), packed by `sae-data {command}`.\n\n\
         | labels | masks |\n|---|---|"
    );
    for (labels, n) in masks {
        let _ = write!(text, "\n| {labels} | {n} |");
    }
    text
}

/// Compares the size of the image with that of the masks, which is the one the annotations give it.
fn check_sizes(sample: &Sample) -> Result<(), UnfitImage> {
    let size = |bytes: &[u8]| -> Result<(u32, u32), UnfitImage> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(ImageError::from)?;
        Ok(reader.into_dimensions()?)
    };
    for image in &sample.images {
        let image = size(&image.bytes)?;
        // All masks of an image have one size.
        if let Some(mask) = sample.masks.first() {
            let annotated = size(&mask.png)?;
            if image != annotated {
                return Err(UnfitImage::Size { image, annotated });
            }
        }
    }
    Ok(())
}

/// An image that the annotations cannot be about.
#[derive(Debug)]
enum UnfitImage {
    Unreadable(ImageError),
    Size { image: (u32, u32), annotated: (u32, u32) },
}

impl From<ImageError> for UnfitImage {
    fn from(error: ImageError) -> Self {
        Self::Unreadable(error)
    }
}

impl std::fmt::Display for UnfitImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(_) => f.write_str("the file is no image"),
            Self::Size { image, annotated } => write!(
                f,
                "the image has {} x {} pixels, by the annotations {} x {}: was it resized?",
                image.0, image.1, annotated.0, annotated.1
            ),
        }
    }
}

impl std::error::Error for UnfitImage {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable(error) => Some(error),
            Self::Size { .. } => None,
        }
    }
}
