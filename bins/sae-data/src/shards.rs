//! What the subcommands share: parquet files of so many records each, the data set card, flags about bad records.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context;
use mm_data::{BadRecordCounter, DataError, Field, ImageColumn, ParquetWriter, Sample};
use stage_kit::{OutputFolder, RunManifest, UsageError};

/// Writes `data/{split}-00000-of-00003.parquet` and so on, each of so many records.
pub(crate) struct ShardWriter {
    folder: PathBuf,
    split: String,
    images: ImageColumn,
    fields: Vec<Field>,
    shard_size: usize,
    current: Option<ParquetWriter>,
    done: usize,
    records: u64,
}

impl ShardWriter {
    /// Makes the folder `data` in `output`.
    pub(crate) fn create(
        output: &OutputFolder,
        split: &str,
        images: ImageColumn,
        fields: &[Field],
        shard_size: NonZeroUsize,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            folder: data_folder(output)?,
            split: split.to_owned(),
            images,
            fields: fields.to_owned(),
            shard_size: shard_size.get(),
            current: None,
            done: 0,
            records: 0,
        })
    }

    pub(crate) fn push(&mut self, sample: Sample) -> Result<(), DataError> {
        let mut writer = if let Some(writer) = self.current.take() {
            writer
        } else {
            ParquetWriter::with_fields(&self.path(self.done, None), self.images, &self.fields)?
        };
        writer.push(sample)?;
        self.records += 1;
        let full = writer.len() == self.shard_size;
        self.current = Some(writer);
        if full { self.close() } else { Ok(()) }
    }

    /// How many records were written.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    fn close(&mut self) -> Result<(), DataError> {
        if let Some(writer) = self.current.take() {
            writer.finish()?;
            self.done += 1;
        }
        Ok(())
    }

    fn path(&self, number: usize, total: Option<usize>) -> PathBuf {
        let split = &self.split;
        let total = total.map(|total| format!("-of-{total:05}")).unwrap_or_default();
        self.folder.join(format!("{split}-{number:05}{total}.parquet"))
    }

    /// Closes the last file and gives all of them the names that say how many there are. Returns how many.
    pub(crate) fn finish(mut self) -> anyhow::Result<usize> {
        self.close()?;
        for number in 0..self.done {
            let (from, to) = (self.path(number, None), self.path(number, Some(self.done)));
            fs::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))?;
        }
        Ok(self.done)
    }
}

/// Makes the folder `data` in `output`.
pub(crate) fn data_folder(output: &OutputFolder) -> anyhow::Result<PathBuf> {
    let folder = output.path().join("data");
    fs::create_dir(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

/// Refuses names of splits that would not come back from a file's name.
pub(crate) fn check_split(split: &str) -> Result<(), UsageError> {
    if split.is_empty() || !split.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(UsageError::new(format!("--split {split:?}: use letters, digits and underscores")));
    }
    Ok(())
}

/// Notes the bad records in the manifest and, if there are any, lists them in `bad_records.jsonl`.
pub(crate) fn note_bad(
    bad: &BadRecordCounter,
    output: &OutputFolder,
    manifest: &mut RunManifest,
) -> anyhow::Result<()> {
    manifest.count("bad records", bad.bad());
    if bad.bad() > 0 {
        bad.write_list(&output.path().join("bad_records.jsonl"))?;
        tracing::warn!("{} records left out: see bad_records.jsonl", bad.bad());
    }
    Ok(())
}

/// Writes the card the Hub shows, `README.md`: front matter that says where the split lies, then `text`.
pub(crate) fn write_card(output: &OutputFolder, name: &str, split: &str, text: &str) -> anyhow::Result<()> {
    let card = format!(
        "---\n\
         pretty_name: {name}\n\
         configs:\n\
         - config_name: default\n\
         \x20 data_files:\n\
         \x20 - split: {split}\n\
         \x20   path: data/{split}-*\n\
         ---\n\
         \n\
         # {name}\n\
         \n\
         {text}\n"
    );
    write_file(&output.path().join("README.md"), &card)
}

pub(crate) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
