//! `sae-data ade20k`: ADE20K's scene parsing benchmark as a parquet data set with masks.

use std::path::PathBuf;

use mm_data::annotations::Ade20k;

use crate::annotated::{self, AnnotatedArgs};

pub(crate) const EXAMPLE: &str = "\
Example, the 2,000 images of the validation split:
  sae-data ade20k ADEChallengeData2016 --save-dir ade20k

The folder is that of ADEChallengeData2016.zip (SceneParsing): images, annotations and
objectInfo150.txt. Each of the 150 classes in an image is a mask, labelled with all names that are
no other class's own; README.md in the new folder lists the labels. The full ADE20K, with its
*_seg.png, is not read: its names are in a Python pickle only.";

/// Flags of `sae-data ade20k`.
#[derive(clap::Args)]
pub(crate) struct Ade20kArgs {
    /// The folder ADEChallengeData2016
    folder: PathBuf,
    /// Split to read: training or validation
    #[arg(long, default_value = "validation")]
    source_split: String,
    #[command(flatten)]
    annotated: AnnotatedArgs,
}

/// Writes the data set.
pub(crate) fn write(args: &Ade20kArgs, seed: u64) -> anyhow::Result<()> {
    let folder = &args.folder;
    annotated::write(&args.annotated, seed, "ade20k", folder, || Ade20k::open(folder, &args.source_split))
}
