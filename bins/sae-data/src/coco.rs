//! `sae-data coco`: COCO's annotations and a folder of images as a parquet data set with masks.

use std::path::PathBuf;

use mm_data::annotations::{Coco, CocoOptions};
use stage_kit::UsageError;

use crate::annotated::{self, AnnotatedArgs};

pub(crate) const EXAMPLE: &str = "\
Examples, the objects alone, and with walls, sky and other ground:
  sae-data coco annotations/instances_val2017.json --image-root val2017 --save-dir coco
  sae-data coco annotations/panoptic_val2017.json --image-root val2017 --save-dir coco-panoptic

Masks are polygons or run lengths (instances_*.json, stuff_*.json, LVIS), or panoptic segments with
their PNG files. Each object is a mask of its own, labelled with its category; README.md in the new
folder lists the labels. Images left out as bad are listed in bad_records.jsonl.";

/// Flags of `sae-data coco`.
#[derive(clap::Args)]
pub(crate) struct CocoArgs {
    /// JSON file with the lists images, annotations and categories
    annotations: PathBuf,
    /// What image paths are relative to; default: the folder of the JSON file
    #[arg(long)]
    image_root: Option<PathBuf>,
    /// Where the PNG files of a panoptic JSON file are; default: the folder of its name beside it
    #[arg(long)]
    panoptic_root: Option<PathBuf>,
    /// Leave out regions marked as crowds; they are kept because they show what they are labelled with
    #[arg(long)]
    no_crowds: bool,
    /// Label masks with the category's supercategory, too: animal, vehicle
    #[arg(long)]
    supercategories: bool,
    #[command(flatten)]
    annotated: AnnotatedArgs,
}

/// Writes the data set.
pub(crate) fn write(args: &CocoArgs, seed: u64) -> anyhow::Result<()> {
    for (flag, folder) in [("--image-root", &args.image_root), ("--panoptic-root", &args.panoptic_root)] {
        if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
            let message = format!("{flag} {}: there is no such folder", folder.display());
            return Err(UsageError::new(message).into());
        }
    }
    let path = &args.annotations;
    let beside = path.parent().unwrap_or_else(|| "".as_ref());
    let options = CocoOptions {
        no_crowds: args.no_crowds,
        supercategories: args.supercategories,
        panoptic_root: args.panoptic_root.clone(),
    };
    annotated::write(&args.annotated, seed, "coco", path, || {
        Coco::open(path, args.image_root.as_deref().unwrap_or(beside), options)
    })
}
