//! `sae-cache images`: every image of a data set, shown with no words.

use std::collections::BTreeMap;

use act_cache::SampleRecord;
use anyhow::Result;
use mm_data::hub;
use mm_data::{DataError, Field, OpenOptions};
use model_kit::{IMAGE_PROMPT, TokenArgs, TorchArgs};
use stage_kit::CommonArgs;

use crate::args::StageArgs;
use crate::compute::Prepared;
use crate::plan::{Content, Reader};
use crate::record::record;
use crate::stage;

pub(crate) const EXAMPLE: &str = "\
Example, on one machine and, with one process per GPU, on four:
  sae-cache images MODEL DATASET --sae SAE --save-dir cache --device cuda
  for i in 0 1 2 3; do
    sae-cache images MODEL DATASET --sae SAE --save-dir cache --device cuda:$i --rank $i --world-size 4 &
  done; wait

Processes that torchrun, SLURM, MPI or Kubernetes start need neither flag. The last to end merges all parts; `sae-cache merge cache`
does so if it was killed. The files are the same however many processes there are, and after any kill and --resume.";

#[derive(Debug, clap::Args)]
pub(crate) struct ImagesArgs {
    #[command(flatten)]
    stage: StageArgs,
    /// Keep the token ids of every sample, image tokens repeated as the model reads them
    #[arg(long)]
    keep_tokens: bool,
}

pub(crate) fn run(args: &ImagesArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    let stage = &args.stage;
    let options = OpenOptions {
        split: stage.split.clone(),
        fields: vec![Field::Images],
        image_root: stage.image_root.clone(),
        ..OpenOptions::default()
    };
    let dataset = hub::open_dataset(&stage.dataset, &options)?;
    let content = Content {
        unit: "images",
        prompt: Some(IMAGE_PROMPT),
        keep_tokens: args.keep_tokens,
        drop_bos: true,
        conditions: BTreeMap::from([("subcommand".to_owned(), "images".to_owned())]),
    };
    stage::run(stage, torch, common, &content, dataset, prepare)
}

/// Reads and preprocesses the first image of a record.
fn prepare(reader: &Reader, index: usize) -> Result<Prepared, DataError> {
    let Reader { dataset, processor, base } = reader;
    let sample = dataset.get(index)?;
    let image = sample.images.first().ok_or_else(|| dataset.unusable(index, NoImage))?;
    let unusable = |cause| dataset.unusable(index, cause);
    let pixels = lmm_prep::decode_image_upright(&image.bytes).map_err(unusable)?;
    let inputs = processor.prepare(IMAGE_PROMPT, &[pixels]).map_err(unusable)?;
    let record: SampleRecord = record(index, sample.id, Some(&image.bytes), &inputs, *base);
    let positions = TokenArgs::default().positions(processor, &inputs);
    Ok(Prepared { record, inputs, positions })
}

/// A record without an image in a run that is about images.
#[derive(Debug, thiserror::Error)]
#[error("the record has no image")]
struct NoImage;
