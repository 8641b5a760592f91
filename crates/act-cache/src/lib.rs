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
//! # Format, version 1
//!
//! ```text
//! <cache>/
//!   manifest.json                        what the cache is about and which files it has
//!   samples.jsonl                        one line per sample, ascending by sample
//!   <hook point>/{start}_{last}.safetensors   the activations of latents start ..= last
//! ```
//!
//! Other files in the folder are none of the cache's business (a binary's `run.json`, say).
//!
//! ## Splits
//!
//! A hook point of `width` latents has `s` split files. Split `i` holds the latents from `⌊i·width/s⌋` up to but
//! not including `⌊(i+1)·width/s⌋`; the file is named after the first and the last latent it holds, as msae
//! names them. Every latent is in one split. A split is a safetensors file with four tensors, where `l` is
//! its number of latents and `n` its number of activations:
//!
//! | tensor | shape | dtype | content |
//! |---|---|---|---|
//! | `latent_offsets` | `[l + 1]` | U64 | activations of latent `start + i` are entries `offsets[i] .. offsets[i + 1]`; 0 first, `n` last, never falling |
//! | `sample` | `[n]` | U32 | the sample, as in samples.jsonl |
//! | `token` | `[n]` | U16 or U32 | position in the sample's token sequence |
//! | `activation` | `[n]` | F32, F16 or BF16 | the activation, finite and not zero |
//!
//! Entries of a latent ascend by (sample, token), with no pair twice. Positions count the whole sequence after
//! image placeholders were expanded, 0 being its first token (BOS, if the model has one) whether or not that
//! position is stored. `token` is U16 in all splits of a cache if no stored position is above 65,535. An
//! activation takes 8 to 12 bytes, 10 with F32 values and sequences below 65,536 tokens.
//!
//! Tensors lie in the order of falling element size, those of one size in the order above, without gaps, after a
//! header padded with spaces to a multiple of 8 bytes: every tensor is aligned to its element within the file,
//! and one content has one sequence of bytes. All numbers are little-endian.
//!
//! ## manifest.json
//!
//! The fields of [`Manifest`]. Hashes are SHA-256 in lower-case hex over whole files. `filters`, if there, lists
//! per hook point the only features that were stored; every other one is *not cached*, which is not the same
//! as never active. `token_layout.base` is where the base tile (the whole image) lies in every sample with an
//! image: `rows · cols` positions from `start`, row by row; a sample whose image begins elsewhere has its own
//! `base_start`.
//!
//! ## samples.jsonl
//!
//! One [`SampleRecord`] per line. A sample without any activation has its line as well.
//!
//! ## Versions
//!
//! A reader ignores members it does not know, so later writers may add members and files. A change that would
//! mislead a reader of version 1 raises `version`, and readers refuse a version they do not know.
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
//! Codes of hook points collect in a buffer; above the memory budget the buffer is sorted by (latent, sample,
//! token) and spilled as a run. Samples come in ascending order, so the entries of a latent in one run precede
//! those in the next, and merging is joining: the bytes do not depend on the budget. All happens in a hidden
//! folder beside the target, renamed by [`CacheWriter::finish`] and removed if that is never reached.

#[cfg(target_endian = "big")]
compile_error!("act-cache maps little-endian files as they are");

mod error;
mod feature;
mod hash;
mod manifest;
mod mmap;
mod rank;
mod reader;
mod runs;
mod split;
mod writer;

pub use error::CacheError;
pub use feature::{Activation, FeatureSlice};
pub use manifest::{
    ActivationDtype, BaseTile, CacheDescription, Counts, DatasetSource, HookDescription, HookManifest,
    Manifest, SaeSource, SampleRecord, SplitManifest, TokenLayoutDescription,
};
pub use rank::{Duplicates, FeatureStatistics, RankedSample};
pub use reader::{Cache, HookCache};
pub use writer::{CacheWriter, SampleCodes, WriterOptions};
