//! Image-text data sets: parquet, image folders, JSON and JSONL, from a folder or the Hugging Face Hub.
//!
//! [`Dataset`] gives records by number, from any thread, without ever holding the set in memory. [`Sample`] is one
//! record whatever file it came from; its images are still encoded, decoding them is the business of whoever
//! feeds a model. [`ParquetWriter`] writes samples as the Hub's data sets are, [`hub`] downloads from there.
//! [`shuffled_order`] and [`shard`] say who reads what in which order, [`BadRecords`] what a bad record does.
//!
//! The crate knows no model and decodes no image.
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

mod columns;
mod dataset;
mod error;
mod features;
mod files;
mod fingerprint;
pub mod hub;
mod image_folder;
mod json;
mod json_set;
mod order;
mod parquet_set;
mod parquet_writer;
mod policy;
mod sample;

pub use dataset::{Dataset, OpenOptions};
pub use error::{DataError, RecordError};
pub use features::ImageColumn;
pub use order::{shard, shuffled_order};
pub use parquet_writer::ParquetWriter;
pub use policy::{BadRecordCounter, BadRecords};
pub use sample::{EncodedImage, Field, MaskAnnotation, Role, Sample, Turn};
