//! A sparse activation store sorted by feature: bounded-memory writer, memory-mapped reader.
//!
//! [`CacheWriter`] takes the codes of one sample after the other and keeps at most a stated number of bytes
//! in memory; [`Cache`] gives all activations of one feature as a [`FeatureSlice`] without scanning. The crate
//! knows neither models nor data sets: positions, samples and hook points are numbers and names to it.
//!
//! ```
//! use act_cache::{Cache, CacheDescription, CacheWriter, HookDescription, SampleCodes, SampleRecord, WriterOptions};
//! use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
//!
//! # let folder = tempfile::tempdir()?;
//! # let dir = folder.path().join("cache");
//! let hook = HookPoint::layer(24);
//! let mut description = CacheDescription { model: "shapes-lmm-s".into(), ..CacheDescription::default() };
//! description.hooks.insert(hook.clone(), HookDescription { width: 8, k: 2, ..HookDescription::default() });
//!
//! let mut writer = CacheWriter::create(&dir, description, WriterOptions { n_splits: 2, ..WriterOptions::default() })?;
//! let mut codes = SparseCodes::new(8);
//! codes.push_row([(FeatureId(2), 0.5), (FeatureId(7), 1.25)])?;
//! codes.push_row([(FeatureId(7), 2.0)])?;
//! let record = SampleRecord { sample: SampleId(0), n_tokens: 3, ..SampleRecord::default() };
//! writer.push(&record, &[SampleCodes { hook: &hook, tokens: &[1, 2], codes: &codes }])?;
//! writer.finish()?;
//!
//! let cache = Cache::open(&dir)?;
//! let layer = cache.hook(&hook)?;
//! let feature = layer.feature(FeatureId(7))?;
//! let activations: Vec<_> = feature.iter().map(|a| (a.sample.0, a.token.0, a.value)).collect();
//! assert_eq!(activations, [(0, 1, 1.25), (0, 2, 2.0)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The format is specified in [docs/cache-format.md](https://github.com/lmm-sae/lmm-sae/blob/main/docs/cache-format.md), so that
//! other languages can read it.
//!
//! # What is checked when
//!
//! Opening checks the manifest, the hash of samples.jsonl, and for each split asked for the header, sizes,
//! alignment and `latent_offsets`, so that no later access can leave a file's bounds. Contents of the other
//! columns are trusted until [`Cache::verify`] reads everything: hashes, order, samples, positions, values.
//! Wrong contents give wrong answers, never undefined behaviour.
//!
//! # Writing
//!
//! [`CacheWriter`] writes a cache in one go. [`PartWriter`] writes one worker's part of it and survives a kill at any moment;
//! [`merge()`] joins the parts. Either way codes collect in buffers of a fixed size, which are sorted by (latent, sample,
//! token) and spilled as runs. Samples only rise from run to run and from part to part, so merging is appending, and the bytes
//! depend neither on the memory budget, nor on kills, nor on the number of workers.

#[cfg(target_endian = "big")]
compile_error!("act-cache maps little-endian files as they are");

mod check;
mod diagnose;
mod discard;
mod drift;
mod error;
mod feature;
mod files;
mod finding;
pub mod foreign;
#[cfg(test)]
mod fuzz;
mod hash;
mod header;
mod job;
mod ledger;
mod manifest;
mod merge;
mod mmap;
mod part;
mod query;
mod reader;
mod runs;
mod split;
mod split_writer;
mod tensor_file;
mod tokens;
mod verify;
mod writer;

pub use discard::discard_parts;
pub use drift::DatasetSample;
pub use error::CacheError;
pub use feature::{Activation, FeatureSlice};
pub use finding::{Finding, Severity};
pub use job::CacheJob;
pub use manifest::{
    ActivationDtype, BaseTile, CacheDescription, Counts, DatasetSource, HookDescription, HookManifest,
    Manifest, SaeSource, SampleRecord, SplitManifest, TokenLayoutDescription, TokensManifest,
};
pub use merge::{MergeLock, lock_for_merge, merge, missing_parts, part_notes};
pub use part::{PartWriter, SampleCodes, Shard};
pub use query::{
    CoOccurrence, Duplicates, FeatureStatistics, RankedSample, Ranking, SampleActivation, SampleView,
    Selection, Together,
};
pub use reader::{Cache, HookCache};
pub use tokens::CachedTokens;
pub use writer::{CacheWriter, WriterOptions};
