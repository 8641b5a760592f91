//! `sae-data llava`: LLaVA's JSON and a folder of images as a parquet data set in the Hub's layout.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use mm_data::{
    BadRecordCounter, BadRecords, Choice, Concat, DataError, Dataset, Field, ImageColumn, OpenOptions, Share,
};
use stage_kit::{Existing, OutputFolder, Progress, RunManifest, UsageError};

use crate::shards::{self, ShardWriter};

pub(crate) const EXAMPLE: &str = "\
Example, LLaVA's instruction data and the images beside it, a tenth of them:
  sae-data llava llava_v1_5_mix665k.json --image-root images --max-examples 66500 \\
      --save-dir llava-tenth

Records are objects with `conversations` (from and value, or role and content), `image` or
`images` (a path, a list of paths, or none) and `id`. Those left out are listed in
bad_records.jsonl.";

/// In which column images are stored.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ImageColumnFlag {
    /// `image`: one or none; a record with several is an error
    Single,
    /// `images`: a list
    List,
    /// A list if any record has several images, else one
    Auto,
}

/// Flags of `sae-data llava`.
#[derive(clap::Args)]
pub(crate) struct LlavaArgs {
    /// JSON or JSONL file, or a folder of them
    source: PathBuf,
    /// What image paths are relative to; default: the folder of the JSON file
    #[arg(long)]
    image_root: Option<PathBuf>,
    /// Split to read, for a folder that has several
    #[arg(long)]
    source_split: Option<String>,
    /// Name of the split to write
    #[arg(long, default_value = "train")]
    split: String,
    /// Take this many records, chosen by --seed and kept in their order; default: all
    #[arg(long)]
    max_examples: Option<NonZeroUsize>,
    /// Column for images
    #[arg(long, value_enum, default_value_t = ImageColumnFlag::Auto)]
    image_column: ImageColumnFlag,
    /// Records in one parquet file
    #[arg(long, default_value_t = NonZeroUsize::new(5000).expect("5000 is not 0"))]
    shard_size: NonZeroUsize,
    /// Leave out up to this many bad records (missing images, broken rows) instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    max_bad: u64,
    /// The folder to make
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Writes the data set.
pub(crate) fn write(args: &LlavaArgs, seed: u64) -> anyhow::Result<()> {
    shards::check_split(&args.split)?;
    if let Some(root) = args.image_root.as_ref().filter(|root| !root.is_dir()) {
        let message = format!("--image-root {}: there is no such folder", root.display());
        return Err(UsageError::new(message).into());
    }
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(seed);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let (set, chosen) = open(args, seed)?;
    let images = image_column(args.image_column, &set, &chosen);
    let set = Concat::new([(set, chosen)]);
    manifest.input("dataset", &args.source.display(), set.fingerprint());

    let fields = [Field::Images, Field::Conversations];
    let mut writer = ShardWriter::create(&output, &args.split, images, &fields, args.shard_size)?;
    let mut bad = BadRecordCounter::new(BadRecords::up_to(args.max_bad));
    let progress = Progress::new("llava", "records", Some(set.len() as u64));
    let (mut n_images, mut without) = (0, 0);
    for index in 0..set.len() {
        progress.inc(1);
        let record = set.get(index).and_then(|sample| match (images, sample.images.len()) {
            (ImageColumn::Single, got @ 2..) => Err(set.unusable(index, SeveralImages { got })),
            _ => Ok(sample),
        });
        let Some(sample) = bad.admit(record)? else { continue };
        n_images += sample.images.len() as u64;
        without += u64::from(sample.images.is_empty());
        writer.push(sample)?;
    }
    progress.finish();
    if writer.records() == 0 {
        return Err(DataError::Empty { path: args.source.clone() }.into());
    }
    manifest.count("records", writer.records());
    manifest.count("images", n_images);
    manifest.count("records without image", without);
    manifest.count("files", writer.finish()? as u64);
    shards::note_bad(&bad, &output, &mut manifest)?;
    let name = args.save_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let column = match images {
        ImageColumn::Single => "`image`",
        ImageColumn::List => "`images` (a list)",
    };
    let text =
        format!("Conversations (`conversations`) about images ({column}), packed by `sae-data llava`.");
    shards::write_card(&output, &name, &args.split, &text)?;
    output.commit(manifest)?;
    tracing::info!("wrote {}", args.save_dir.display());
    Ok(())
}

/// The source, and the records of it to take.
fn open(args: &LlavaArgs, seed: u64) -> anyhow::Result<(Dataset, Vec<u32>)> {
    let options = OpenOptions {
        split: args.source_split.clone(),
        fields: vec![Field::Images, Field::Conversations],
        image_root: args.image_root.clone(),
        ..OpenOptions::default()
    };
    let set = Dataset::open_with(&args.source, &options)?;
    let share = args.max_examples.map_or(Share::All, |count| Share::Count(count.get()));
    let chosen = Choice::Seeded(seed).indices(share.of(set.len()), set.len());
    Ok((set, chosen))
}

/// What the flag comes to. Bad records have no say; they are met again when they are read.
fn image_column(flag: ImageColumnFlag, set: &Dataset, chosen: &[u32]) -> ImageColumn {
    let several = || chosen.iter().any(|&index| set.n_images(index as usize).is_ok_and(|n| n > 1));
    match flag {
        ImageColumnFlag::List => ImageColumn::List,
        ImageColumnFlag::Auto if several() => ImageColumn::List,
        ImageColumnFlag::Single | ImageColumnFlag::Auto => ImageColumn::Single,
    }
}

/// A record with several images where the column takes one.
#[derive(Debug)]
struct SeveralImages {
    got: usize,
}

impl std::fmt::Display for SeveralImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it has {} images, and --image-column single takes one", self.got)
    }
}

impl std::error::Error for SeveralImages {}
