//! [`Prompts`]: what a sweep asks, from flags, a file or a data set.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use lmm_prep::read_image_upright;
use mm_data::hub::open_dataset;
use mm_data::{Choice, Dataset, Field, OpenOptions, Role, Share};
use serde::Deserialize;
use stage_kit::{RunManifest, UsageError, hash_bytes, hash_file, hash_files};

#[derive(Debug, clap::Args)]
pub(crate) struct PromptArgs {
    /// What to ask; of a data set's samples, of each
    #[arg(short, long, help_heading = "Prompts")]
    text: Option<String>,
    /// Image to ask about
    #[arg(short, long, conflicts_with_all = ["data", "dataset"], help_heading = "Prompts")]
    image: Option<PathBuf>,
    /// Prompts: a JSON list or lines of {"prompt", "image", "expected"}; an image is a path from the file's folder on, or the number
    /// of a sample of --dataset
    #[arg(long, value_name = "FILE", conflicts_with = "text", help_heading = "Prompts")]
    data: Option<PathBuf>,
    /// Data set whose samples' images are asked about: a path or Hub id. Without --text each is asked its own first question
    #[arg(long, help_heading = "Prompts")]
    dataset: Option<String>,
    /// Split of the data set
    #[arg(long, requires = "dataset", help_heading = "Prompts")]
    split: Option<String>,
    /// Ask about this many samples, the first ones; default: all
    #[arg(long, visible_alias = "limit", help_heading = "Prompts")]
    samples: Option<NonZeroUsize>,
}

/// A prompt, its images not yet read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt {
    /// The sample of the data set, or the number in the file.
    pub(crate) number: u32,
    /// The sample's own id.
    pub(crate) id: Option<String>,
    pub(crate) text: String,
    /// The answer that is wanted, if one is known.
    pub(crate) expected: Option<String>,
    pub(crate) images: Vec<RgbImage>,
}

/// All prompts, each read when it is asked for.
#[derive(Debug)]
pub(crate) struct Prompts {
    text: Option<String>,
    images: Vec<PathBuf>,
    entries: Option<Vec<Entry>>,
    dataset: Option<Dataset>,
    count: usize,
}

/// A line of `--data`. What else a file says is of no account.
#[derive(Clone, Debug, Deserialize)]
struct Entry {
    prompt: String,
    #[serde(default)]
    image: Option<ImageOf>,
    #[serde(default)]
    expected: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum ImageOf {
    Sample(u32),
    Path(PathBuf),
}

impl PromptArgs {
    /// Opens what the prompts come from.
    pub(crate) fn open(&self, run: &mut RunManifest) -> Result<Prompts> {
        let usage = |problem: &str| anyhow::Error::from(UsageError::new(problem));
        let dataset = match &self.dataset {
            None => None,
            Some(source) => {
                let fields = vec![Field::Images, Field::Conversations];
                let options = OpenOptions { split: self.split.clone(), fields, ..OpenOptions::default() };
                let set = open_dataset(source, &options)?;
                run.input("dataset", source, set.fingerprint());
                Some(set)
            }
        };
        let entries = match &self.data {
            None => None,
            Some(path) => {
                run.input("data", &path.display(), hash_file(path)?);
                let entries = entries(path)?;
                let images = entries.iter().filter_map(|entry| match &entry.image {
                    Some(ImageOf::Path(path)) => Some(path),
                    _ => None,
                });
                run.input("images of data", &path.display(), hash_files(images)?);
                Some(entries)
            }
        };
        if let Some(image) = &self.image {
            run.input("image", &image.display(), hash_file(image)?);
        }
        let all = match (&entries, &dataset, &self.text) {
            (Some(entries), ..) => entries.len(),
            (None, Some(set), _) => set.len(),
            (None, None, Some(_)) => 1,
            (None, None, None) => return Err(usage("say what to ask: --text, --data or --dataset")),
        };
        let count = Share::Count(self.samples.map_or(usize::MAX, NonZeroUsize::get)).of(all);
        ensure!(count > 0, "there is no prompt");
        Ok(Prompts {
            text: self.text.clone(),
            images: self.image.iter().cloned().collect(),
            entries,
            dataset,
            count: Choice::First.indices(count, all).len(),
        })
    }

    /// What decides the prompts beyond files, which are told by their hashes.
    pub(crate) fn setting(&self) -> String {
        self.text.as_ref().map_or("not set".to_owned(), |text| hash_bytes(text.as_bytes()))
    }
}

impl Prompts {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// A prompt with its images.
    pub(crate) fn get(&self, number: usize) -> Result<Prompt> {
        let prompt = Prompt {
            number: number as u32,
            id: None,
            text: self.text.clone().unwrap_or_default(),
            expected: None,
            images: Vec::new(),
        };
        if let Some(entries) = &self.entries {
            let Entry { prompt: text, image, expected } = entries[number].clone();
            let images = match image {
                None => Vec::new(),
                Some(ImageOf::Path(path)) => vec![read_image_upright(&path)?],
                Some(ImageOf::Sample(sample)) => self.images_of(sample as usize)?,
            };
            return Ok(Prompt { text, expected, images, ..prompt });
        }
        let Some(dataset) = &self.dataset else {
            let images = self.images.iter().map(|path| read_image_upright(path)).collect::<Result<_, _>>()?;
            return Ok(Prompt { images, ..prompt });
        };
        let sample = dataset.get(number)?;
        let images = self.images_of(number)?;
        if self.text.is_some() {
            return Ok(Prompt { id: sample.id, images, ..prompt });
        }
        let said = |role| sample.conversations.iter().find(|turn| turn.role == role);
        let Some(question) = said(Role::User) else {
            bail!("sample {number} of the data set asks nothing: say what to ask with --text");
        };
        let text = question.text.replace(model_kit::IMAGE_PROMPT, "").trim().to_owned();
        let expected = said(Role::Assistant).map(|turn| turn.text.trim().to_owned());
        Ok(Prompt { id: sample.id.clone(), text, expected, images, ..prompt })
    }

    fn images_of(&self, sample: usize) -> Result<Vec<RgbImage>> {
        let Some(dataset) = &self.dataset else {
            bail!(UsageError::new(format!("--data names image {sample} of a data set: add --dataset")));
        };
        ensure!(sample < dataset.len(), "the data set has {} samples, no number {sample}", dataset.len());
        let read = |image: &mm_data::EncodedImage| {
            lmm_prep::decode_image_upright(&image.bytes)
                .with_context(|| format!("cannot read an image of sample {sample} of the data set"))
        };
        dataset.get(sample)?.images.iter().map(read).collect()
    }
}

/// Reads a JSON list or JSON lines; paths of images become those from the file's folder on.
fn entries(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let wrong = || format!("{} holds no prompts such as {{\"prompt\": \"...\"}}", path.display());
    let mut entries: Vec<Entry> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text).with_context(wrong)?
    } else {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(serde_json::from_str).collect::<Result<_, _>>().with_context(wrong)?
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    for entry in &mut entries {
        if let Some(ImageOf::Path(image)) = &mut entry.image {
            *image = folder.join(&*image);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_lines_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            entries(&path)
        };
        let list = read("a.json", r#"[{"prompt": "a", "answer": "x"}, {"prompt": "b", "image": "c.png"}]"#);
        let lines = read("b.jsonl", "{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"image\": 3}\n");
        let (list, lines) = (list.unwrap(), lines.unwrap());
        assert_eq!((list.len(), lines.len()), (2, 2));
        assert!(matches!(&list[1].image, Some(ImageOf::Path(path)) if *path == folder.path().join("c.png")));
        assert!(matches!(lines[1].image, Some(ImageOf::Sample(3))));
        assert!(read("c.json", "[{\"text\": 3}]").unwrap_err().to_string().contains("c.json"));
    }
}
