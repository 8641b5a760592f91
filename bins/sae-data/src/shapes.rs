//! `sae-data shapes`: scenes of `shapes-world` as a parquet data set in the Hub's layout.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::{GrayImage, ImageFormat, RgbImage};
use mm_data::{EncodedImage, ImageColumn, MaskAnnotation, ParquetWriter, Role, Sample, Turn};
use shapes_world::Scene;
use stage_kit::{Existing, OutputFolder, Progress, RunManifest, UsageError};

use crate::shards;

pub(crate) const EXAMPLE: &str = "\
Example, a set to train on and one to cache:
  sae-data shapes --count 20000 --save-dir shapes
  sae-data shapes --count 1000 --offset 20000 --split test --save-dir shapes-test";

/// Scenes in one parquet file.
const SCENES_PER_FILE: u64 = 20_000;

/// Flags of `sae-data shapes`.
#[derive(clap::Args)]
pub(crate) struct ShapesArgs {
    /// How many scenes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Number of the first scene; scenes of one seed are told apart by their numbers.
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// Name of the split.
    #[arg(long, default_value = "train")]
    split: String,
    /// The folder to make.
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it exists.
    #[arg(long)]
    overwrite: bool,
}

/// Writes the data set.
pub(crate) fn write(args: &ShapesArgs, seed: u64) -> anyhow::Result<()> {
    let split = &args.split;
    shards::check_split(split)?;
    let Some(end) = args.offset.checked_add(args.count) else {
        return Err(UsageError::new("--offset and --count together exceed the numbers there are").into());
    };
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(seed);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let data = shards::data_folder(&output)?;

    let progress = Progress::new("shapes", "scenes", Some(args.count));
    let n_files = args.count.div_ceil(SCENES_PER_FILE);
    let (mut n_objects, mut n_questions) = (0, 0);
    for file in 0..n_files {
        let path = data.join(format!("{split}-{file:05}-of-{n_files:05}.parquet"));
        let first = args.offset + file * SCENES_PER_FILE;
        let mut writer = ParquetWriter::create(&path, ImageColumn::Single)?;
        for index in first..end.min(first.saturating_add(SCENES_PER_FILE)) {
            let scene = Scene::generate(seed, index);
            let sample = sample(&scene, seed, index)?;
            n_objects += sample.masks.len() as u64;
            n_questions += sample.conversations.len() as u64 / 2;
            writer.push(sample)?;
            progress.inc(1);
        }
        writer.finish()?;
    }
    progress.finish();

    write_card(&output.path().join("README.md"), args, seed)?;
    manifest.count("scenes", args.count);
    manifest.count("objects", n_objects);
    manifest.count("questions", n_questions);
    output.commit(manifest)?;
    tracing::info!("wrote {}", args.save_dir.display());
    Ok(())
}

fn sample(scene: &Scene, seed: u64, index: u64) -> anyhow::Result<Sample> {
    let id = format!("{seed}-{index}");
    let mut conversations = Vec::new();
    for question in scene.questions() {
        let mark = if conversations.is_empty() { "<image>\n" } else { "" };
        conversations.push(Turn { role: Role::User, text: format!("{mark}{}", question.text) });
        conversations.push(Turn { role: Role::Assistant, text: question.answer.to_owned() });
    }
    let mut masks = Vec::with_capacity(scene.objects.len());
    for (number, object) in scene.objects.iter().enumerate() {
        masks.push(MaskAnnotation { labels: object.descriptions(), png: mask_png(&scene.mask(number))? });
    }
    let image = EncodedImage { name: Some(format!("{id}.png")), bytes: image_png(&scene.render())? };
    Ok(Sample {
        id: Some(id),
        images: vec![image],
        conversations,
        caption: Some(scene.caption()),
        masks,
        ..Sample::default()
    })
}

fn image_png(image: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).context("cannot encode a scene")?;
    Ok(bytes.into_inner())
}

fn mask_png(mask: &GrayImage) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    mask.write_to(&mut bytes, ImageFormat::Png).context("cannot encode a mask")?;
    Ok(bytes.into_inner())
}

/// The data set card the Hub shows.
fn write_card(path: &Path, args: &ShapesArgs, seed: u64) -> anyhow::Result<()> {
    let ShapesArgs { count, offset, split, .. } = args;
    let last = offset + (count - 1);
    let card = format!(
        "---\n\
         license: cc0-1.0\n\
         pretty_name: Shapes\n\
         task_categories:\n\
         - visual-question-answering\n\
         - image-segmentation\n\
         configs:\n\
         - config_name: default\n\
         \x20 data_files:\n\
         \x20 - split: {split}\n\
         \x20   path: data/{split}-*\n\
         ---\n\
         \n\
         # Shapes\n\
         \n\
         {count} drawn scenes of one to four coloured shapes, numbers {offset} to {last} of seed {seed}. Made by\n\
         `sae-data shapes`; the same numbers of the same seed are the same pixels everywhere.\n\
         \n\
         | column | what it holds |\n\
         |---|---|\n\
         | `id` | seed and number |\n\
         | `image` | the scene, PNG |\n\
         | `conversations` | questions (`human`, the first after `<image>`) and their one-word answers (`gpt`) |\n\
         | `caption` | the objects from left to right |\n\
         | `masks` | for each object what it can be called (`circle`, `red`, `large red circle`) and its pixels (255) |\n"
    );
    shards::write_file(path, &card)
}
