//! The samples of a foreign cache: how long each is, and its record.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use sae_types::SampleId;

use super::split::{ForeignSplit, TokenGrid};
use super::{ForeignCache, ImportOptions};
use crate::hash::HashWriter;
use crate::manifest::SAMPLES_FILE;
use crate::tokens::{TOKENS_FILE, TokensWriter};
use crate::{BaseTile, CacheError, Counts, SampleRecord, TokensManifest};

/// How many tokens each sample has, by its number.
#[derive(Debug)]
pub(super) struct Samples {
    lengths: Vec<u32>,
    /// How many there may be.
    limit: usize,
}

impl Samples {
    /// None yet. A sample takes 4 bytes of `budget`, and twice that while the table grows.
    pub(super) fn new(budget: usize) -> Self {
        Self { lengths: Vec::new(), limit: budget / 12 }
    }

    /// Makes room for a position; `false` where that would break the budget.
    pub(super) fn note(&mut self, sample: u32, position: u32) -> bool {
        let at = sample as usize;
        if at >= self.lengths.len() {
            if at >= self.limit {
                return false;
            }
            self.lengths.resize(at + 1, 0);
        }
        self.lengths[at] = self.lengths[at].max(position + 1);
        true
    }

    pub(super) fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Lengths as delphi's `tokens` have them, trailing padding cut off where `pad` says what it is.
    pub(super) fn take_grid(
        &mut self,
        split: &ForeignSplit,
        grid: &TokenGrid,
        pad: Option<u32>,
    ) -> Result<(), CacheError> {
        let wrong = |problem: String, expected: String| CacheError::Tensor {
            path: split.path().to_owned(),
            tensor: super::split::TOKENS,
            problem,
            expected,
        };
        if self.lengths.len() > grid.rows {
            let expected =
                format!("a row for every sample, of which {} has activations", self.lengths.len() - 1);
            return Err(wrong(format!("has {} rows", grid.rows), expected));
        }
        if grid.rows > self.limit {
            return Err(wrong(
                format!("has {} rows", grid.rows),
                format!("at most {} in the memory allowed", self.limit),
            ));
        }
        let cols = u32::try_from(grid.cols).ok().filter(|&cols| cols < u32::MAX);
        let Some(cols) = cols else {
            return Err(wrong(
                format!("has rows of {}", grid.cols),
                "rows that positions can count".to_owned(),
            ));
        };
        self.lengths.resize(grid.rows, 0);
        for (row, length) in self.lengths.iter_mut().enumerate() {
            if *length > cols {
                let problem =
                    format!("has rows of {cols}, but sample {row} an activation at token {}", *length - 1);
                return Err(wrong(problem, "rows as long as the samples".to_owned()));
            }
            let own = match pad {
                None => cols,
                Some(pad) => {
                    let padding =
                        split.token_row(grid, row).rev().take_while(|&id| id == i64::from(pad)).count();
                    cols - padding as u32
                }
            };
            *length = own.max(*length);
        }
        Ok(())
    }

    /// Lengths of a cache that does not say them: as told, or up to the last activation seen, but never less than `least`.
    pub(super) fn take_told(&mut self, told: Option<u32>, least: u32) -> Result<(), CacheError> {
        for (sample, length) in self.lengths.iter_mut().enumerate() {
            match told {
                Some(told) if told < (*length).max(least) => {
                    return Err(CacheError::Sample {
                        sample: SampleId(sample as u32),
                        what: "the number of tokens told".to_owned(),
                        expected: format!("at least the {} that it has", (*length).max(least)),
                        got: told.to_string(),
                    });
                }
                Some(told) => *length = told,
                None => *length = (*length).max(least),
            }
        }
        Ok(())
    }

    fn record(&self, at: usize, base: Option<BaseTile>) -> SampleRecord {
        let n_tokens = self.lengths[at];
        let image_tokens = base.map(|base| [base.start, n_tokens]).filter(|[start, end]| start < end);
        SampleRecord {
            sample: SampleId(at as u32),
            n_tokens,
            image_tokens: image_tokens.into_iter().collect(),
            ..SampleRecord::default()
        }
    }

    /// Writes samples.jsonl and gives its hash.
    pub(super) fn write(&self, folder: &Path, base: Option<BaseTile>) -> Result<String, CacheError> {
        let path = folder.join(SAMPLES_FILE);
        let file = File::create(&path).map_err(CacheError::io("create", &path))?;
        let mut out = HashWriter::new(BufWriter::new(file));
        for at in 0..self.lengths.len() {
            let mut line = serde_json::to_vec(&self.record(at, base)).map_err(|source| CacheError::Json {
                path: path.clone(),
                line: None,
                source,
            })?;
            line.push(b'\n');
            out.write_all(&line).map_err(CacheError::io("write", &path))?;
        }
        let (mut out, sha256) = out.finish();
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(CacheError::io("write", path))?;
        Ok(sha256)
    }

    /// How many there are, and how many tokens they have; activations are for the caller to add.
    pub(super) fn counts(&self) -> Counts {
        Counts { samples: self.lengths.len() as u64, tokens: self.sum(0), activations: 0 }
    }

    /// Tokens from position `first` on, of all samples.
    pub(super) fn sum(&self, first: u32) -> u64 {
        self.lengths.iter().map(|&length| u64::from(length.saturating_sub(first))).sum()
    }
}

/// The first split that has `tokens`, where any has.
pub(super) fn grid(cache: &ForeignCache) -> Option<(&ForeignSplit, &TokenGrid)> {
    let mut splits = cache.entries().values().flat_map(|hook| &hook.splits);
    splits.find_map(|split| Some((split, split.tokens()?)))
}

/// Writes the token ids of delphi's `tokens` as the native file of them.
pub(super) fn write_tokens(
    folder: &Path,
    (split, grid): (&ForeignSplit, &TokenGrid),
    samples: &Samples,
) -> Result<TokensManifest, CacheError> {
    let counts = samples.counts();
    let mut writer = TokensWriter::create(&folder.join(TOKENS_FILE), counts.samples, counts.tokens)?;
    let mut ids = Vec::new();
    for (row, &length) in samples.lengths().iter().enumerate() {
        ids.clear();
        for id in split.token_row(grid, row).take(length as usize) {
            let id = u32::try_from(id).map_err(|_| CacheError::Tensor {
                path: split.path().to_owned(),
                tensor: super::split::TOKENS,
                problem: format!("holds {id} in row {row}"),
                expected: "token ids from 0 to 4294967295".to_owned(),
            })?;
            ids.push(id);
        }
        writer.push(&ids)?;
    }
    Ok(TokensManifest { file: TOKENS_FILE.to_owned(), sha256: writer.finish()? })
}

/// What a sample of a cache imported with `options` has at least: everything before the first token encoded, and its base tile.
pub(super) fn least(first: u32, options: &ImportOptions) -> u32 {
    let base = options.base.and_then(|base| base.start.checked_add(base.n_tokens()?));
    base.unwrap_or(first).max(first)
}
