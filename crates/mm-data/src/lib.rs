//! Image-text data sets: parquet, image folders, JSON and token files, from a folder or the Hugging Face Hub.
//!
//! [`Dataset`] gives records by number, from any thread, without ever holding the set in memory. [`Sample`] is one
//! record whatever file it came from; its images are still encoded, decoding them is the business of whoever
//! feeds a model. [`Concat`] reads several data sets, or shares of them, as one. [`ParquetWriter`] writes samples as the
//! Hub's data sets are, [`TokenWriter`] token ids as sparsify reads them, [`hub`] downloads from the Hub, [`annotations`] reads COCO
//! and ADE20K. [`shuffled_order`] and [`shard`] say who reads what in which order, [`BadRecords`] what a bad record does.
//!
//! The crate knows no model, no tokenizer, and decodes no image; of annotations it reads and writes PNG masks.
//!
//! ```
//! use mm_data::{Dataset, ImageColumn, ParquetWriter, Role, Sample, Turn};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let mut writer = ParquetWriter::create(&folder.join("train-00000-of-00001.parquet"), ImageColumn::Single)?;
//! for number in 0..100 {
//!     let turn = Turn { role: Role::User, text: format!("how much is {number} ?") };
//!     writer.push(Sample { id: Some(number.to_string()), conversations: vec![turn], ..Sample::default() })?;
//! }
//! writer.finish()?;
//!
//! let set = Dataset::open(folder, Some("train"))?;
//! for index in mm_data::shuffled_order(set.len(), 42) {
//!     assert_eq!(set.get(index as usize)?.id, Some(index.to_string()));
//! }
//! # Ok(())
//! # }
//! ```

pub mod annotations;
mod chunks;
mod columns;
mod concat;
mod dataset;
mod error;
mod features;
mod files;
mod fingerprint;
pub mod hub;
mod image_folder;
mod json;
mod json_index;
mod json_set;
mod order;
mod parquet_set;
mod parquet_writer;
mod policy;
mod sample;
mod token_writer;
mod tokens;

pub use chunks::Chunker;
pub use concat::{Choice, Concat, Share, SourceSpec};
pub use dataset::{Dataset, OpenOptions};
pub use error::{DataError, RecordError};
pub use features::ImageColumn;
pub use order::{shard, shuffled_order};
pub use parquet_writer::ParquetWriter;
pub use policy::{BadRecord, BadRecordCounter, BadRecords};
pub use sample::{EncodedImage, Field, MaskAnnotation, Role, Sample, Turn};
pub use token_writer::TokenWriter;
pub use tokens::{TokenDtype, TokenFileInfo, TokenOptions};
