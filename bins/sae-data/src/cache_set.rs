//! `sae-data cache-set`: several data sets, or shares of them, as one parquet data set of images.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use mm_data::{
    BadRecordCounter, BadRecords, Choice, Concat, Dataset, Field, ImageColumn, OpenOptions, SourceSpec,
};
use stage_kit::{Existing, OutputFolder, Progress, RunManifest, UsageError, hash_bytes};

use crate::shards::{self, ShardWriter};

pub(crate) const EXAMPLE: &str = "\
A source is PATH_OR_HUB_ID[:SPLIT][@SHARE], a share a percentage (5%) or a number (1000).

Example, the images that arXiv 2411.14982 (multimodal-sae) caches activations of, 46,684 of them:
  sae-data cache-set --choose first --save-dir cache-set \\
      lmms-lab/LLaVA-Bench-Wilder:test lmms-lab/MME:test lmms-lab/COCO-Caption2017:val \\
      lmms-lab/MMVet:test lmms-lab/LLaVA-NeXT-Data:train@5%

Ids are SOURCE/ID. A record without an id, or with one that was there before, gets its number:
SOURCE/ID#17.";

/// Which records a share takes.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Choose {
    /// Chosen by --seed, kept in their order
    Random,
    /// The first ones
    First,
}

/// Flags of `sae-data cache-set`.
#[derive(clap::Args)]
pub(crate) struct CacheSetArgs {
    /// Data sets to join: `PATH_OR_HUB_ID[:SPLIT][@SHARE]`, such as owner/name:train@5%
    #[arg(required = true)]
    sources: Vec<String>,
    /// Which records a share takes
    #[arg(long, value_enum, default_value_t = Choose::Random)]
    choose: Choose,
    /// Keep conversations, and all images of a record in a list; without it a record is its first image
    #[arg(long)]
    with_conversations: bool,
    /// Leave out records whose images, as files, were there before
    #[arg(long)]
    drop_duplicates: bool,
    /// Name of the split to write
    #[arg(long, default_value = "test")]
    split: String,
    /// What image paths of JSON sources are relative to; default: each JSON file's folder
    #[arg(long)]
    image_root: Option<PathBuf>,
    /// Records in one parquet file
    #[arg(long, default_value_t = NonZeroUsize::new(5000).expect("5000 is not 0"))]
    shard_size: NonZeroUsize,
    /// Leave out up to this many bad records instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    max_bad: u64,
    /// The folder to make
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it exists
    #[arg(long)]
    overwrite: bool,
}

/// What became of the records of one source.
#[derive(Default)]
struct Tally {
    written: u64,
    without_image: u64,
    duplicates: u64,
    further_images: u64,
}

/// Writes the data set.
pub(crate) fn write(args: &CacheSetArgs, seed: u64) -> anyhow::Result<()> {
    shards::check_split(&args.split)?;
    let specs = args.sources.iter().map(|source| {
        source.parse::<SourceSpec>().map_err(|error| UsageError::new(format!("{source}: {error}")))
    });
    let specs: Vec<SourceSpec> = specs.collect::<Result<_, _>>()?;
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(seed);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let mut fields = vec![Field::Images];
    let images = if args.with_conversations {
        fields.push(Field::Conversations);
        ImageColumn::List
    } else {
        ImageColumn::Single
    };
    let options =
        OpenOptions { fields: fields.clone(), image_root: args.image_root.clone(), ..OpenOptions::default() };
    let choice = match args.choose {
        Choose::Random => Choice::Seeded(seed),
        Choose::First => Choice::First,
    };
    let mut parts = Vec::with_capacity(specs.len());
    for (spec, source) in specs.iter().zip(&args.sources) {
        let (set, chosen) = spec.open(&options, choice).with_context(|| format!("source {source}"))?;
        manifest.input("dataset", source, set.fingerprint());
        parts.push((set, chosen));
    }
    let set = Concat::new(parts);
    let names = names(&set.parts().map(|(set, _)| set).collect::<Vec<_>>());

    let mut writer = ShardWriter::create(&output, &args.split, images, &fields, args.shard_size)?;
    let mut bad = BadRecordCounter::new(BadRecords::up_to(args.max_bad));
    let mut tallies: Vec<Tally> = names.iter().map(|_| Tally::default()).collect();
    let (mut ids, mut seen) = (HashSet::new(), HashSet::new());
    let progress = Progress::new("cache-set", "records", Some(set.len() as u64));
    for index in 0..set.len() {
        progress.inc(1);
        let Some(mut sample) = bad.admit(set.get(index))? else { continue };
        let (part, row) = set.locate(index);
        let tally = &mut tallies[part];
        if sample.images.is_empty() {
            tally.without_image += 1;
            continue;
        }
        if !args.with_conversations {
            tally.further_images += sample.images.len() as u64 - 1;
            sample.images.truncate(1);
        }
        if args.drop_duplicates {
            let hashes: Vec<String> = sample.images.iter().map(|image| hash_bytes(&image.bytes)).collect();
            if !seen.insert(short_hash(&hashes.join(" "))) {
                tally.duplicates += 1;
                continue;
            }
        }
        sample.id = Some(unique_id(&names[part], sample.id.as_deref(), row, &mut ids));
        writer.push(sample)?;
        tally.written += 1;
    }
    progress.finish();
    if writer.records() == 0 {
        anyhow::bail!("no record of {} has an image", args.sources.join(", "));
    }
    manifest.count("records", writer.records());
    manifest.count("files", writer.finish()? as u64);
    for (name, tally) in names.iter().zip(&tallies) {
        manifest.count(&format!("{name} records"), tally.written);
        let others = [
            ("records without image", tally.without_image),
            ("duplicates", tally.duplicates),
            ("further images left out", tally.further_images),
        ];
        others
            .iter()
            .filter(|(_, n)| *n > 0)
            .for_each(|(what, n)| manifest.count(&format!("{name} {what}"), *n));
    }
    shards::note_bad(&bad, &output, &mut manifest)?;
    shards::write_card(&output, &file_name(args), &args.split, &card(&names, &tallies))?;
    output.commit(manifest)?;
    tracing::info!("wrote {}", args.save_dir.display());
    Ok(())
}

fn file_name(args: &CacheSetArgs) -> String {
    args.save_dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn card(names: &[String], tallies: &[Tally]) -> String {
    let mut text =
        "Images of several data sets, joined by `sae-data cache-set`. Ids begin with the source.\n\n\
                    | source | records |\n|---|---|"
            .to_owned();
    for (name, tally) in names.iter().zip(tallies) {
        let _ = write!(text, "\n| {name} | {} |", tally.written);
    }
    text
}

/// A name for each source: the data set's, with the split where the same set is there twice, numbered where even that
/// repeats.
fn names(sets: &[&Dataset]) -> Vec<String> {
    let mut plain: BTreeMap<&str, usize> = BTreeMap::new();
    for set in sets {
        *plain.entry(set.name()).or_default() += 1;
    }
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let name = |set: &&Dataset| {
        let name = match set.split() {
            Some(split) if plain[set.name()] > 1 => format!("{}:{split}", set.name()),
            _ => set.name().to_owned(),
        };
        let times = used.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 { name } else { format!("{name}~{times}") }
    };
    sets.iter().map(name).collect()
}

/// `SOURCE/ID`, with the record's number where that was there before or it has no id.
fn unique_id(source: &str, id: Option<&str>, row: usize, ids: &mut HashSet<u128>) -> String {
    let mut name = match id {
        Some(id) => format!("{source}/{id}"),
        None => format!("{source}/#{row}"),
    };
    if !ids.insert(short_hash(&name)) {
        name = format!("{name}#{row}");
        while !ids.insert(short_hash(&name)) {
            name.push('\'');
        }
    }
    name
}

/// The first 128 bits of a SHA-256: enough to tell texts apart, and small enough to keep for every record.
fn short_hash(text: &str) -> u128 {
    let hash = hash_bytes(text.as_bytes());
    hash.bytes()
        .take(32)
        .fold(0, |sum, digit| sum << 4 | u128::from((digit as char).to_digit(16).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_never_repeat() {
        let mut ids = HashSet::new();
        let mut id = |id, row| unique_id("a/b", id, row, &mut ids);
        assert_eq!(id(Some("7"), 0), "a/b/7");
        assert_eq!(id(Some("7"), 1), "a/b/7#1");
        assert_eq!(id(None, 2), "a/b/#2");
        assert_eq!(id(Some("7#3"), 9), "a/b/7#3");
        assert_eq!(id(Some("7"), 3), "a/b/7#3'");
    }

    #[test]
    fn hashes_are_the_first_half() {
        assert_eq!(format!("{:032x}", short_hash("abc")), &hash_bytes(b"abc")[..32]);
    }
}
