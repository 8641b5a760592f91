//! [`Concat`]: several data sets, or parts of them, as one.

use std::path::Path;
use std::str::FromStr;

use crate::dataset::{Dataset, OpenOptions};
use crate::fingerprint::Fingerprint;
use crate::order::shuffled_order;
use crate::sample::Sample;
use crate::{DataError, hub};

/// How much of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Share {
    /// All of it.
    #[default]
    All,
    /// At most this many records, at least 1.
    Count(usize),
    /// This part of its records in percent, above 0 and at most 100, rounded down.
    Percent(f64),
}

impl Share {
    /// How many of `len` records; 0 when a percentage of few records is less than one.
    pub fn of(self, len: usize) -> usize {
        match self {
            Self::All => len,
            Self::Count(count) => count.min(len),
            Self::Percent(percent) => (percent * len as f64 / 100.0) as usize,
        }
    }
}

impl FromStr for Share {
    type Err = DataError;

    /// `5%`, `0.5%` or `1000`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let wrong = || DataError::Share { got: text.to_owned() };
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse::<f64>() {
                Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            },
            None => match text.parse::<usize>() {
                Ok(count) if count > 0 => Ok(Self::Count(count)),
                _ => Err(wrong()),
            },
        }
    }
}

/// Which records a [`Share`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first ones.
    First,
    /// The first ones of [`shuffled_order`] with this seed.
    Seeded(u64),
}

impl Choice {
    /// `count` of `0..len`, ascending.
    ///
    /// # Panics
    /// When `len` is more than `u32::MAX`, or `count` more than `len`.
    #[track_caller]
    pub fn indices(self, count: usize, len: usize) -> Vec<u32> {
        assert!(count <= len, "{count} of {len} records");
        let all = 0..u32::try_from(len).expect("a data set has at most u32::MAX records");
        match self {
            _ if count == len => all.collect(),
            Self::First => all.take(count).collect(),
            Self::Seeded(seed) => {
                let mut chosen = shuffled_order(len, seed);
                chosen.truncate(count);
                chosen.sort_unstable();
                chosen
            }
        }
    }
}

/// A data set as it is named on a command line: `PATH_OR_HUB_ID[:SPLIT][@SHARE]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    /// The path, or the Hub id with `@REVISION` where one was given.
    pub location: String,
    /// The split.
    pub split: Option<String>,
    /// How much of it.
    pub share: Share,
}

impl FromStr for SourceSpec {
    type Err = DataError;

    /// A path that exists as it is written is that path, whatever it holds. What follows the last `@` is a share where it
    /// begins with a digit and reads like one, else the Hub revision.
    fn from_str(text: &str) -> Result<Self, DataError> {
        if Path::new(text).exists() {
            return Ok(Self { location: text.to_owned(), split: None, share: Share::All });
        }
        let is_share = |tail: &str| {
            let number = tail.strip_suffix('%').unwrap_or(tail);
            tail.ends_with('%') || number.bytes().all(|byte| byte.is_ascii_digit())
        };
        let (rest, share) = match text.rsplit_once('@') {
            Some((rest, tail)) if is_share(tail) => (rest, tail.parse()?),
            _ => (text, Share::All),
        };
        let (location, split) = match rest.rsplit_once(':') {
            Some((location, split)) if !location.is_empty() && !Path::new(rest).exists() => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
                if split.is_empty() || !split.bytes().all(plain) {
                    return Err(DataError::Unresolved { argument: text.to_owned() });
                }
                (location, Some(split.to_owned()))
            }
            _ => (rest, None),
        };
        Ok(Self { location: location.to_owned(), split, share })
    }
}

impl std::fmt::Display for SourceSpec {
    /// As it reads back.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.location)?;
        if let Some(split) = &self.split {
            write!(f, ":{split}")?;
        }
        match self.share {
            Share::All => Ok(()),
            Share::Count(count) => write!(f, "@{count}"),
            Share::Percent(percent) => write!(f, "@{percent}%"),
        }
    }
}

impl SourceSpec {
    /// Opens it, from a path or the Hub. Its own split wins over that of `options`.
    ///
    /// # Errors
    /// As [`hub::open_dataset`], and [`DataError::EmptyShare`].
    pub fn open(&self, options: &OpenOptions, choice: Choice) -> Result<(Dataset, Vec<u32>), DataError> {
        let split = self.split.clone().or_else(|| options.split.clone());
        let set = hub::open_dataset(&self.location, &OpenOptions { split, ..options.clone() })?;
        let count = self.share.of(set.len());
        if count == 0 {
            return Err(DataError::EmptyShare { name: set.name().to_owned(), records: set.len() });
        }
        let chosen = choice.indices(count, set.len());
        Ok((set, chosen))
    }
}

/// Several data sets, or chosen records of them, read as one sequence of records, from any thread.
#[derive(Debug)]
pub struct Concat {
    parts: Vec<Part>,
    fingerprint: String,
}

#[derive(Debug)]
struct Part {
    set: Dataset,
    /// The records of `set` that belong to it; `None` for all.
    chosen: Option<Vec<u32>>,
    /// Number of its first record in the whole.
    first: usize,
}

impl Part {
    fn len(&self) -> usize {
        self.chosen.as_ref().map_or(self.set.len(), Vec::len)
    }
}

impl From<Dataset> for Concat {
    /// One data set as it is, with its own fingerprint.
    fn from(set: Dataset) -> Self {
        let fingerprint = set.fingerprint().to_owned();
        Self { parts: vec![Part { set, chosen: None, first: 0 }], fingerprint }
    }
}

impl Concat {
    /// The chosen records of each data set, one after another in the order given.
    ///
    /// # Panics
    /// When there is no record at all, or an index is not below its data set's length.
    #[track_caller]
    pub fn new(parts: impl IntoIterator<Item = (Dataset, Vec<u32>)>) -> Self {
        let mut first = 0;
        let mut all = Vec::new();
        for (set, chosen) in parts {
            let beyond = chosen.iter().find(|&&index| index as usize >= set.len());
            assert!(beyond.is_none(), "record {} of a data set of {}", beyond.unwrap_or(&0), set.len());
            let whole = chosen.len() == set.len() && chosen.iter().zip(0..).all(|(&index, at)| index == at);
            let part = Part { set, chosen: (!whole).then_some(chosen), first };
            first += part.len();
            all.push(part);
        }
        assert!(first > 0, "a data set of no records");
        let fingerprint = match all.as_slice() {
            [Part { set, chosen: None, .. }] => set.fingerprint().to_owned(),
            parts => fingerprint_of(parts),
        };
        Self { parts: all, fingerprint }
    }

    /// Opens what the command line names, one after another.
    ///
    /// # Errors
    /// As [`SourceSpec::open`].
    ///
    /// # Panics
    /// When `sources` is empty.
    #[track_caller]
    pub fn open(sources: &[SourceSpec], options: &OpenOptions, choice: Choice) -> Result<Self, DataError> {
        let parts: Vec<_> =
            sources.iter().map(|source| source.open(options, choice)).collect::<Result<_, _>>()?;
        Ok(Self::new(parts))
    }

    /// How many records there are; never 0.
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first + part.len())
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The data sets, and how many records of each belong to the whole.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (&Dataset, usize)> {
        self.parts.iter().map(|part| (&part.set, part.len()))
    }

    /// The part record `index` is in, from 0, and its number in that part's data set.
    ///
    /// # Panics
    /// When `index` is not below [`Concat::len`].
    #[track_caller]
    pub fn locate(&self, index: usize) -> (usize, usize) {
        assert!(index < self.len(), "record {index} of a data set of {}", self.len());
        // Parts without records share their `first` with the next one: the last of them is the one with records.
        let number = self.parts.partition_point(|part| part.first <= index) - 1;
        let part = &self.parts[number];
        let offset = index - part.first;
        (number, part.chosen.as_ref().map_or(offset, |chosen| chosen[offset] as usize))
    }

    /// Record `index`.
    ///
    /// # Errors
    /// As [`Dataset::get`].
    ///
    /// # Panics
    /// When `index` is not below [`Concat::len`].
    #[track_caller]
    pub fn get(&self, index: usize) -> Result<Sample, DataError> {
        let (part, row) = self.locate(index);
        self.parts[part].set.get(row)
    }

    /// As [`Dataset::unusable`].
    ///
    /// # Panics
    /// When `index` is not below [`Concat::len`].
    #[track_caller]
    pub fn unusable(&self, index: usize, cause: impl std::error::Error + Send + Sync + 'static) -> DataError {
        let (part, row) = self.locate(index);
        self.parts[part].set.unusable(row, cause)
    }

    /// SHA-256 (hex) over the data sets' fingerprints and the chosen records, in order; for one whole data set its own
    /// fingerprint.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn fingerprint_of(parts: &[Part]) -> String {
    let mut fingerprint = Fingerprint::new("concat");
    for part in parts {
        fingerprint.line(part.set.fingerprint());
        match &part.chosen {
            None => fingerprint.line("all"),
            Some(chosen) => fingerprint.indices(chosen),
        }
    }
    fingerprint.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (String, Option<String>, Share) {
        let SourceSpec { location, split, share } = text.parse().unwrap();
        (location, split, share)
    }

    #[test]
    fn sources_are_read() {
        let plain = |text: &str| text.to_owned();
        let id = "lmms-lab/LLaVA-NeXT-Data";
        assert_eq!(spec(id), (plain(id), None, Share::All));
        assert_eq!(
            spec("lmms-lab/LLaVA-NeXT-Data:train@5%"),
            (plain(id), Some(plain("train")), Share::Percent(5.0))
        );
        assert_eq!(spec("lmms-lab/LLaVA-NeXT-Data@1000"), (plain(id), None, Share::Count(1000)));
        assert_eq!(spec("a/b@v1.0:val@0.5%"), (plain("a/b@v1.0"), Some(plain("val")), Share::Percent(0.5)));
        assert_eq!(spec("/no/where@main"), (plain("/no/where@main"), None, Share::All));
        assert_eq!(spec("."), (plain("."), None, Share::All));
        for wrong in
            ["a/b@0", "a/b@0%", "a/b@101%", "a/b@-1%", "a/b@%", "a/b@nan%", "a/b@", "a/b:", "a/b:x/y"]
        {
            assert!(wrong.parse::<SourceSpec>().is_err(), "{wrong}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_exists_is_that_path() {
        let root = tempfile::tempdir().unwrap();
        let odd = root.path().join("set:train@5%");
        std::fs::create_dir(&odd).unwrap();
        let odd = odd.to_str().unwrap();
        assert_eq!(spec(odd), (odd.to_owned(), None, Share::All));
        let (location, split, share) = spec(&format!("{odd}:test@3"));
        assert_eq!((location.as_str(), split.as_deref(), share), (odd, Some("test"), Share::Count(3)));
    }

    #[test]
    fn shares() {
        assert_eq!(Share::Percent(5.0).of(779_289), 38_964);
        assert_eq!(Share::Percent(7.0).of(100), 7);
        assert_eq!(Share::Percent(100.0).of(3), 3);
        assert_eq!(Share::Percent(5.0).of(10), 0);
        assert_eq!((Share::Count(5).of(3), Share::Count(5).of(9), Share::All.of(9)), (3, 5, 9));
    }

    #[test]
    fn choices_ascend_and_depend_on_the_seed() {
        assert_eq!(Choice::First.indices(3, 10), [0, 1, 2]);
        let [one, two] = [1, 2].map(|seed| Choice::Seeded(seed).indices(50, 1000));
        assert!(one.is_sorted() && one.len() == 50);
        assert_ne!(one, two);
        let mut expected = shuffled_order(1000, 1)[..50].to_vec();
        expected.sort_unstable();
        assert_eq!(one, expected);
        assert_eq!(Choice::Seeded(3).indices(4, 4), [0, 1, 2, 3]);
    }
}
